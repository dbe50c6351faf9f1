"""The database with roles, in which the functions are called as a client's login."""

from tests.proof.security.roles import land, logins

__all__ = ["land", "logins"]  # fixtures by being here
