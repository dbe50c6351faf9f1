"""A workflow whose step fails and hangs; a subprocess runs it as `kedge-worker run tests.scenarios.flaky:worker`."""

import asyncio
import os
from pathlib import Path

from kedge import Retry, WorkflowRef
from kedge_worker import Context, NotYet, Worker, workflow
from tests.scenarios.shop import note_body

flaky = WorkflowRef("flaky", str, str)
patient = WorkflowRef("patient", str, str)


def calls(name: str) -> int:
    """How often a body began, in all processes together."""
    return Path(os.environ["SHOP_BODIES"]).read_text("utf-8").splitlines().count(f"{name} 0")


async def fail_hang_fail_succeed(name: str) -> str:
    """The second call hangs until its worker dies."""
    note_body(name, 0)
    call = calls(name)
    if call == 2:
        await asyncio.Event().wait()
    if call < 4:
        raise OSError(f"call {call}")
    return f"call {call}"


@workflow(flaky)
async def be_flaky(ctx: Context, name: str) -> str:
    """One step with three attempts."""
    return await ctx.step("flaky", fail_hang_fail_succeed, name, retry=Retry(3, initial="10ms"))


async def look(name: str, state: int = 0) -> str | NotYet:
    """The second check hangs until its worker dies; the state counts those that have answered."""
    note_body(name, 0)
    if calls(name) == 2:
        await asyncio.Event().wait()
    return f"{state} checks, {calls(name)} calls" if state == 3 else NotYet(state + 1)


@workflow(patient)
async def be_patient(ctx: Context, name: str) -> str:
    """One poll."""
    return await ctx.poll("patient", look, name, every="100ms", max_attempts=4)


worker = Worker(workflows=(be_flaky, be_patient)) if "KEDGE_DATABASE_URL" in os.environ else None
