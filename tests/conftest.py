"""
What every test may ask for.

Async tests just are `async def`, on asyncio, by anyio's plugin. Each process of pytest-xdist has a server of its own:
0.4 s at its start, and no test of one process can be in the way of another's.
"""

from collections.abc import Generator

import psycopg
import pytest
from hypothesis import settings

from kedge_worker.testing import Clock, PostgresServer
from kedge_worker.testing._databases import Databases, broken_invariants
from tests.postgres import may_start_servers, server_for_tests, server_to_break
from tests.proof.kit.plugin import figure, note_figures, select, summarise

__all__ = ["figure"]  # a fixture by being here

# The same examples every time, so that a red build is red at home as well; --hypothesis-profile=random looks further.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("random", deadline=None)
settings.load_profile("same")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests and fixtures run on asyncio only: psycopg knows no other."""
    return "asyncio"


@pytest.fixture(scope="session")
def postgres() -> Generator[PostgresServer]:
    """The server that this process's tests share. Must not be stopped: see `breakable_postgres`."""
    with server_for_tests() as server:
        yield server


@pytest.fixture(scope="session")
def databases(postgres: PostgresServer) -> Generator[Databases]:
    """Makes databases, for tests that need more than one."""
    made = Databases(postgres)
    yield made
    made.close()


@pytest.fixture
def database_url(databases: Databases, request: pytest.FixtureRequest) -> Generator[str]:
    """
    A fresh database with the schema, dropped afterwards.

    When the test and its fixtures are done, check_invariants() must be empty, else the test fails, unless it is marked
    `breaks_invariants`.
    """
    url = databases.create()
    yield url
    try:
        if request.node.get_closest_marker("breaks_invariants") is None:
            _fail_if_broken(url)
    finally:
        databases.drop(url)


@pytest.fixture
def conn(database_url: str) -> Generator[psycopg.Connection]:
    """A plain connection to the test's database, in autocommit mode."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def clock(database_url: str) -> Clock:
    """Moves the time of the test's database."""
    return Clock(database_url)


@pytest.fixture
def breakable_postgres(request: pytest.FixtureRequest) -> Generator[PostgresServer]:
    """A server for this test alone (0.5 s), to be stopped, killed and frozen; `.url` has the schema."""
    if not may_start_servers():
        pytest.skip("KEDGE_REQUIRE_POSTGRES leaves no server that a test may stop")
    with server_to_break() as server:
        yield server
        server.thaw()
        server.start()
        if request.node.get_closest_marker("breaks_invariants") is None:
            _fail_if_broken(server.url)


def _fail_if_broken(url: str) -> None:
    if rows := broken_invariants(url):
        listed = "\n".join(f"  {row}" for row in rows)
        pytest.fail(f"the test left {len(rows)} broken invariants:\n{listed}", pytrace=False)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is not of this lane of the proof."""
    select(config, items)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep what a test has measured."""
    note_figures(report)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the proof has left out, and its figures."""
    summarise(terminalreporter)
