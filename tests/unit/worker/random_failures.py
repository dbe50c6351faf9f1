"""Random handlers whose steps fail, time out and are tried again, and which poll."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from kedge.errors import StepFailedError, WaitTimeoutError
from kedge.refs import WorkflowRef
from kedge.retry import Retry
from kedge_worker._context import Context
from kedge_worker._not_yet import NotYet
from kedge_worker._workflows import workflow
from tests.unit.worker.random_handlers import Plan, echo, make_plan, perform, some_rounds, world

_FOR_EVER: Final = Retry(None, initial=0)


def make_failing(seed: int) -> Plan:
    """A plan in which every second leaf or so fails or polls."""
    return _with_failures(make_plan(seed), random.Random(~seed))


def _with_failures(plan: Plan, rng: random.Random) -> Plan:
    if plan.parts:
        return replace(plan, parts=tuple(_with_failures(part, rng) for part in plan.parts))
    return plan if rng.random() < 0.4 else Plan(rng.choice(tuple(FAILING_LEAVES)), plan.name)


async def _flaky(value: str) -> str:
    await echo(value)
    if world.rng.random() < 0.5:
        raise OSError("for a moment")
    return value


async def _flaky_insert(_conn: object, value: str) -> str:
    return await _flaky(value)


async def _doomed(value: str) -> str:
    await echo(value)
    raise OSError(value)


async def _look(value: str, state: int = 0) -> str | NotYet:
    await echo(value)
    if world.rng.random() < 0.2:
        raise OSError("for a moment")
    return value if world.rng.random() < 0.5 else NotYet(state + 1)


async def _never(_: str) -> str | NotYet:
    world.bodies += 1
    await some_rounds()
    return NotYet()


async def _try_again(ctx: Context, name: str, path: str) -> str:
    return await ctx.step(name, _flaky, path, retry=_FOR_EVER)


async def _try_transaction_again(ctx: Context, name: str, path: str) -> str:
    return await ctx.transaction(name, _flaky_insert, path, retry=_FOR_EVER)


async def _give_up(ctx: Context, name: str, path: str) -> str:
    try:
        return await ctx.step(name, _doomed, path, retry=Retry(3, initial=0))
    except StepFailedError as error:
        return error.error.message


async def _timed(ctx: Context, name: str, path: str) -> str:
    return await ctx.step(name, _flaky, path, timeout="1m", retry=_FOR_EVER)


async def _poll(ctx: Context, name: str, path: str) -> str:
    return await ctx.poll(name, _look, path, every=0, retry=_FOR_EVER, timeout="1h")


async def _poll_in_vain(ctx: Context, name: str, path: str) -> str:
    try:
        return await ctx.poll(name, _never, path, every=0, max_attempts=3)
    except WaitTimeoutError:
        return path


FAILING_LEAVES: Final[dict[str, Callable[[Context, str, str], Awaitable[str]]]] = {
    "try again": _try_again,
    "try transaction again": _try_transaction_again,
    "give up": _give_up,
    "timed": _timed,
    "poll": _poll,
    "poll in vain": _poll_in_vain,
}
"""To be set in LEAVES by who uses them."""


@workflow(WorkflowRef("random-failures", int, str))
async def random_failing(ctx: Context, seed: int) -> str:
    """Perform the plan of that seed, twice over."""
    first = await perform(ctx, make_failing(seed), "r")
    return first + await perform(ctx, make_failing(seed + 1), "s")
