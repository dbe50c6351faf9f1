"""What the tests of privileges, attacks and resources share."""

from tests.proof.security.roles import land, logins, shared_land

__all__ = ["land", "logins", "shared_land"]  # fixtures by being here
