"""
A worker whose clock is too slow or too fast: `python -m tests.proof.chaos.drifting 0.9 run module:worker`.

All that Python reads of time and waits for is stretched, in every thread: clocks, sleeps, conditions, the event loop.
Not by libfaketime: of a drifting clock it takes CLOCK_MONOTONIC along, but not `sem_clockwait`, by which Python's locks
wait, so that a wait with a limit, such as the lease keeper's between two beats, never ends.
"""

from __future__ import annotations

import selectors
import sys
import threading
import time
from collections.abc import Callable
from typing import Any


def drift(speed: float) -> None:
    """From now on a second of this process takes 1/speed seconds."""

    def stretched(clock: Callable[[], float]) -> Callable[[], float]:
        begin = clock()
        return lambda: begin + (clock() - begin) * speed

    def limited(wait: Callable[..., Any]) -> Callable[..., Any]:
        def wait_so(own: object, timeout: float | None = None) -> object:
            return wait(own, timeout if timeout is None else timeout / speed)

        return wait_so

    def sleep_so(seconds: float) -> None:
        sleep(seconds / speed)

    sleep = time.sleep
    changed: Any = time
    changed.monotonic = stretched(time.monotonic)
    changed.perf_counter = stretched(time.perf_counter)
    changed.time = stretched(time.time)
    changed.sleep = sleep_so
    changed = threading
    changed._time = time.monotonic
    changed.Condition.wait = limited(threading.Condition.wait)
    for kind in (selectors.DefaultSelector, selectors.SelectSelector):
        changed = kind
        changed.select = limited(kind.select)


if __name__ == "__main__":
    drift(float(sys.argv[1]))
    from kedge_worker.__main__ import main

    sys.exit(main(sys.argv[2:]))
