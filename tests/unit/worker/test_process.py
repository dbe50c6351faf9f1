"""A worker's process ends when its work has ended and when its event loop is dead, and never for another reason."""

import subprocess
import sys
import textwrap

import pytest

from kedge_worker._process import STUCK

PRELUDE = """
import asyncio, atexit, sys, threading, time
from kedge_worker import _process
_process._LEFT_BEHIND_S = 0.2

async def stubborn():
    while True:
        try:
            await asyncio.sleep(60)
        except BaseException:
            pass

def traced(frame, event, argument):
    return traced

def looked_at():
    time.sleep(1.5)

atexit.register(print, "ended as usual")
"""


def ending_of(work: str, *, lease_s: float = 0.3) -> tuple[int, str, str]:
    """Run this as the body of a worker's work; answers the exit code and what was said."""
    script = (
        f"{PRELUDE}\nasync def work():\n{textwrap.indent(textwrap.dedent(work), '    ')}\n    return 0\n"
        f"sys.exit(_process.run_as_process(work, lease_s={lease_s}))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stdout, done.stderr


def test_work_that_is_done_leaves_the_process_to_end_as_usual() -> None:
    assert ending_of("await asyncio.sleep(0.01)") == (0, "ended as usual\n", "")


@pytest.mark.parametrize(
    "left",
    [
        "threading.Thread(target=time.sleep, args=(60,)).start()",
        "asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)",
        "task = asyncio.create_task(stubborn()); await asyncio.sleep(0.01)",
    ],
)
def test_nothing_that_is_left_behind_keeps_the_process_alive(left: str) -> None:
    code, _, said = ending_of(left)

    assert code == 0
    assert "something goes on" in said


def test_a_dead_event_loop_ends_the_process_and_says_where_it_is() -> None:
    code, _, said = ending_of("time.sleep(60)")

    assert code == STUCK
    assert "time.sleep(60)" in said or "in work" in said


def test_a_dead_event_loop_ends_the_process_though_nobody_can_write_the_log() -> None:
    code, _, _ = ending_of("import logging; logging.lastResort.acquire(); time.sleep(60)")

    assert code == STUCK


def test_an_exit_in_a_callback_ends_the_process_before_anything_is_given_back() -> None:
    code, said, _ = ending_of(
        """
        try:
            asyncio.get_running_loop().call_soon(sys.exit, 3)
            await asyncio.sleep(60)
        finally:
            print("gave back")
        """
    )

    assert (code, said) == (3, "")


def test_an_event_loop_that_comes_back_in_time_goes_on() -> None:
    assert ending_of("time.sleep(1)", lease_s=2)[0] == 0


def test_a_process_in_which_somebody_debugs_goes_on() -> None:
    assert ending_of("sys.settrace(traced); looked_at(); sys.settrace(None)")[0] == 0
