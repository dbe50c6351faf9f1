"""What the tests of the client share: each runs on the sync and on the async one."""

from collections.abc import AsyncGenerator

import pytest

from tests.twins import TWINS, AnyClient, Twin, opened


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
