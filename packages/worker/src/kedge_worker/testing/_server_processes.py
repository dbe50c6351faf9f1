"""All processes of one server at once: to suspend them, to let them run on, to kill them."""

import time
from collections.abc import Callable
from contextlib import suppress

import psutil

AT_REST = frozenset({psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD})


def suspend_server(postmaster: int) -> list[psutil.Process]:
    """Suspend all processes of a server; return them, the first one first, when none of them runs any more."""
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(postmaster)
        first.suspend()
        _wait_while(_runs, [first])
        # From here on it starts no other.
        others = first.children(recursive=True)
        for process in others:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        _wait_while(_runs, others)
        return [first, *others]
    return []


def resume_server(family: list[psutil.Process]) -> None:
    """Let suspended processes run on."""
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.resume()


def kill_server(postmaster: int) -> None:
    """Kill all processes of a server; return when none of them can touch its data."""
    family = suspend_server(postmaster)
    # The first one last: on seeing it dead, the others would say 57P01 to their clients.
    for process in reversed(family):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    # Dead is enough: waiting until they are reaped takes seconds where process 1 is slow to do it.
    _wait_while(_lives, family)


def _runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() not in AT_REST


def _lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def _wait_while(condition: Callable[[psutil.Process], bool], family: list[psutil.Process]) -> None:
    for process in family:
        # A signal is on its way when kill() returns, and nothing says when it has arrived.
        with suppress(psutil.NoSuchProcess):
            while condition(process):
                time.sleep(0.001)
