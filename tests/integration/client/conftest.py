"""
What the tests of the client share: each runs on the sync and on the async one.

With KEDGE_TEST_CLIENT_ROLE=1 as a login that may do what a client may, and nothing else: see tests/client_role.py.
"""

from collections.abc import AsyncGenerator, Generator

import pytest

from tests.client_role import as_client_role, stays_the_owners
from tests.proxy import Proxy, proxy
from tests.sessions import Session
from tests.twins import TWINS, AnyClient, Twin, opened

__all__ = ["as_client_role", "stays_the_owners"]  # fixtures by being here


@pytest.fixture(params=TWINS, ids=[twin.name for twin in TWINS])
def twin(request: pytest.FixtureRequest) -> Twin:
    """The sync or the async client."""
    found: Twin = request.param
    return found


@pytest.fixture
async def client(twin: Twin, database_url: str) -> AsyncGenerator[AnyClient]:
    """A client of the test's database."""
    async with opened(twin, database_url) as made:
        yield made


@pytest.fixture
def wire(database_url: str) -> Generator[Proxy]:
    """A wire to the test's database."""
    with proxy(database_url) as made:
        yield made


@pytest.fixture
def db(database_url: str) -> Generator[Session]:
    """A connection for the moves of a worker."""
    with Session(database_url) as session:
        yield session
