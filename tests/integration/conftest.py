"""What the tests of interleavings share."""

from collections.abc import Generator

import pytest

from tests.sessions import Session, Sessions, open_sessions


@pytest.fixture
def sessions(database_url: str) -> Generator[Sessions]:
    """Opens connections to the test's database, closed before its invariants are looked at."""
    with open_sessions(database_url) as opened:
        yield opened


@pytest.fixture
def db(sessions: Sessions) -> Session:
    """The connection for what is not interleaved."""
    return sessions.open()
