"""
Handlers that do what no handler should, and innocent ones beside them.

A subprocess has them from `tests.proof.chaos.hostile:worker`; bodies are noted in the file that KEDGE_PROOF_BODIES
names. KEDGE_PROOF_MEMORY limits the address space of the process, in MiB beyond what it has at its start.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from kedge import WorkflowRef
from kedge_worker import Context, SyncContext, Worker, workflow


class Harm(msgspec.Struct, frozen=True):
    """What a handler does, and for how long where that can be said."""

    how: str
    seconds: float = 0.0


hostile = WorkflowRef("hostile", Harm, str)
hostile_sync = WorkflowRef("hostile-sync", Harm, str)
innocent = WorkflowRef("innocent", str, str)
nap = WorkflowRef("nap", float, str)

FOR_EVER_S: Final = 1e9
_MIB: Final = 1024 * 1024


def note(what: str) -> None:
    """Say that something began: outside of the database, in one write that a death cannot tear."""
    file = os.open(os.environ["KEDGE_PROOF_BODIES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, f"{what}\n".encode())
    finally:
        os.close(file)


def place() -> str:
    """Where this process executes its runs: beside others, or alone."""
    return "alone" if "solo" in sys.argv else "among others"


# ---- what ends by itself


def block(seconds: float) -> None:
    """Block the loop; the interpreter's lock is free."""
    time.sleep(seconds)


def spin(seconds: float) -> None:
    """Compute; the interpreter hands its lock around."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def hold_the_lock(seconds: float) -> None:
    """A C function that keeps the interpreter's lock: no thread of the process runs meanwhile."""
    ctypes.PyDLL(None).usleep(ctypes.c_uint(int(seconds * 1e6)))


def recurse(_: float) -> None:
    """Without an end."""
    recurse(_)


def write_much(_: float) -> None:
    """Ten megabytes of stderr."""
    for _number in range(10):
        sys.stderr.write("x" * _MIB + "\n")


def leak_threads(seconds: float) -> None:
    """Two hundred threads that a process waits for at its end."""
    for _ in range(200):
        threading.Thread(target=time.sleep, args=(seconds,)).start()


def take_memory(_: float) -> None:
    """More than there is."""
    hoard: list[bytearray] = []
    while True:
        hoard.append(bytearray(16 * _MIB))


# ---- what ends the process


def leave(_: float) -> NoReturn:
    """As a script does; for asyncio, no ordinary error."""
    sys.exit(3)


def leave_at_once(_: float) -> NoReturn:
    """Without a word."""
    os._exit(3)


def abort(_: float) -> NoReturn:
    """As a C library does that has found its memory damaged."""
    os.abort()


def crash(_: float) -> None:
    """SIGSEGV."""
    ctypes.string_at(1)


HARMS: Final[dict[str, Callable[[float], None]]] = {
    "block": block,
    "spin": spin,
    "hold the lock": hold_the_lock,
    "recurse": recurse,
    "write much": write_much,
    "leak threads": leak_threads,
    "take memory": take_memory,
    "leave": leave,
    "leave at once": leave_at_once,
    "abort": abort,
    "crash": crash,
}


# ---- what does not let itself be stopped


async def swallow(seconds: float) -> None:
    """Catch every cancellation."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            await asyncio.sleep(1)
        except BaseException:  # noqa: BLE001
            continue


async def never_finish(seconds: float) -> None:
    """A `finally` without an end."""
    try:
        await asyncio.sleep(seconds)
    finally:
        await swallow(seconds)


async def hide_in_thread(seconds: float) -> None:
    """In a thread that is not kedge's."""
    await asyncio.to_thread(time.sleep, seconds)


async def leave_in_task(_: float) -> None:
    """`sys.exit` in a task of the handler's own."""

    async def go() -> None:
        sys.exit(3)

    await asyncio.create_task(go())


async def leave_in_callback(_: float) -> None:
    """`sys.exit` where no handler's frame is on the stack."""
    asyncio.get_running_loop().call_soon(sys.exit, 3)
    await asyncio.sleep(60)


ASYNC_HARMS: Final = {
    "swallow": swallow,
    "never finish": never_finish,
    "hide in thread": hide_in_thread,
    "leave in task": leave_in_task,
    "leave in callback": leave_in_callback,
}


@workflow(hostile)
async def do_harm(ctx: Context, harm: Harm) -> str:
    """Two steps, and the harm between them."""
    await ctx.step("before", live, harm.how, "before", 0.0)
    note(f"{harm.how} {place()}")
    if harm.how in ASYNC_HARMS:
        await ASYNC_HARMS[harm.how](harm.seconds)
    else:
        HARMS[harm.how](harm.seconds)
    await ctx.step("after", live, harm.how, "after", 0.0)
    return harm.how


@workflow(hostile_sync)
def do_harm_in_thread(ctx: SyncContext, harm: Harm) -> str:
    """The same from a thread."""
    ctx.step("before", note, f"before {harm.how}")
    note(f"{harm.how} {place()}")
    HARMS[harm.how](harm.seconds)
    ctx.step("after", note, f"after {harm.how}")
    return harm.how


async def live(whose: str, which: str, seconds: float) -> str:
    """A step's body."""
    note(f"body {whose} {which}")
    await asyncio.sleep(seconds)
    return which


@workflow(innocent)
async def be_innocent(ctx: Context, name: str) -> str:
    """Some steps, one after the other."""
    note(f"life {name}")
    for which in ("a", "b", "c"):
        await ctx.step(which, live, name, which, 0.1)
    return name


@workflow(nap)
async def take_a_nap(ctx: Context, seconds: float) -> str:
    """A step that takes so long, and a step behind it."""
    run = str(ctx.run_id)
    await ctx.step("nap", live, run, "nap", seconds)
    return await ctx.step("wake", live, run, "wake", 0.0)


def _limit_memory() -> None:
    if limit := os.environ.get("KEDGE_PROOF_MEMORY"):
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
        most = pages * resource.getpagesize() + int(limit) * _MIB
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


ALL: Final = (do_harm, do_harm_in_thread, be_innocent, take_a_nap)
if "KEDGE_DATABASE_URL" in os.environ:
    _limit_memory()
    worker = Worker(workflows=ALL)
