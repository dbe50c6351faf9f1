"""The client's own suite, as a login that is a member of `kedge_client` and of nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.client_role import VARIABLE

ROOT: Final = Path(__file__).parents[3]
# What a client may do, each verb at least once; what is about input, faults and other servers is left out for its time.
SUITE: Final = (
    "tests/integration/client/test_client_start.py",
    "tests/integration/client/test_client_keys.py",
    "tests/integration/client/test_client_singletons.py",
    "tests/integration/client/test_client_transactions.py",
    "tests/integration/client/test_client_reads.py",
    "tests/integration/client/test_control.py",
    "tests/integration/client/test_progress.py",
    "tests/integration/client/test_reading_lists.py",
    "tests/integration/client/test_reading_runs.py",
    "tests/integration/client/test_reading_steps.py",
    "tests/integration/client/test_rerun_from.py",
    "tests/integration/client/test_send.py",
    "tests/scenarios/test_sleeps_and_events.py",
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    # A process of its own: the roles are made for all databases of a process's server.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments],
        cwd=ROOT,
        env={**environment, VARIABLE: "1", "KEDGE_PROOF": ""},
        capture_output=True,
        text=True,
        check=False,
    )


# A file each: a test that takes longer than two minutes counts as one that hangs.
@pytest.mark.full
@pytest.mark.parametrize("file", SUITE, ids=lambda file: Path(file).stem)
def test_a_member_of_kedge_client_can_do_all_that_a_client_does(file: str) -> None:
    ended = run(file)

    passed = re.search(r"(\d+) passed", ended.stdout)
    assert ended.returncode == 0, ended.stdout[-6000:]
    assert passed is not None
    assert int(passed[1]) > 0  # or nothing would be shown


@pytest.mark.full
def test_a_test_that_needs_more_than_a_client_may_fails_in_that_suite(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "from tests.conftest import *\n"
        "from tests.conftest import anyio_backend, conn, database_url, databases, postgres\n"
        "from tests.client_role import as_client_role, stays_the_owners\n"
    )
    (tmp_path / "test_more.py").write_text(
        "from tests.twins import SYNC, connected\n"
        "async def test_a_client_reads_a_table(database_url):\n"
        "    async with connected(SYNC, database_url) as mine:\n"
        "        mine.execute('select from kedge.runs')\n"
    )

    ended = run("--rootdir", str(tmp_path), "-c", str(ROOT / "pyproject.toml"), str(tmp_path))

    assert ended.returncode == 1, ended.stdout[-3000:]
    assert "permission denied for table runs" in ended.stdout
