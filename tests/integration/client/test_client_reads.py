"""What a client sees: views, lists by page, counts, steps, cancels; and what a scoped client does not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from kedge import InvalidOptionError, InvalidRunStateError, RunNotFoundError, WorkflowRef, new_run_id
from tests import ends
from tests.integration.client.orders import NIGHTLY, NOTIFY, ORDER, PROCESS, RECEIPT, CardDeclined, Order
from tests.twins import AnyClient, Twin

MISSING = UUID("0198c0de-0000-7000-8000-000000000000")


async def test_an_ended_run_is_seen_with_what_it_returned(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    run = await twin.do(client.start, PROCESS(ORDER))
    ends.complete(conn, run.id, RECEIPT)

    view = await twin.do(client.get, run)

    assert view.status == "completed"
    assert view.output == {"order_id": "o-1", "charge_id": "ch-1"}
    assert view.ended_at is not None
    assert view.since == view.ended_at
    assert view.error is None


async def test_a_failed_run_is_seen_with_its_error(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    run = await twin.do(client.start, PROCESS(ORDER))
    ends.fail(conn, run.id, CardDeclined(code="expired"))

    view = await twin.do(client.get, run)

    assert view.status == "failed"
    assert view.error is not None
    assert view.error.kind.endswith("CardDeclined")
    assert view.error.data == {"code": "expired"}


async def test_a_view_names_the_run_and_shows_no_payload(twin: Twin, client: AnyClient) -> None:
    run = await twin.do(client.start, NOTIFY("a secret"))

    view = await twin.do(run.view)

    assert repr(view) == f"<RunView notify {run.id} pending>"


async def test_every_way_to_name_a_run_will_do(twin: Twin, client: AnyClient) -> None:
    run = await twin.do(client.start, PROCESS(ORDER))
    view = await twin.do(client.get, run)

    for name in (run, view, run.id, str(run.id), str(run.id).upper()):
        assert (await twin.do(client.get, name)).id == run.id
        assert await twin.do(client.steps, name) == []
        assert await twin.do(client.cancel, name) == "pending"


async def test_what_does_not_exist_is_not_found(twin: Twin, client: AnyClient) -> None:
    handle = client.handle(PROCESS, MISSING)
    for call in (client.get, client.steps, client.cancel):
        with pytest.raises(RunNotFoundError) as caught:
            await twin.do(call, MISSING)
        assert caught.value.run_id == MISSING
    for method in (handle.view, handle.status, handle.cancel, handle.result):
        with pytest.raises(RunNotFoundError):
            await twin.do(method)


async def test_the_last_run_of_a_workflow_is_its_newest(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    first = await twin.do(client.start, PROCESS(ORDER, resource="a"))
    second = await twin.do(client.start, PROCESS(Order("o-2"), resource="b"))
    await twin.do(client.start, NOTIFY("later"))
    ends.complete(conn, second.id, RECEIPT)

    newest = await twin.do(client.last, PROCESS)
    of_resource = await twin.do(client.last, PROCESS, resource="a")

    assert newest is not None
    assert (newest.id, newest.input) == (second.id, {"order_id": "o-2", "cents": 100})
    assert newest.output == {"order_id": "o-1", "charge_id": "ch-1"}
    assert of_resource is not None
    assert of_resource.id == first.id
    assert await twin.do(client.last, NIGHTLY) is None
    assert await twin.do(client.last, PROCESS, resource="c") is None


# ---- lists


async def started(twin: Twin, client: AnyClient, count: int, **options: Any) -> list[UUID]:
    """Start runs, and return their ids, newest first."""
    runs = await twin.do(client.start_many, [PROCESS(Order(f"o-{i}"), **options) for i in range(count)])
    return sorted((run.id for run in runs), reverse=True)


async def test_pages_hold_every_run_once_newest_first(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    ids = await started(twin, client, 10)
    for ended in ids[::3]:
        ends.complete(conn, ended)

    pages = [await twin.do(client.list_runs, limit=4)]
    while cursor := pages[-1].next_cursor:
        pages.append(await twin.do(client.list_runs, limit=4, cursor=cursor))

    assert [[view.id for view in page.items] for page in pages] == [ids[:4], ids[4:8], ids[8:]]
    assert pages[0].prev_cursor is None
    assert [view.id for view in await twin.listed(client.iter_runs())] == ids


async def test_pages_can_be_walked_back(twin: Twin, client: AnyClient) -> None:
    ids = await started(twin, client, 7)
    first = await twin.do(client.list_runs, limit=3)
    second = await twin.do(client.list_runs, limit=3, cursor=first.next_cursor)
    third = await twin.do(client.list_runs, limit=3, cursor=second.next_cursor)

    back = await twin.do(client.list_runs, limit=3, cursor=third.prev_cursor)
    front = await twin.do(client.list_runs, limit=3, cursor=back.prev_cursor)

    assert [view.id for view in third.items] == ids[6:]
    assert back == second
    assert front.items == first.items
    assert (front.prev_cursor, front.next_cursor) == (None, first.next_cursor)


async def test_a_page_that_fits_exactly_has_no_next_one(twin: Twin, client: AnyClient) -> None:
    await started(twin, client, 4)

    page = await twin.do(client.list_runs, limit=4)

    assert len(page.items) == 4
    assert (page.next_cursor, page.prev_cursor) == (None, None)


async def test_newer_runs_appear_behind_the_previous_cursor_of_a_first_page(twin: Twin, client: AnyClient) -> None:
    ids = await started(twin, client, 2)
    second = await twin.do(client.list_runs, limit=1, cursor=(await twin.do(client.list_runs, limit=1)).next_cursor)
    newer = await started(twin, client, 2)

    before = await twin.do(client.list_runs, limit=50, cursor=second.prev_cursor)

    assert [view.id for view in before.items] == [*newer, ids[0]]


async def test_pages_stay_the_same_while_runs_of_the_same_millisecond_are_inserted(
    twin: Twin, client: AnyClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = new_run_id().int >> 76 << 76
    numbers = iter([500, 200, 800, 100, 900, 300, 700])
    monkeypatch.setattr("kedge_client._requests.new_run_id", lambda: UUID(int=base | next(numbers)))
    await twin.do(client.start_many, [PROCESS(ORDER) for _ in range(5)])

    first = await twin.do(client.list_runs, limit=2)
    await twin.do(client.start_many, [PROCESS(ORDER) for _ in range(2)])
    second = await twin.do(client.list_runs, limit=2, cursor=first.next_cursor)
    third = await twin.do(client.list_runs, limit=2, cursor=second.next_cursor)

    seen = [[view.id.int - base for view in page.items] for page in (first, second, third)]
    assert seen == [[900, 800], [700, 500], [300, 200]]


async def test_filters_find_what_they_name(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    plain = await twin.do(client.start, PROCESS(ORDER))
    tagged = await twin.do(client.start, PROCESS(ORDER, tags=["urgent", "b"]))
    owned = await twin.do(client.start, PROCESS(ORDER, resource="r"))
    delayed = await twin.do(client.start, NOTIFY("x", delay="1h"))
    version = await twin.do(client.start, NIGHTLY())
    ends.complete(conn, plain.id)
    ends.cancel(conn, owned.id)
    nightly = WorkflowRef.untyped("nightly")

    async def found(**filters: Any) -> set[UUID]:
        return {view.id for view in (await twin.do(client.list_runs, **filters)).items}

    assert await found(workflow=PROCESS) == {plain.id, tagged.id, owned.id}
    assert await found(workflow="notify") == {delayed.id}
    assert (
        await found(workflow=NIGHTLY)
        == await found(workflow=nightly)
        == await found(workflow="nightly@2")
        == {version.id}
    )
    assert await found(workflow="nightly@3") == set()
    assert await found(tag="urgent") == {tagged.id}
    assert await found(tag="URGENT") == set()
    assert await found(resource="r") == {owned.id}
    assert await found(status="waiting") == {delayed.id}
    assert await found(status=["completed", "cancelled"]) == {plain.id, owned.id}
    assert await found(status=[]) == set()
    assert await found(workflow=PROCESS, status="pending", tag="b") == {tagged.id}
    assert await found(parent=plain) == set()
    now = datetime.now(UTC)
    assert len(await found(since=now - timedelta(hours=1))) == 5
    assert await found(since=now + timedelta(hours=1)) == set()
    assert await found(until=now - timedelta(hours=1)) == set()
    assert len(await found(until=now + timedelta(hours=1))) == 5


async def test_counts_agree_with_lists(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    ids = await started(twin, client, 5, tags=["t"], resource="r")
    await twin.do(client.start, NIGHTLY())
    ends.complete(conn, ids[0])
    soon = datetime.now(UTC) + timedelta(hours=1)

    assert await twin.do(client.count_runs) == 6
    assert await twin.do(client.count_runs, workflow=PROCESS) == 5
    assert await twin.do(client.count_runs, workflow="nightly") == 1
    assert await twin.do(client.count_runs, status="pending", resource="r") == 4
    assert await twin.do(client.count_runs, status=["completed", "pending"], tag="t") == 5
    assert await twin.do(client.count_runs, since=soon) == 0
    assert await twin.do(client.count_runs, until=soon) == 6


async def test_lists_carry_no_payloads(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    run = await twin.do(client.start, PROCESS(ORDER))
    ends.complete(conn, run.id, RECEIPT)

    (view,) = (await twin.do(client.list_runs)).items

    assert (view.input, view.output) == (None, None)
    assert view.status == "completed"


async def test_a_cursor_of_another_list_is_refused(twin: Twin, client: AnyClient) -> None:
    await started(twin, client, 3)
    page = await twin.do(client.list_runs, limit=1)

    with pytest.raises(InvalidOptionError, match="other filters"):
        await twin.do(client.list_runs, limit=1, status="pending", cursor=page.next_cursor)

    bigger = await twin.do(client.list_runs, limit=2, cursor=page.next_cursor)
    assert len(bigger.items) == 2


# ---- cancel


async def test_a_cancel_is_kept_as_a_request_until_somebody_sorts_it(twin: Twin, client: AnyClient) -> None:
    run = await twin.do(client.start, PROCESS(ORDER))

    first = await twin.do(run.cancel, reason="no stock")
    second = await twin.do(run.cancel)

    assert (first, second) == ("pending", "pending")
    assert (await twin.do(run.view)).request == "cancelled"


async def test_a_sorted_cancel_ends_the_run_with_its_reason(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    run = await twin.do(client.start, PROCESS(ORDER))
    await twin.do(client.cancel, run, reason="no stock")

    conn.execute("select * from kedge.sort_inbox(500)")

    view = await twin.do(run.view)
    assert (view.status, view.reason, view.request) == ("cancelled", "no stock", None)
    assert await twin.do(run.cancel) == "cancelled"


async def test_what_has_completed_or_failed_cannot_be_cancelled(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    completed = await twin.do(client.start, PROCESS(ORDER))
    failed = await twin.do(client.start, PROCESS(ORDER))
    ends.complete(conn, completed.id)
    ends.fail(conn, failed.id, ValueError("no"))

    for run, status in ((completed, "completed"), (failed, "failed")):
        with pytest.raises(InvalidRunStateError) as caught:
            await twin.do(client.cancel, run)
        assert (caught.value.status, caught.value.action) == (status, "cancel")


# ---- scopes


async def test_a_scoped_client_sees_what_is_of_its_resource(twin: Twin, client: AnyClient) -> None:
    alice, bob = client.scoped("alice"), client.scoped("bob")
    mine = await twin.do(alice.start, PROCESS(ORDER))
    await twin.do(bob.start_many, [PROCESS(ORDER), PROCESS(ORDER)])

    assert (await twin.do(alice.get, mine)).resource == "alice"
    assert [view.id for view in (await twin.do(alice.list_runs)).items] == [mine.id]
    assert [view.id for view in await twin.listed(alice.iter_runs())] == [mine.id]
    assert await twin.do(alice.count_runs) == 1
    assert await twin.do(bob.count_runs) == 2
    last = await twin.do(alice.last, PROCESS)
    assert last is not None
    assert last.id == mine.id
    assert await twin.do(client.count_runs) == 3


async def test_what_is_of_another_resource_looks_exactly_like_what_does_not_exist(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    bob = client.scoped("bob")
    of_alice = await twin.do(client.start, PROCESS(ORDER, resource="alice"))
    of_nobody = await twin.do(client.start, PROCESS(ORDER))
    ended = await twin.do(client.start, PROCESS(ORDER, resource="alice"))
    ends.complete(conn, ended.id, RECEIPT)

    async def seen(run_id: UUID) -> list[str]:
        texts: list[str] = []
        handle = bob.handle(PROCESS, run_id)
        for call in (
            twin.do(bob.get, run_id),
            twin.do(bob.steps, run_id),
            twin.do(bob.cancel, run_id),
            twin.do(bob.result, PROCESS, run_id, timeout=0),
            twin.do(handle.view),
            twin.do(handle.status),
            twin.do(handle.result),
            twin.do(handle.cancel),
        ):
            with pytest.raises(RunNotFoundError) as caught:
                await call
            texts.append(str(caught.value).replace(str(run_id), "<id>"))
        return texts

    missing = await seen(MISSING)

    for run in (of_alice, of_nobody, ended):
        assert await seen(run.id) == missing
    assert await twin.do(bob.count_runs, resource="alice") == 0
    assert (await twin.do(bob.list_runs, resource="alice")).items == []
    assert await twin.listed(bob.iter_runs(resource="alice")) == []
    assert await twin.do(bob.last, PROCESS, resource="alice") is None
    assert conn.execute("select count(*) from kedge.inbox").fetchone() == (0,)


async def test_a_scoped_client_starts_for_its_resource_only(twin: Twin, client: AnyClient) -> None:
    alice = client.scoped("alice")

    run = await twin.do(alice.start, PROCESS(ORDER, resource="alice"))
    statement = alice.start_statement(PROCESS(ORDER))

    assert (await twin.do(run.view)).resource == "alice"
    assert statement.psycopg()[1]["resource"] == "alice"
    for start in (alice.start, alice.start_statement):
        with pytest.raises(InvalidOptionError, match="another resource"):
            await twin.do(start, PROCESS(ORDER, resource="bob"))
    with pytest.raises(InvalidOptionError, match="another resource"):
        await twin.do(alice.start_many, [PROCESS(ORDER), PROCESS(ORDER, resource="bob")])
    assert await twin.do(client.count_runs) == 1


async def test_a_scope_cannot_be_left(twin: Twin, client: AnyClient) -> None:
    alice = client.scoped("alice")

    assert await twin.do(alice.scoped("alice").count_runs) == 0
    with pytest.raises(InvalidOptionError, match="scoped to another"):
        alice.scoped("bob")


async def test_handles_of_a_scoped_client_stay_scoped(twin: Twin, client: AnyClient) -> None:
    alice = client.scoped("alice")
    of_bob = await twin.do(client.start, PROCESS(ORDER, resource="bob"))

    with pytest.raises(RunNotFoundError):
        await twin.do(alice.handle(PROCESS, of_bob.id).view)


async def test_closing_a_scoped_view_closes_no_client(twin: Twin, client: AnyClient) -> None:
    alice = client.scoped("alice")

    await twin.close(alice)

    assert (await twin.do(alice.start, PROCESS(ORDER))).created
    assert await twin.do(client.count_runs) == 1
