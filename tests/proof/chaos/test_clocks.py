"""
Processes whose clocks are wrong: an hour behind, an hour ahead, ten percent too fast or too slow, thirty seconds back
in the middle of a lease.

The clock of a single worker is faked, a set one by libfaketime, one that drifts by `drifting.py`; the server's is
right, and so is that of the worker beside it.
Promised: no timer fires early by the database's clock, no worker takes a living one's runs, nothing is lost or doubled.
A client whose clock is more than an hour off is told so when it starts a run.

KEDGE_PROOF_CLOCK_SECONDS is how long each clock is wrong (15).
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.proof.chaos.programs import libfaketime
from tests.proof.chaos.watch import number, rows, wait_until
from tests.proof.kit.fleet import fleet
from tests.proof.kit.lanes import setting
from tests.proof.kit.oracle import check
from tests.proof.kit.plugin import Figure

SECONDS = setting("clock_seconds", 15.0)
NAP_S = 0.7
PROGRAMS = "tests.proof.kit.programs:worker"

# A nap begins with the outcome before it, at the earliest.
NAPS = """
    select extract(epoch from at - before)::float8
      from (select at, key, lag(at) over (partition by run_id order by seq) as before from kedge.journal) j
     where key like 'nap%'
"""


class Clock:
    """What a process started now believes; `say` changes it while the process runs."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def say(self, offset: str) -> None:
        self._file.write_text(offset)


@contextmanager
def faked(monkeypatch: pytest.MonkeyPatch, folder: Path, offset: str) -> Generator[Clock]:
    """Processes started inside have this offset, in libfaketime's words."""
    clock = Clock(folder / "clock")
    clock.say(offset)
    with monkeypatch.context() as environment:
        environment.setenv("LD_PRELOAD", str(libfaketime()))
        # Read again each second, not with every look at the clock: that would make the process slow.
        environment.setenv("FAKETIME_TIMESTAMP_FILE", str(folder / "clock"))
        environment.setenv("FAKETIME_CACHE_DURATION", "1")
        # A clock that is set leaves the monotonic one alone.
        environment.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        yield clock


@pytest.mark.chaos
@pytest.mark.parametrize(
    "offset",
    [
        "-3600",
        "+3600",
        "x1.1",
        "x0.9",
        "jump",
    ],
)
def test_a_worker_with_a_wrong_clock_wakes_nobody_early_and_loses_nothing(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: Figure, offset: str
) -> None:
    with fleet(database_url, tmp_path, LEASE="3s", POLL="1s") as processes:
        right, clock = processes.worker(), None
        if offset.startswith("x"):
            wrong = processes.start(["-m", "tests.proof.chaos.drifting", offset[1:], "run", PROGRAMS])
        else:
            with faked(monkeypatch, tmp_path, "+0" if offset == "jump" else offset) as clock:
                wrong = processes.worker()
        wait_until(lambda: number(database_url, "select count(*) from kedge.workers") == 2, "both work")
        load = processes.client(
            rate=15, seconds=SECONDS, mix="nap:3,steps:2,charge:1,event:1,impatient:1", n=2, pause=NAP_S, results=0.2
        )
        if offset == "jump" and clock is not None:
            for _ in range(3):
                time.sleep(SECONDS / 4)
                clock.say("-30")  # of where it was: thirty seconds back, in the middle of whatever goes on
                time.sleep(SECONDS / 12)
                clock.say("+0")
        assert load.wait(timeout=SECONDS + 60) == 0, processes.log(load)
        processes.drain()
        naps = [took_s for (took_s,) in rows(database_url, NAPS)]
        said = processes.log(right) + processes.log(wrong)

    report = check(database_url, tmp_path)
    figure(f"clock {offset}: earliest nap", min(naps), unit="s", goal=NAP_S, at_least=True)
    figure(f"clock {offset}: latest nap", max(naps), unit="s")
    assert min(naps) >= NAP_S
    assert "is dead" not in said
    assert "lease lost" not in said
    assert not report.violations, str(report)
    assert report.counts["crashes"] == 0


START = """
import asyncio, datetime
from kedge_client import AsyncClient
from tests.proof.kit.programs import steps, Work

async def main():
    async with AsyncClient.connect() as client:
        try:
            run = await client.start(steps(Work(1)))
        except Exception as error:
            print(type(error).__name__, error)
        else:
            print("started", run.id)

asyncio.run(main())
"""


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("offset", "answer"), [("-3500", "started"), ("+3500", "started"), ("-3700", "clock"), ("+3700", "clock")]
)
def test_a_client_whose_clock_is_an_hour_off_is_told_so(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: str, answer: str
) -> None:
    monkeypatch.setenv("KEDGE_DATABASE_URL", database_url)
    with faked(monkeypatch, tmp_path, offset):
        done = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, timeout=60, check=False)

    assert answer in done.stdout, done.stdout + done.stderr
    assert number(database_url, "select count(*) from kedge.runs") == (1 if answer == "started" else 0)
