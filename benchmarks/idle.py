"""What a worker does while nothing at all goes on."""

from __future__ import annotations

import time
from typing import Final

from benchmarks.drain import IN_FLIGHT, drainer
from benchmarks.server import BenchServer

# A backend that has gone to sleep reports its last transactions up to ten seconds later.
_SETTLING_S: Final = 11.0


def measure(server: BenchServer, url: str, *, seconds: float) -> dict[str, float | None]:
    """Transactions a second, and percent of a core, of a worker with LISTEN."""
    with server.without_autovacuum(), drainer(url, "worker_process", str(IN_FLIGHT)) as process:
        process.begin()
        time.sleep(_SETTLING_S)
        before, cpu_before = server.read(url), process.cpu_s()
        time.sleep(seconds)
        after, cpu_after = server.read(url), process.cpu_s()
        process.end()
    took = after.at - before.at
    postgres = before.cpu_until(after)
    return {
        "transactions": (after.transactions - before.transactions) / took,
        "python": 100 * (cpu_after - cpu_before) / took,
        "postgres": None if postgres is None else 100 * postgres,
    }
