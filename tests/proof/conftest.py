"""Fixtures of several folders, defined once: roles are the cluster's, and who is last takes them away."""

from tests.proof.security.roles import land, logins, shared_land

__all__ = ["land", "logins", "shared_land"]  # fixtures by being here
