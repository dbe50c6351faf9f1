"""The scenes that are played to their end whatever happens: which workflow, what clients do, what must come of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias
from uuid import UUID

import tests.proof.crash_points.plays as plays
from kedge.refs import WorkflowRef
from kedge_client import AsyncClient


class World(Protocol):
    """What clients see of a case."""

    client: AsyncClient

    async def waits_for(self, run: UUID, name: str) -> None:
        """Return when the run waits for this."""
        ...

    async def is_in(self, run: UUID, state: str) -> None:
        """Return when the run is in this state."""
        ...

    async def has_begun(self, step: str) -> None:
        """Return when the body of a step has begun."""
        ...


Drive: TypeAlias = Callable[[World, UUID], Coroutine[Any, Any, None]]


async def _nothing(stage: World, run: UUID) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Scene:
    """One of them."""

    ref: WorkflowRef[None, Any]
    bodies: Mapping[str, int]
    """Step -> how often its body is executed when nothing happens."""
    effects: frozenset[str] = frozenset()
    """Which of these steps are transactional."""
    drive: Drive = _nothing
    """What clients do meanwhile."""
    status: str = "c"
    name: str = ""
    endless: frozenset[str] = frozenset()
    """Steps that end only by being cancelled: their body may begin once more, or not."""
    mail_ahead: tuple[str, ...] = ()
    """Events that are sent in the transaction of the start."""
    is_first: bool = False
    """The run is there before its worker is: the calls are numbered from the first connection on."""
    is_slow: bool = False
    """It lasts until all that comes with time has come: only such calls meet a fate."""
    farewell: Drive = _nothing
    """Its worker is asked to end when this has come; what clients do then, they do when the next one is there."""
    told: Mapping[str, str] = field(default_factory=dict[str, str])
    """What else the handler answers that it was told: events."""

    @property
    def title(self) -> str:
        return self.name or self.ref.name


def once(*names: str) -> dict[str, int]:
    """Each of these steps once."""
    return dict.fromkeys(names, 1)


async def send_both(stage: World, run: UUID) -> None:
    """Send what is waited for, when it is waited for."""
    for name in ("event", "other"):
        await stage.waits_for(run, name)
        await stage.client.send(plays.go(name, key=name), run=run)


async def send_late(stage: World, run: UUID) -> None:
    """Send when everything has come that comes with time alone."""
    await stage.waits_for(run, "event")
    await asyncio.sleep(_ALL_PERIODS_S)
    await send_both(stage, run)


async def cancel_waiting(stage: World, run: UUID) -> None:
    """Cancel it while it waits."""
    await stage.waits_for(run, "event")
    await stage.client.cancel(run)


async def cancel_working(stage: World, run: UUID) -> None:
    """Cancel it while a body is executed."""
    await stage.has_begun("hang")
    await stage.client.cancel(run)


async def pause_and_resume(stage: World, run: UUID) -> None:
    """Pause it while it waits, resume it, and send what it waits for."""
    await stage.waits_for(run, "event")
    await stage.client.pause(run)
    await stage.is_in(run, "s")
    await stage.client.resume(run)
    await send_both(stage, run)


async def fast_forward(stage: World, run: UUID) -> None:
    """Answer in the place of those who would send."""
    for name in ("event", "other"):
        await stage.waits_for(run, name)
        await stage.client.fast_forward(run, name, wait=name)


_ALL_PERIODS_S: Final = 4.0
_EVENTS: Final = {"event": "event", "other": "other"}
_AROUND: Final = once("before", "between", "after")

SCENES: Final = {
    scene.title: scene
    for scene in (
        Scene(plays.steps, once("one", "two", "three")),
        Scene(plays.parallel, once("a0", "a1", "a2", "b0", "b1", "b2", "last")),
        Scene(plays.charge, once("before", "first", "between", "second"), frozenset({"first", "second"})),
        Scene(plays.charge_sync, once("before", "first", "between", "second"), frozenset({"first", "second"})),
        Scene(plays.event, _AROUND, drive=send_both, told=_EVENTS),
        Scene(plays.event, _AROUND, name="mail ahead", mail_ahead=("event", "other"), told=_EVENTS),
        Scene(plays.impatient, once("before", "after"), told={"late": "late"}),
        Scene(plays.nap, _AROUND),
        Scene(plays.parent, once("before", "beside", "called", "keyed", "left", "right")),
        Scene(plays.flaky, {"before": 1, "fickle": 2, "after": 1}),
        Scene(plays.again, once("before", "after")),
        Scene(plays.poll, {"poll": 2, "after": 1}),
        Scene(plays.race, once("slow", "after"), told={"race": "slow", "event": "none"}),
        Scene(plays.mailer, once("before", "after"), told={"event": "first", "other": "second", "none": "none"}),
        Scene(plays.failing, once("before", "broken", "after"), status="f"),
        Scene(plays.sayings, once("one", "two")),
        Scene(plays.event, once("before"), name="cancel", drive=cancel_waiting, status="x"),
        Scene(
            plays.stuck,
            once("before", "hang"),
            name="cancel in a body",
            drive=cancel_working,
            status="x",
            endless=frozenset({"hang"}),
        ),
        Scene(plays.event, _AROUND, name="pause and resume", drive=pause_and_resume, told=_EVENTS),
        Scene(
            plays.charge,
            once("before", "first", "between", "second"),
            frozenset({"first", "second"}),
            name="start of a worker",
            is_first=True,
        ),
        Scene(plays.event, _AROUND, name="time goes by", drive=send_late, told=_EVENTS, is_slow=True),
        Scene(plays.event, _AROUND, name="fast-forward", drive=fast_forward, told=_EVENTS),
    )
}


async def _is_waiting(stage: World, run: UUID) -> None:
    await stage.waits_for(run, "event")


async def _is_in_a_body(stage: World, run: UUID) -> None:
    await stage.has_begun("hang")


FAREWELLS: Final = {
    scene.title: scene
    for scene in (
        Scene(plays.event, _AROUND, name="end while it waits", farewell=_is_waiting, drive=send_both, told=_EVENTS),
        Scene(
            plays.stuck,
            once("before", "hang"),
            name="end in a body",
            farewell=_is_in_a_body,
            drive=cancel_working,
            status="x",
            endless=frozenset({"hang"}),
        ),
    )
}
"""Those in which the worker is asked to end, while a run is under way."""
