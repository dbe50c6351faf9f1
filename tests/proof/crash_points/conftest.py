"""The databases of the crash points serve one test after the other."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from kedge_worker.testing._databases import Databases
from tests.proof.crash_points.runner import free


@pytest.fixture(scope="session", autouse=True)
def _databases_end(databases: Databases) -> Generator[None]:
    yield
    while free:
        databases.drop(free.pop())
