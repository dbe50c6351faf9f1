"""A worker process as an application would run it, which also counts what it says to Postgres."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence
from typing import Final
from unittest.mock import patch

from psycopg.pq.abc import PGresult

from benchmarks.drained_process import say_last_words, say_ready_and_wait
from benchmarks.workflows import handle_one_step, handle_ten_steps
from kedge_worker import Worker
from kedge_worker._pipeline import Call, Pipeline

_roundtrip: Final = Pipeline.roundtrip
_counted: Final = {"statements": 0, "round_trips": 0}


async def _counting(self: Pipeline, calls: Sequence[Call], *, timeout_s: float) -> list[PGresult]:
    _counted["statements"] += len(calls)
    _counted["round_trips"] += 1
    return await _roundtrip(self, calls, timeout_s=timeout_s)


def main() -> None:
    url, in_flight = sys.argv[1], int(sys.argv[2])
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    worker = Worker(url, workflows=[handle_one_step, handle_ten_steps], concurrency=in_flight, grace="1s")
    say_ready_and_wait()
    # The one place that all leased statements pass; a microsecond a flush.
    with patch.object(Pipeline, "roundtrip", _counting):
        asyncio.run(worker.run())
    say_last_words(_counted)


if __name__ == "__main__":
    main()
