"""
The primary dies and its standby is promoted, again and again under load; clients and workers know both hosts.

With a synchronous standby nothing that was acknowledged is lost. With an asynchronous one only what had not reached it
is lost, and who repeats a lost start with its key gets one run. KEDGE_PROOF_ROUNDS: promotions of each test (7);
KEDGE_PROOF_RATE: starts a second (40).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import psycopg
import pytest

from kedge_client import Client
from kedge_worker._migrator import migrate
from tests.proof.chaos.endless import Clients
from tests.proof.chaos.servers import DEADLINE_S, Pair, pair
from tests.proof.kit.fleet import Fleet, fleet
from tests.proof.kit.journal import Line, read_journals
from tests.proof.kit.lanes import setting
from tests.proof.kit.oracle import check
from tests.proof.kit.plugin import Figure
from tests.proof.kit.programs import Work, charge, steps

pytestmark = pytest.mark.chaos

ROUNDS: Final = int(setting("rounds", 7))
RATE: Final = setting("rate", 40)
WORKERS: Final = 2
POLL_S: Final = 2.0
RUNG_S: Final = POLL_S / 8
"""Half of some runs are done in this time if somebody is rung for them, and not if they wait to be found."""
MIX: Final = "steps:6,parallel:2,event:4,charge:4,nap:1,parent:2,flaky:1"


@contextmanager
def under_load(servers: Pair, folder: Path, *, mix: str = MIX, results: float = 0.1) -> Generator[Fleet]:
    """Workers and a client that goes on for as long as the block; then everything is worked off."""
    migrate(servers.url)
    with fleet(servers.url, folder, LEASE="5s", POLL=f"{POLL_S}s") as crew:
        workers = [crew.worker() for _ in range(WORKERS)]
        clients = Clients(crew, rate=RATE, mix=mix, results=results)
        yield crew
        clients.end()
        crew.drain(180)
        assert [worker.poll() for worker in workers] == [None] * WORKERS, "a worker has ended"
        assert_listeners_moved(servers)
        assert [crew.terminate(worker) for worker in workers] == [0] * WORKERS


@pytest.mark.parametrize("commit", ["on", "remote_apply"])
def test_no_acknowledged_work_is_lost_with_a_synchronous_standby(commit: str, tmp_path: Path, figure: Figure) -> None:
    with pair(synchronous=True, commit=commit) as servers:
        with under_load(servers, tmp_path) as crew:
            for _ in range(ROUNDS):
                wait_for_work(crew)
                crew.journal.write("fault", kind="failover", about="server")
                servers.primary.kill()
                fail_over(servers, crew)
                restore(servers, synchronous=True)

        report = check(servers.url, tmp_path)

    figure_of_recovery(figure, f"synchronous_commit = {commit}", tmp_path)
    assert not report.violations, report
    assert report.counts["start.ok"] > 0


def test_an_asynchronous_standby_loses_its_tail_only_and_repeats_make_no_double(tmp_path: Path, figure: Figure) -> None:
    tails: list[tuple[float, float]] = []
    gaps: list[int] = []
    with pair(synchronous=False) as servers:
        # Without events: a run whose acknowledged event is lost waits for ever, unless its sender repeats it.
        with under_load(servers, tmp_path, mix="steps:6,parallel:2,charge:4,parent:2", results=0) as crew:
            for _ in range(ROUNDS):
                wait_for_work(crew)
                servers.wait_until_streaming()
                since = time.monotonic()
                cut_off(servers)
                time.sleep(0.5)
                gaps.append(wal_gap(servers))
                crew.journal.write("fault", kind="failover", about="server")
                servers.primary.kill()
                tails.append((since, time.monotonic()))
                fail_over(servers, crew)
                restore(servers, synchronous=False)

        lost = lost_starts(servers.url, tmp_path)
        beyond = [line for line in lost if not any(begin <= line["at"] <= end for begin, end in tails)]
        repeat(servers.url, lost)
        with fleet(servers.url, tmp_path, LEASE="5s") as crew:
            crew.worker()
            crew.drain()
        report = check(servers.url, tmp_path, tail_lost=True)

    figure_of_recovery(figure, "asynchronous standby", tmp_path)
    figure("asynchronous standby: starts lost of the tail", len(lost))
    figure("asynchronous standby: WAL not replicated, median", statistics.median(gaps) / 1024, unit="kB")
    assert not beyond, f"lost, though it was replicated: {beyond}"
    assert lost, "the test proves nothing: no tail was lost"
    assert not [one for one in report.violations if not is_about_the_tail(one)], report


def is_about_the_tail(violation: str) -> bool:
    """
    Whether it is what the loss of a tail means: what was executed behind it is executed once more.

    A handler that had come to its end on the old server runs again on the new one, and is told other values.
    """
    return violation.startswith(("I6:", "I7:"))


def test_an_effect_is_never_kept_without_what_it_stands_on(tmp_path: Path) -> None:
    """
    A step's value is acknowledged by the old primary only; the transaction behind it is cut off, and tried again on the
    new primary, which knows the run and its owner but not that value.
    """
    with pair(synchronous=False) as servers:
        migrate(servers.url)
        # Without a listener, which would make the journal's connection notice the failover soon.
        with fleet(servers.url, tmp_path, LEASE="15s", POLL="30s", LISTEN="false") as crew:
            crew.worker()
            with Client.connect(servers.url) as client:
                run = client.start(charge(Work(1, 1.5)))
            wait_for_body(crew, "before")
            servers.wait_until_streaming()  # the start and the claim are there
            cut_off(servers)
            with closing(psycopg.connect(servers.primary.url)) as locking:
                locking.execute("lock table effects in exclusive mode")
                wait_for_body(crew, "t0")
                crew.journal.write("fault", kind="failover", about="server")
                servers.primary.kill()
            fail_over(servers, crew)
            crew.drain()

        with psycopg.connect(servers.url) as conn:
            kept = conn.execute("select key from kedge.journal where run_id = %s and seq > 0 order by seq", (run.id,))
            assert [key for (key,) in kept] == ["before", "t0"]
        assert not check(servers.url, tmp_path, tail_lost=True).violations


# ---- what happens to the servers


def fail_over(servers: Pair, crew: Fleet) -> None:
    """Promote the standby, whose primary is dead."""
    promoted_at = servers.standby.promote()
    servers.switched()
    crew.journal.write("promoted", promoted=promoted_at)


def restore(servers: Pair, *, synchronous: bool) -> None:
    """Let the old primary follow the new one."""
    servers.standby.rewind(servers.primary)
    servers.standby.start()
    servers.wait_until_streaming()
    if synchronous:
        servers.primary.reload(synchronous_standby_names="standby")
        servers.wait_until_synchronous()


def cut_off(servers: Pair) -> None:
    """Let the standby hear nothing more of its primary."""
    servers.standby.reload(primary_conninfo="")
    end = time.monotonic() + DEADLINE_S
    while servers.standby.ask("select 1 from pg_stat_wal_receiver"):
        assert time.monotonic() < end, "it still hears"
        time.sleep(0.02)


def wal_gap(servers: Pair) -> int:
    """Bytes of WAL that the primary has flushed and the standby has not got."""
    (end,) = servers.primary.ask("select pg_current_wal_flush_lsn()::text")[0]
    (gap,) = servers.standby.ask("select %s::pg_lsn - pg_last_wal_receive_lsn()", str(end))[0]
    return int(str(gap))


def wait_for_work(crew: Fleet) -> None:
    """Until the workers have begun some more runs, so that each failover hits work."""
    begun, end = lives(crew), time.monotonic() + DEADLINE_S
    while lives(crew) < begun + 20:
        assert time.monotonic() < end, "no work is done"
        time.sleep(0.05)


def wait_for_body(crew: Fleet, step: str) -> None:
    """Until the body of a step has begun."""
    end = time.monotonic() + DEADLINE_S
    while not any(line["what"] == "body" and line["step"] == step for line in read_journals(crew.folder)):
        assert time.monotonic() < end, f"{step} does not begin"
        time.sleep(0.02)


def lives(crew: Fleet) -> int:
    return sum(line["what"] == "life" for line in read_journals(crew.folder))


# ---- what came of it


def assert_listeners_moved(servers: Pair) -> None:
    """Every worker listens on the present primary, and is rung there: a run does not wait for the poll."""
    with psycopg.connect(servers.url, autocommit=True) as conn:
        listening = conn.execute(
            "select count(*) from pg_stat_activity where application_name = 'kedge listener'"
        ).fetchone()
        assert listening == (WORKERS,)
    with Client.connect(servers.url) as client:
        median_s = statistics.median(_round_trip_s(client) for _ in range(9))
    assert median_s < RUNG_S, f"nobody is rung: {median_s:.2f} s"


def _round_trip_s(client: Client) -> float:
    began = time.monotonic()
    client.start(steps(Work(1))).result(timeout="30s")
    return time.monotonic() - began


def lost_starts(url: str, folder: Path) -> list[Line]:
    """Acknowledged starts of which there is nothing."""
    with psycopg.connect(url, autocommit=True) as conn:
        there = {row[0] for row in conn.execute("select id::text from kedge.all_runs")}
    return [line for line in read_journals(folder) if line["what"] == "start.ok" and line["run"] not in there]


def repeat(url: str, lost: list[Line]) -> None:
    """Start what was lost once more with its key, twice: the second one must find the first."""
    with Client.connect(url) as client:
        for line in lost:
            first = client.start(steps(Work(1), key=line["key"])) if line["workflow"] == "steps" else None
            if first is not None:
                assert first.created
                assert client.start(steps(Work(1), key=line["key"])).id == first.id


def figure_of_recovery(figure: Figure, what: str, folder: Path) -> None:
    """How long after each promotion the first handler began on the new primary."""
    pauses: list[float] = []
    promoted: float | None = None
    for line in read_journals(folder):
        if line["what"] == "promoted":
            promoted = line["promoted"]
        elif line["what"] == "life" and promoted is not None and line["at"] > promoted:
            pauses.append(line["at"] - promoted)
            promoted = None
    figure(f"{what}: promotions", len(pauses), goal=ROUNDS, at_least=True)
    figure(f"{what}: first claim after the promotion, median", statistics.median(pauses), unit="s")
    figure(f"{what}: first claim after the promotion, longest", max(pauses), unit="s", goal=5.0)
