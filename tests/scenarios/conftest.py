"""With KEDGE_TEST_CLIENT_ROLE=1 clients may do what a client may, and nothing else: see tests/client_role.py."""

from tests.client_role import as_client_role, stays_the_owners

__all__ = ["as_client_role", "stays_the_owners"]  # fixtures by being here
