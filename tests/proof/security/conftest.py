"""What the tests of privileges, attacks and resources share."""

from tests.proof.security.roles import land, logins

__all__ = ["land", "logins"]  # fixtures by being here
