"""A worker process as `kedge-worker run` makes it, which also counts what it says to Postgres."""

from __future__ import annotations

import functools
import logging
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from psycopg.pq.abc import PGresult

from benchmarks.drained_process import say_last_words, say_ready_and_wait
from benchmarks.peers.with_kedge import handle_event, handle_fan, handle_one, handle_ten
from benchmarks.workflows import handle_holding, handle_large, handle_one_step, handle_shelved, handle_ten_steps
from kedge_worker import Worker
from kedge_worker._pipeline import Call, Pipeline
from kedge_worker._process import run_as_process

HANDLERS: Final = {
    handler.ref.name: handler
    for handler in (
        handle_one_step,
        handle_ten_steps,
        handle_holding,
        handle_large,
        handle_shelved,
        handle_one,
        handle_ten,
        handle_event,
        handle_fan,
    )
}
# Each registered workflow is a lane that a claim looks into: no more of them than are measured.
STEPS_ONLY: Final = ("one-step", "ten-steps")

_roundtrip: Final = Pipeline.roundtrip
_counted: Final = {"statements": 0, "round_trips": 0}


async def _counting(self: Pipeline, calls: Sequence[Call], **options: Any) -> list[PGresult]:
    _counted["statements"] += len(calls)
    _counted["round_trips"] += 1
    return await _roundtrip(self, calls, **options)


def peak_kib() -> int:
    """The most memory that this process has had; getrusage would remember its parent's as well."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return next(int(line.split()[1]) for line in status.read_text("utf-8").splitlines() if line.startswith("VmHWM"))


async def _work(worker: Worker) -> int:
    await worker.run()
    return 0


def main() -> None:
    url, in_flight, *names = sys.argv[1:]
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    workflows = [HANDLERS[name] for name in names or STEPS_ONLY]
    worker = Worker(url, workflows=workflows, concurrency=int(in_flight), grace="1s")
    say_ready_and_wait()
    # The one place that all leased statements pass; a microsecond a flush.
    with patch.object(Pipeline, "roundtrip", _counting):
        run_as_process(functools.partial(_work, worker), lease_s=worker.settings.lease_s)
    say_last_words({**_counted, "peak_kib": peak_kib()})


if __name__ == "__main__":
    main()
