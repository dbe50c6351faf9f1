"""
What a start and its result need at the least: LISTEN, NOTIFY and three commits between two processes, and nothing else.

The client inserts and rings; the other side claims, writes step and end, and rings back. The rings are statements of
their own behind the commits, as kedge's are.
"""

from __future__ import annotations

import sys
import time
from typing import Final
from uuid import UUID

import psycopg

from benchmarks import limit_loop
from benchmarks.drain import drainer
from benchmarks.drained_process import say_ready_and_wait
from benchmarks.percentiles import percentiles
from kedge.ids import new_run_id

_INSERT: Final = "insert into run (id, name, input) values (%s, 'w', %s)"
_CLAIM: Final = "update run set status = 1, worker = 1, updated = now() where id = %s"
_WRITE: Final = """
    with kept as (insert into step values (%(id)s, 0, 's', %(output)s))
    update run set status = 2, output = %(output)s, updated = now() where id = %(id)s
"""
_RING: Final = "select pg_notify(%s, %s)"
_PATIENCE_S: Final = 20.0
_VALUE: Final = b'{"ok":true}'


def measure(url: str, *, samples: int, pause_s: float) -> dict[str, float]:
    """From the insert to the ring that says that its row is written, one at a time, with pauses."""
    limit_loop.make_tables(url)
    took: list[float] = []
    with drainer(url, "ping_pong") as process, psycopg.connect(url, autocommit=True) as conn:
        conn.execute("listen ping")
        process.begin()
        _wait(conn)  # the other side listens
        for _ in range(samples):
            time.sleep(pause_s)
            begun = time.perf_counter()
            run = new_run_id()
            conn.execute(_INSERT, (run, _VALUE))
            conn.execute(_RING, ("pong", str(run)))
            assert _wait(conn) == str(run)
            took.append(time.perf_counter() - begun)
    return percentiles(took)


def _wait(conn: psycopg.Connection, timeout_s: float | None = _PATIENCE_S) -> str:
    # One, and out: while its iterator runs, the connection can do nothing else.
    for heard in conn.notifies(timeout=timeout_s, stop_after=1):
        return heard.payload
    raise RuntimeError("the other side is silent")


def answer(url: str) -> None:
    """Be the other side, until the process is ended."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("listen pong")
        conn.execute(_RING, ("ping", "here"))
        while True:
            run = UUID(_wait(conn, timeout_s=None))
            conn.execute(_CLAIM, (run,))
            conn.execute(_WRITE, {"id": run, "output": _VALUE})
            conn.execute(_RING, ("ping", str(run)))


def main() -> None:
    say_ready_and_wait()
    answer(sys.argv[1])


if __name__ == "__main__":
    main()
