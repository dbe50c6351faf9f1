"""Lists: any filters together, page by page in both directions, while runs come and go."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any
from uuid import UUID

import psycopg
import pytest

from kedge import WorkflowRef, new_run_id, run_id_time
from kedge_client import Page, RunView
from tests import ends
from tests.twins import AnyClient, Twin

# The longer names begin as the shorter ones do, with signs that sort around the version's.
NAMES = ("order", "order-x", "order!", "orders")
REFS = [
    *(WorkflowRef(name) for name in NAMES),
    *(WorkflowRef(name, version=version) for name, version in product(NAMES, ("1", "10", "2"))),
]
STATUSES = ("pending", "running", "waiting", "paused", "completed", "failed", "cancelled")
RESOURCES = (None, "alice", "bob")
TAGS = ("red", "green", "blue")
NOW = datetime.now(UTC).replace(microsecond=0)
MOMENTS = [NOW + timedelta(minutes=minutes) for minutes in (-20, -10, 0, 10, 20)]


async def pages(twin: Twin, client: AnyClient, limit: int, **filters: Any) -> list[Page[RunView]]:
    """Every page, to the oldest run."""
    found = [await twin.do(client.list_runs, limit=limit, **filters)]
    while cursor := found[-1].next_cursor:
        found.append(await twin.do(client.list_runs, limit=limit, cursor=cursor, **filters))
    return found


async def pages_back(
    twin: Twin, client: AnyClient, limit: int, last: Page[RunView], **filters: Any
) -> list[Page[RunView]]:
    """Every page, from one back to the newest run."""
    found = [last]
    while cursor := found[-1].prev_cursor:
        found.append(await twin.do(client.list_runs, limit=limit, cursor=cursor, **filters))
    return found


def ids(found: Sequence[Page[RunView]]) -> list[UUID]:
    return [view.id for page in found for view in page.items]


def made(conn: psycopg.Connection, dice: random.Random, count: int, parents: Sequence[UUID]) -> None:
    """Runs of all sorts, ten minutes around now, several in each millisecond."""
    for _ in range(count):
        minutes = dice.randint(-15, 15)
        millisecond = int((NOW + timedelta(minutes=minutes)).timestamp() * 1000)
        run = UUID(int=(millisecond << 80) | 7 << 76 | 2 << 62 | dice.getrandbits(62))
        conn.execute(
            "select kedge.start_run_v1(%s, %s, 'default', 0, '\\x016e756c6c', null, null, null, 'return', %s, %s, null,"
            " %s, false)",
            (
                run,
                dice.choice(REFS).qualified_name,
                dice.choice(RESOURCES),
                3600.0 if dice.random() < 0.2 else None,
                dice.sample(TAGS, dice.randint(0, 3)),
            ),
        )
        if dice.random() < 0.4:
            conn.execute("update kedge.runs set parent_id = %s where id = %s", (dice.choice(parents), run))
        end = dice.random()
        if end < 0.2:
            ends.complete(conn, run)
        elif end < 0.4:
            ends.fail(conn, run, ValueError("no"))
        elif end < 0.6:
            ends.cancel(conn, run)
        elif end < 0.7:
            ends.own(conn, run)
        elif end < 0.8:
            conn.execute("update kedge.runs set state = 's' where id = %s and state = 'p'", (run,))


def fits(view: RunView, tags: set[str], filters: dict[str, Any]) -> bool:
    """What the filters mean, said without a database."""
    name, _, version = str(filters.get("workflow") or "").partition("@")
    status = filters.get("status")
    started = run_id_time(view.id)
    return (
        (not name or view.workflow == name)
        and (not version or view.version == version)
        and (status is None or view.status in ([status] if isinstance(status, str) else status))
        and filters.get("resource") in {None, view.resource}
        and filters.get("parent") in {None, view.parent_id}
        and (filters.get("tag") is None or filters["tag"] in tags)
        and (filters.get("since") is None or started >= filters["since"])
        and (filters.get("until") is None or started < filters["until"])
    )


async def test_filters_together_find_what_fits_all_of_them_in_both_directions(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    dice = random.Random(7)
    parents = [new_run_id() for _ in range(2)]
    made(conn, dice, 150, parents)
    everything = {view.id: view for view in (await twin.do(client.list_runs, limit=200)).items}
    tags = {run: set(view.tags) for run, view in everything.items()}
    newest_first = sorted(everything, reverse=True)
    choices: dict[str, list[Any]] = {
        "workflow": [None, None, *NAMES, "order@1", "order@10", "orders@3"],
        "status": [None, None, *STATUSES, ["pending", "failed"], ["completed", "waiting"], ["running", "paused"], []],
        "resource": [None, None, "alice", "carol"],
        "parent": [None, None, None, *parents],
        "tag": [None, None, "red", "pink"],
        "since": [None, None, *MOMENTS],
        "until": [None, None, *MOMENTS],
    }
    met: set[int] = set()

    for _ in range(120):
        filters = {name: value for name, values in choices.items() if (value := dice.choice(values)) is not None}
        wanted = [run for run in newest_first if fits(everything[run], tags[run], filters)]
        limit = dice.choice([1, 3, 7, 200])

        found = await pages(twin, client, limit, **filters)
        back = await pages_back(twin, client, limit, found[-1], **filters)

        assert ids(found) == wanted, filters
        assert sorted(ids(back), reverse=True) == wanted, filters
        assert all(len(page.items) == limit for page in found[:-1])
        if "parent" not in filters:
            assert await twin.do(client.count_runs, **filters) == len(wanted)
        met.add(len(wanted))

    # The dice have found empty lists, short ones and long ones.
    assert {0, 1, 2} < met
    assert max(met) > 20


@pytest.mark.parametrize("backward", [False, True])
async def test_runs_that_end_while_they_are_listed_are_met_once(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, *, backward: bool
) -> None:
    ref = WorkflowRef("order")
    runs = [run.id for run in await twin.do(client.start_many, [ref() for _ in range(30)])]
    dice = random.Random(3)
    alive = list(runs)
    found: list[UUID] = []
    page = await twin.do(client.list_runs, limit=4, workflow="order")
    if backward:
        page = (await pages(twin, client, 4, workflow="order"))[-1]

    while True:
        items = [view.id for view in page.items]
        found += items[::-1] if backward else items
        cursor = page.prev_cursor if backward else page.next_cursor
        if cursor is None:
            break
        for run in dice.sample(alive, 5) if len(alive) > 5 else ():
            alive.remove(run)
            ends.complete(conn, run)
        page = await twin.do(client.list_runs, limit=4, workflow="order", cursor=cursor)

    assert found == sorted(runs, reverse=not backward)
    assert len(alive) < 10


async def test_a_list_of_one_status_loses_nobody_who_keeps_it(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    ref = WorkflowRef("order")
    runs = sorted((run.id for run in await twin.do(client.start_many, [ref() for _ in range(20)])), reverse=True)
    first = await twin.do(client.list_runs, limit=5, status="pending")

    # One that has been listed, the one that the cursor names, and two that have not.
    for run in (runs[1], runs[4], runs[6], runs[10]):
        ends.complete(conn, run)
    rest = await twin.do(client.list_runs, limit=50, status="pending", cursor=first.next_cursor)

    assert ids([first]) == runs[:5]
    assert ids([rest]) == [run for run in runs[5:] if run not in {runs[6], runs[10]}]


async def test_a_run_never_stands_in_a_page_twice_nor_in_none_when_it_ends_just_then(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    """A look is one statement: it sees a run either live or ended."""
    ref = WorkflowRef("order")
    runs = sorted((run.id for run in await twin.do(client.start_many, [ref() for _ in range(3)])), reverse=True)

    with conn.transaction():
        ends.complete(conn, runs[1])
        before = await twin.do(client.list_runs)
    after = await twin.do(client.list_runs)

    assert [(view.id, view.status) for view in before.items] == [(run, "pending") for run in runs]
    assert [view.status for view in after.items] == ["pending", "completed", "pending"]
    assert ids([after]) == runs
