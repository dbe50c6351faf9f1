"""Whatever handlers and steps answer, raise or give: each run ends or waits with a reason; innocents notice nothing."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

import psycopg

from kedge.errors import PayloadError
from kedge.wire import decode, encode
from kedge_client import Client
from kedge_worker import Worker
from tests.proof.fuzz import plays
from tests.proof.fuzz.plays import (
    GIVEN_PLACES,
    GOT,
    HANDLERS,
    MADE,
    NOT_KEPT_PLACES,
    PLACES,
    SYNC_PLACES,
    Play,
    innocent_ref,
    play_ref,
    sync_play_ref,
)
from tests.proof.fuzz.zoo_errors import ERRORS
from tests.proof.fuzz.zoo_values import VALUES, is_same
from tests.proof.kit.lanes import lane, thinned
from tests.proof.kit.plugin import Figure

PATIENCE_S: Final = 120.0

is_full: Final = lane() == "full"

TYPES: Final[dict[str, Any]] = {"handler": Any, "typed step": plays.ANYTHING}
"""Where a type says what becomes of a value; elsewhere it comes back as it was, or is refused."""


class Case(NamedTuple):
    """Something that happens at some place."""

    place: str
    name: str
    make: Callable[[], Any]
    raises: bool = False
    is_sync: bool = False

    def __str__(self) -> str:
        return f"{'sync ' if self.is_sync else ''}{self.place} {'raises' if self.raises else 'gives'} {self.name}"


CASES: Final = [
    *(
        Case(place, name, make, raises=True)
        for place in PLACES
        for name, make in ERRORS.items()
        # asyncio's own group asks each error for its class, and reports to the event loop what comes of that.
        if place != "task group" or name not in {"class raises", "all raises"}
    ),
    *(Case(place, name, make, raises=True, is_sync=True) for place in SYNC_PLACES for name, make in ERRORS.items()),
    *(Case(place, name, make) for place in PLACES for name, make in VALUES.items()),
    *(Case(place, name, make, is_sync=True) for place in SYNC_PLACES for name, make in VALUES.items()),
    *(Case(place, name, make) for place in GIVEN_PLACES for name, make in VALUES.items()),
]


async def play(url: str, cases: Sequence[Case]) -> dict[Case, UUID]:
    """Start them all, an innocent beside each tenth, and execute what can be executed, in one worker."""
    MADE.clear()
    MADE.update(enumerate(case.make for case in cases))
    GOT.clear()
    with Client.connect(url) as client:
        requests: list[Any] = []
        for number, case in enumerate(cases):
            ref = sync_play_ref if case.is_sync else play_ref
            requests.append(ref(Play(case.place, number, case.raises)))
            if number % 10 == 0:
                requests.append(innocent_ref(number))
        handles = client.start_many(requests)
        async with asyncio.timeout(PATIENCE_S):
            await Worker(url, workflows=HANDLERS, lease="20s").run_until_idle()
        innocents = [handle for handle in handles if handle.ref == innocent_ref]
        for number, handle in enumerate(innocents):
            assert handle.result("0s") == number * 10 + 1
        return dict(zip(cases, (h.id for h in handles if h.ref != innocent_ref), strict=True))


def wrong_with(case: Case, run: UUID, status: str, reason: str | None, client: Client) -> str | None:
    """Say what is not as it must be of a run that has been played."""
    view = client.get(run)
    if status in {"pending", "running"} or (status == "waiting" and not reason and not view.waits):
        return f"{case}: {status}, {reason}"
    if case.raises or case.place in GIVEN_PLACES:
        return None
    if case.place in NOT_KEPT_PLACES:
        return None if status == "completed" else f"{case}: {status}"
    try:
        kept = decode(encode(case.make(), where="it"), TYPES.get(case.place, Any), where="it")
    except PayloadError:
        return None if status == "failed" else f"{case}: {status} with what cannot be kept"
    if status != "completed":
        return None
    got: Any = view.output if case.place == "handler" else GOT[run]
    got = got[1] if case.place == "first" else got[0] if case.place == "map" else got
    if not is_same(got, kept):
        return f"{case}: {got!r:.100} came of {kept!r:.100}"
    if case.place not in TYPES and not is_same(case.make(), got):
        return f"{case}: {got!r:.100} came of {case.make()!r:.100}, with no type that says so"
    return None


async def test_each_run_ends_whatever_its_code_does(database_url: str, figure: Figure) -> None:
    cases = thinned(CASES, of=20)
    wrong: list[str] = []
    # One place at a time: what hangs is found sooner, and what is large is let go of.
    for _, some in itertools.groupby(cases, lambda case: (case.place, case.is_sync, case.raises) if is_full else None):
        batch = list(some)
        runs = await play(database_url, batch)
        with psycopg.connect(database_url) as conn:
            ids = list(runs.values())
            rows = conn.execute("select id, status, reason from kedge.all_runs where id = any (%s)", (ids,)).fetchall()
        found = {run: (status, reason) for run, status, reason in rows}
        with Client.connect(database_url) as client:
            wrong += [said for case, run in runs.items() if (said := wrong_with(case, run, *found[run], client))]

    figure("cases of handlers and steps", len(cases), goal=len(CASES) // 21, at_least=True)
    assert wrong == []


async def test_the_check_sees_a_run_that_is_stuck_and_a_value_that_has_changed(database_url: str) -> None:
    cases = [Case("async step", "seven", lambda: 7), Case("handler", "eight", lambda: 8)]
    runs = await play(database_url, cases)
    with Client.connect(database_url) as client:
        step, stuck = runs[cases[0]], client.start(play_ref(Play("handler", 1))).id

        assert wrong_with(cases[0], step, "completed", None, client) is None
        assert wrong_with(cases[0], step, "running", None, client) is not None
        assert wrong_with(cases[1], stuck, "pending", None, client) is not None
        GOT[step] = 7.0
        assert wrong_with(cases[0], step, "completed", None, client) is not None
        client.cancel(stuck)
