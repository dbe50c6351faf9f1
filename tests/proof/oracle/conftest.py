"""One sound run of real processes, for all tests of a process."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from kedge_worker.testing._databases import Databases
from tests.proof.kit.fleet import fleet
from tests.proof.oracle.test_the_oracle import MIX


@pytest.fixture(scope="session")
def sound(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[str, Path]]:
    """A database and the journals of a client and a worker that nobody disturbed; not to be written."""
    url, folder = databases.create(), tmp_path_factory.mktemp("sound")
    with fleet(url, folder) as processes:
        processes.worker()
        client = processes.client(mix=MIX, rate=200, runs=60, n=2, results=1)
        assert client.wait(timeout=60) == 0
        processes.drain()
        yield url, folder
    databases.drop(url)
