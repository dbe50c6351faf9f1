"""
The disk of the data or of the WAL is full: errors have types, no worker ends, and all goes on once there is space.

The data directory lies on a small file system in memory, which root may mount. KEDGE_PROOF_SECONDS: how long the disk
stays full (10); KEDGE_PROOF_RATE: starts a second (40).
"""

from __future__ import annotations

import secrets
import subprocess
import time
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Final

import psycopg
import pytest

from kedge_client import Client, DatabaseError
from kedge_worker._migrator import migrate
from kedge_worker.testing._server_folder import ServerFolder
from tests.proof.chaos.servers import Node
from tests.proof.kit.fleet import fleet
from tests.proof.kit.journal import read_journals
from tests.proof.kit.lanes import setting
from tests.proof.kit.oracle import check
from tests.proof.kit.plugin import Figure
from tests.proof.kit.programs import Work, steps

pytestmark = pytest.mark.chaos

SECONDS: Final = setting("seconds", 10)
RATE: Final = setting("rate", 40)
DATA_MB: Final = 300
WAL_MB: Final = 128
RECOVERY_S: Final = 10.0
WAL: Final = {"min_wal_size": "32MB", "max_wal_size": "48MB", "wal_keep_size": "0"}


class Disks:
    """A server whose data and whose WAL have a small file system each."""

    def __init__(self, server: Node) -> None:
        self.server = server

    def fill(self, which: str) -> Path:
        """Put ballast where `which` is, `data` or `wal`, until nothing more fits."""
        ballast = self._folder(which) / "ballast"
        # Without a buffer, whose rest would be written, and refused, once more when it is closed.
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"\0" * 65536)
        return ballast

    def _folder(self, which: str) -> Path:
        return self.server.data if which == "data" else self.server.data / "pg_wal"


@pytest.fixture
def disks() -> Generator[Disks]:
    """Mounts them; fails aloud where that is not allowed."""
    mounted: list[Path] = []

    def data(folder: ServerFolder) -> Path:
        for name, megabytes in (("data", DATA_MB), ("wal", WAL_MB)):
            path = folder.make(name)
            mount(path, megabytes)
            mounted.append(path)
            path.chmod(0o700)
            folder.give(path)
        return folder.data

    server = Node(secrets.token_hex(16), settings=WAL, data=data)
    try:
        server.initialise(wal=mounted[1])
        server.start()
        migrate(server.url)
        yield Disks(server)
    finally:
        server.kill()
        for path in mounted:
            subprocess.run(["umount", "-l", str(path)], check=False)
        server.close()


def mount(path: Path, megabytes: int) -> None:
    """Put a small file system into memory, there."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "kedge-proof", str(path)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.fail(f"only root may mount a small disk (run it in a container as root): {made.stderr}", pytrace=False)


@pytest.mark.parametrize("which", ["data", "wal"])
def test_a_full_disk_ends_no_worker_and_loses_nothing(which: str, disks: Disks, tmp_path: Path, figure: Figure) -> None:
    server = disks.server
    with fleet(server.url, tmp_path, LEASE="5s", POLL="2s") as crew:
        workers = [crew.worker() for _ in range(2)]
        client = crew.client(rate=RATE, seconds=SECONDS + 10, mix="steps:6,parallel:2,charge:3,event:2", n=3)
        crew.wait_until("select count(*) > 20 from kedge.finished")

        crew.journal.write("fault", kind=f"{which} full", about="server")
        ballast = disks.fill(which)
        errors = try_to_start(server.url)
        ballast.unlink()
        restart_if_it_panicked(server)
        released = time.monotonic()
        with Client.connect(server.url) as own:
            while True:
                with suppress(DatabaseError):
                    own.start(steps(Work(2))).result(timeout="30s")
                    break
        recovery_s = time.monotonic() - released

        assert client.wait(120) == 0, crew.log(client)
        crew.drain(90)
        assert [worker.poll() for worker in workers] == [None, None], "a worker has ended"
        assert [crew.terminate(worker) for worker in workers] == [0, 0]

    report = check(server.url, tmp_path)
    begun = [line["at"] for line in read_journals(tmp_path) if line["what"] == "life" and line["at"] > released]
    figure(f"{which} full: errors that clients met", len(errors))
    figure(f"{which} full: a run is done after the release", recovery_s, unit="s", goal=RECOVERY_S)
    figure(f"{which} full: workers begin a run after the release", min(begun) - released, unit="s", goal=RECOVERY_S)
    assert errors, "the disk was not full"
    assert which == "wal" or "UnavailableError 53100" in errors, errors
    assert not report.violations, report


def try_to_start(url: str) -> set[str]:
    """Start large runs for as long as the disk stays full; answers the errors, all of which have kedge's types."""
    errors: set[str] = set()
    end = time.monotonic() + SECONDS
    with Client.connect(url, timeout="3s") as client:
        while time.monotonic() < end:
            try:
                client.start_many([steps(Work(1)) for _ in range(50)])
            except DatabaseError as error:
                errors.add(f"{type(error).__name__} {error.sqlstate}")
                time.sleep(0.1)
    return errors


def restart_if_it_panicked(server: Node) -> None:
    """Without WAL it cannot even recover: then whoever watches over it starts it again, as soon as there is space."""
    end = time.monotonic() + 3
    while time.monotonic() < end:
        with suppress(psycopg.OperationalError):
            psycopg.connect(server.url, connect_timeout=1).close()
            return
        if not server.runs:
            server.start()
            return
        time.sleep(0.05)
