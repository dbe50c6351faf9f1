"""
Handlers that block, spin, crash and do not let go, with innocent ones beside them.

Two workers (a supervisor starts a new process for each that ends), two hostile runs and a stream of innocent ones.
Promised: innocents complete, each as often executed as the crashes around it explain, and none is charged with an end
of its worker for good; what only blocks for less than its lease executes once; what ends its process, or holds it for
longer than the lease keeper has patience, fails after two crashes among others and three alone, the documented number.

What a blocked event loop costs is said by `test_a_loop_that_is_blocked_for_ever...`: the lease keeper beats for two
leases, the third lets the lease lapse, then the process ends itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from kedge import RunCrashedError, RunFailedError
from kedge_client import Client, RunHandle
from kedge_worker._process import STUCK
from tests.proof.chaos.hostile import FOR_EVER_S, Harm, hostile, hostile_sync, innocent
from tests.proof.chaos.watch import PATIENCE_S, number, quantile, rows, wait_until
from tests.proof.kit.lanes import setting
from tests.proof.kit.plugin import Figure

LEASE_S: Final = setting("lease", 2.0)
INNOCENTS: Final = int(setting("innocents", 20))
LIVES_OF_POISON: Final = 5
"""Two among others, three alone."""


class Supervisor:
    """Keeps so many workers going, as whatever starts services does."""

    def __init__(self, url: str, folder: Path, *, workers: int, **settings: str) -> None:
        self._folder = folder
        self._environment = {
            **os.environ,
            "KEDGE_DATABASE_URL": url,
            "KEDGE_PROOF_BODIES": str(folder / "bodies"),
            **{f"KEDGE_{name}": value for name, value in settings.items()},
        }
        self._stop = threading.Event()
        self._wanted = workers
        self._processes: list[subprocess.Popen[bytes]] = []
        self.codes: list[int] = []
        """How processes have ended that nobody asked to."""
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def bodies(self) -> Counter[str]:
        """What handlers and bodies have noted, and how often."""
        file = self._folder / "bodies"
        return Counter(file.read_text("utf-8").splitlines() if file.exists() else ())

    def log(self) -> str:
        """What all have said, without the flood that is part of the harm."""
        texts = [path.read_text("utf-8", "replace") for path in sorted(self._folder.glob("log*"))]
        return "\n".join(line[:300] for text in texts for line in text.splitlines()[-40:])

    def close(self) -> None:
        """End all."""
        self._stop.set()
        self._thread.join()
        for process in self._processes:
            process.kill()
            process.wait()

    def _run(self) -> None:
        started = 0
        while not self._stop.is_set():
            for process in list(self._processes):
                if (code := process.poll()) is not None:
                    self.codes.append(code)
                    self._processes.remove(process)
            while len(self._processes) < self._wanted:
                with open(self._folder / f"log{started:02}", "wb") as log:
                    command = [sys.executable, "-m", "kedge_worker", "run", "tests.proof.chaos.hostile:worker"]
                    self._processes.append(subprocess.Popen(command, env=self._environment, stdout=log, stderr=log))
                started += 1
            self._stop.wait(0.1)


@contextmanager
def supervised(url: str, folder: Path, *, workers: int = 2, **settings: str) -> Generator[Supervisor]:
    """Workers with short leases, replaced when they end."""
    made = Supervisor(url, folder, workers=workers, **{"LEASE": f"{LEASE_S}s", "POLL": "1s", "GRACE": "1s", **settings})
    try:
        yield made
    except BaseException as error:
        error.add_note(f"ends: {made.codes}\n{made.log()}")
        raise
    finally:
        made.close()


def innocents(client: Client, supervisor: Supervisor, until: list[RunHandle[str]]) -> list[float]:
    """Innocent runs, one group after the other, as long as these live; answers how long each took."""
    took: list[float] = []
    for turn in range(1000):
        begin = time.monotonic()
        runs = client.start_many([innocent(f"i{turn}.{n}") for n in range(INNOCENTS)])
        for run in runs:
            run.result(timeout=PATIENCE_S)
            took.append(time.monotonic() - begin)
        if all(client.get(run).status in ("completed", "failed") for run in until):
            return took
    raise AssertionError("the hostile runs have not ended")


def assert_innocents_were_executed_as_promised(url: str, supervisor: Supervisor) -> None:
    bodies = supervisor.bodies()
    charged = rows(url, "select status::text, crashes, attempt from kedge.finished where workflow = 'innocent'")
    assert all(status == "c" and attempt == 0 for status, _, attempt in charged), charged
    begun = {name.split()[1]: count for name, count in bodies.items() if name.startswith("life i")}
    for name, count in bodies.items():
        if name.startswith("body i"):
            assert count <= begun[name.split()[1]], (name, count, begun[name.split()[1]])


@pytest.mark.chaos
@pytest.mark.parametrize("how", ["leave at once", "abort", "crash", "leave in callback"])
def test_who_ends_its_process_fails_alone(database_url: str, tmp_path: Path, figure: Figure, how: str) -> None:
    with supervised(database_url, tmp_path) as workers, Client.connect(database_url) as client:
        wait_until(lambda: number(database_url, "select count(*) from kedge.workers") == 2, "both work")
        undisturbed = innocents(client, workers, [])
        poison = client.start_many([hostile(Harm(how)) for _ in range(2)])

        disturbed = innocents(client, workers, poison)

        for run in poison:
            with pytest.raises(RunCrashedError):
                run.result(timeout=PATIENCE_S)
            assert client.get(run).crashes == LIVES_OF_POISON
        assert_innocents_were_executed_as_promised(database_url, workers)
        bodies = workers.bodies()
        # One death hits both, and one behind a kept outcome begins the count anew.
        assert 2 <= bodies[f"{how} among others"] <= 2 * 3
        assert bodies[f"{how} alone"] == 2 * 3
    figure(f"innocents beside {how!r}: median", quantile(disturbed, 0.5), unit="s")
    figure(f"innocents beside {how!r}: p99", quantile(disturbed, 0.99), unit="s", goal=2 * quantile(undisturbed, 0.99))


@pytest.mark.chaos
@pytest.mark.parametrize("how", ["block", "spin"])
def test_a_loop_that_is_blocked_for_ever_ends_its_process_and_fails_its_run_alone(
    database_url: str, tmp_path: Path, figure: Figure, how: str
) -> None:
    with supervised(database_url, tmp_path) as workers, Client.connect(database_url) as client:
        undisturbed = innocents(client, workers, [])
        poison = client.start_many([hostile(Harm(how, FOR_EVER_S / 1e3)) for _ in range(2)])

        disturbed = innocents(client, workers, poison)

        for run in poison:
            with pytest.raises(RunCrashedError):
                run.result(timeout=PATIENCE_S)
        assert_innocents_were_executed_as_promised(database_url, workers)
        assert set(workers.codes) == {STUCK}
    figure(
        f"innocents beside {how!r} for ever: p99",
        quantile(disturbed, 0.99),
        unit="s",
        goal=2 * quantile(undisturbed, 0.99),
    )


@pytest.mark.chaos
@pytest.mark.parametrize("how", ["block", "spin", "hold the lock"])
def test_who_holds_the_loop_for_less_than_the_patience_executes_once(
    database_url: str, tmp_path: Path, how: str
) -> None:
    # Who holds the interpreter's lock stops the lease keeper as well.
    seconds = 0.6 * LEASE_S if how == "hold the lock" else 1.6 * LEASE_S
    with supervised(database_url, tmp_path) as workers, Client.connect(database_url) as client:
        runs = client.start_many([hostile(Harm(how, seconds)), *(innocent(f"i{n}") for n in range(INNOCENTS))])

        for run in runs:
            run.result(timeout=PATIENCE_S)

        assert number(database_url, "select max(epoch) from kedge.finished") == 1
        assert set(workers.bodies().values()) == {1}
        assert not workers.codes


@pytest.mark.chaos
def test_a_loop_that_is_blocked_for_five_leases_loses_its_runs_and_fails_none_of_the_innocents(
    database_url: str, tmp_path: Path
) -> None:
    with supervised(database_url, tmp_path) as workers, Client.connect(database_url) as client:
        poison = client.start_many([hostile(Harm("block", 5 * LEASE_S)) for _ in range(2)])

        innocents(client, workers, poison)

        assert_innocents_were_executed_as_promised(database_url, workers)
        # Longer than a worker may be silent: that is a death of it, also where the run is alone.
        assert [client.get(run).status for run in poison] == ["failed"] * 2


@pytest.mark.chaos
@pytest.mark.parametrize("how", ["swallow", "never finish", "hide in thread"])
def test_who_cannot_be_cancelled_is_cancelled_all_the_same(database_url: str, tmp_path: Path, how: str) -> None:
    with supervised(database_url, tmp_path) as workers, Client.connect(database_url) as client:
        poison = client.start_many([hostile(Harm(how, 3600.0)) for _ in range(2)])
        wait_until(lambda: workers.bodies()[f"{how} among others"] == 2, "both do harm")

        for run in poison:
            run.cancel()

        wait_until(lambda: all(client.get(run).status == "cancelled" for run in poison), "both are cancelled")
        innocents(client, workers, poison[:0])
        assert_innocents_were_executed_as_promised(database_url, workers)
        assert set(workers.bodies().values()) == {1, 2}
        assert not workers.codes


@pytest.mark.chaos
@pytest.mark.parametrize("how", ["leave", "leave in task", "recurse"])
def test_what_looks_like_an_end_is_only_a_failure(database_url: str, tmp_path: Path, how: str) -> None:
    with supervised(database_url, tmp_path) as workers, Client.connect(database_url) as client:
        poison = client.start_many(
            [ref(Harm(how)) for ref in (hostile, hostile_sync)[: 1 if how == "leave in task" else 2]]
        )

        innocents(client, workers, poison)

        for run in poison:
            with pytest.raises(RunFailedError):
                run.result(timeout=PATIENCE_S)
            assert client.get(run).crashes == 0
        assert not workers.codes
        assert_innocents_were_executed_as_promised(database_url, workers)


@pytest.mark.chaos
def test_a_handler_that_takes_all_memory_fails_and_its_worker_lives_or_is_replaced(
    database_url: str, tmp_path: Path
) -> None:
    with (
        supervised(database_url, tmp_path, PROOF_MEMORY="512") as workers,
        Client.connect(database_url) as client,
    ):
        poison = client.start_many([hostile(Harm("take memory")), hostile_sync(Harm("take memory"))])

        innocents(client, workers, poison)

        assert [client.get(run).status for run in poison] == ["failed"] * 2
        assert_innocents_were_executed_as_promised(database_url, workers)


@pytest.mark.chaos
@pytest.mark.parametrize("how", ["leak threads", "write much"])
def test_what_leaves_much_behind_completes_once(database_url: str, tmp_path: Path, how: str) -> None:
    with supervised(database_url, tmp_path) as workers, Client.connect(database_url) as client:
        runs = client.start_many([ref(Harm(how, 30.0)) for ref in (hostile, hostile_sync)])

        innocents(client, workers, runs)

        assert [run.result(timeout=0) for run in runs] == [how, how]
        assert number(database_url, "select max(epoch) from kedge.finished") == 1
        assert not workers.codes
