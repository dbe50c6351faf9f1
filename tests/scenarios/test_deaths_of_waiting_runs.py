"""Processes are killed, frozen, stopped while their runs wait: each event is read once and in order, none is lost."""

import random
import signal
import time

import psycopg
import pytest

from kedge_client import Client
from tests.scenarios.crew import crew
from tests.scenarios.waiters import came, collect, collect_sync, rang

EVENTS = 30
TARGET = "tests.scenarios.waiters:worker"


@pytest.mark.parametrize("listen", ["true", "false"])
def test_events_of_runs_whose_workers_die_are_read_once_and_in_order(
    database_url: str, conn: psycopg.Connection, listen: str
) -> None:
    chance = random.Random(listen)
    with crew(database_url, LISTEN=listen, GRACE="0.2s") as workers, Client.connect(database_url) as client:
        processes = [workers.start(TARGET) for _ in range(3)]
        runs = client.start_many([*[collect(EVENTS)] * 8, *[collect_sync(EVENTS)] * 4])
        frozen = None
        for number in range(EVENTS):
            for run in runs:
                run.send(came(number, key=f"came-{number}"))
                if chance.random() < 0.1:
                    run.send(came(number, key=f"came-{number}"))
                if chance.random() < 0.2:
                    run.send(rang(number))
            time.sleep(chance.random() * 0.1)
            if number % 8 == 3:
                killed = processes.pop(0)
                workers.end(killed, chance.choice([signal.SIGKILL, signal.SIGTERM]))
                processes.append(workers.start(TARGET))
            if number == 10:
                frozen = processes.pop(0)
                frozen.send_signal(signal.SIGSTOP)
            if number == 25 and frozen is not None:
                frozen.send_signal(signal.SIGCONT)

        for run in runs:
            assert run.result(timeout="60s") == list(range(EVENTS))
        assert conn.execute("select count(*) from kedge.events where slot = 'e:came'").fetchone() == (12 * EVENTS,)
        assert conn.execute("select count(*) from kedge.waits").fetchone() == (0,)
        assert conn.execute("select * from kedge.check_invariants(true)").fetchall() == []
