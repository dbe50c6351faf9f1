"""
A pytest plugin, there as soon as kedge-worker is installed: a database a test, and a clock that moves.

::

    async def test_a_customer_is_reminded_after_three_days(kedge_url, kedge_clock):
        worker = Worker(kedge_url, workflows=[remind])
        run = Client.connect(kedge_url).start(reminder(order))

        await worker.run_until_idle()
        kedge_clock.advance("3 days")
        await worker.run_until_idle()

        assert run.result(timeout=0) == "reminded"

It is the real engine on a real Postgres, which `postgres_server` finds or starts; `KEDGE_TEST_POSTGRES` is the major
version that is wanted of one that is started, 18 if nothing is said.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

# Imported by fixtures that are asked for: a plugin is loaded whether anybody uses it or not.
if TYPE_CHECKING:
    from kedge_worker.testing import Clock
    from kedge_worker.testing._databases import Databases


@pytest.fixture(scope="session")
def _kedge_databases() -> Generator[Databases]:
    from kedge_worker.testing import postgres_server
    from kedge_worker.testing._databases import Databases

    with postgres_server(int(os.environ.get("KEDGE_TEST_POSTGRES") or 18), fast=True) as server:
        databases = Databases(server)
        yield databases
        databases.close()


@pytest.fixture
def kedge_url(_kedge_databases: Databases) -> Generator[str]:
    """The URL of a fresh database with kedge's schema; dropped after the test, when nothing in it is broken."""
    from kedge_worker.testing._databases import broken_invariants

    url = _kedge_databases.create()
    try:
        yield url
        if rows := broken_invariants(url):
            listed = "\n".join(f"  {row}" for row in rows)
            pytest.fail(f"kedge has broken {len(rows)} of its own promises, please report it:\n{listed}", pytrace=False)
    finally:
        _kedge_databases.drop(url)


@pytest.fixture
def kedge_clock(kedge_url: str) -> Clock:
    """Moves the time by which the runs in that database wait: `kedge_clock.advance("3 days")`."""
    from kedge_worker.testing import Clock

    return Clock(kedge_url)
