"""A process that another one has started goes when that one does, whatever they have said to each other before."""

import select
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager

import pytest

SCRIPT = """
import asyncio, sys
from kedge_worker._child_process import Parent

async def until_the_parent_goes(parent):
    gone = asyncio.Event()
    parent.when_gone(gone.set)
    parent.say_that_we_work()
    await gone.wait()

parent = Parent()
if sys.argv[1] == "late":
    parent._gone.wait()
asyncio.run(until_the_parent_goes(parent))
print("gone", repr(sys.stdin.read()))
"""


@contextmanager
def child(how: str) -> Generator[tuple[subprocess.Popen[str], socket.socket]]:
    """The child and its parent's end of what is between them."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-c", SCRIPT, how]
        process = subprocess.Popen(command, stdin=theirs.fileno(), stdout=subprocess.PIPE, text=True)
        with process:
            theirs.close()
            try:
                yield process, ours
            finally:
                process.kill()


@pytest.mark.parametrize("is_heard", [True, False])
def test_a_child_hears_that_its_parent_is_gone_even_if_that_never_heard_the_child(is_heard: bool) -> None:
    with child("in time") as (process, ours):
        assert select.select([ours], [], [], 30)[0] == [ours]
        if is_heard:
            assert ours.recv(10) == b"."

        ours.close()

        assert process.communicate(timeout=30)[0] == "gone ''\n"


def test_a_child_that_begins_to_listen_when_its_parent_is_gone_hears_it_too() -> None:
    with child("late") as (process, ours):
        ours.close()

        assert process.communicate(timeout=30)[0] == "gone ''\n"
