"""Encrypted payloads: every place round trips, in both clients, and nothing of it stands in the tables."""

from collections.abc import Generator
from typing import Any

import psycopg
import pytest

from kedge import InputConflictError, RunFailedError, RunNotActiveError
from kedge.encryption import AesGcmCodec
from kedge_client import AsyncClient, Client, RunHandle
from kedge_worker import Worker
from kedge_worker.testing import Clock
from tests.proof.security.vault import (
    CANARY,
    NEW,
    OLD,
    WORKFLOWS,
    Declined,
    Vault,
    approved,
    child,
    codec,
    expected,
    failing,
    news,
    places_with,
    plain_sync,
    rich,
    secret,
    vault,
)


@pytest.fixture
def play(database_url: str, clock: Clock) -> Generator[Vault]:
    with vault(database_url, clock) as one:
        yield one


def comparable(told: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in told.items() if key not in ("broken", "bad")}


def sealed_cells(play: Vault) -> int:
    ((count,),) = play.rows("select count(*) from kedge.journal where substr(value, 1, 1) = '\\x03'")
    return int(count)


async def test_every_place_round_trips_and_nothing_of_it_stands_in_the_tables(play: Vault) -> None:
    run = await play.play_rich()

    told = run.result(timeout=0)
    assert comparable(told) == expected()
    assert f"{CANARY} of an error" in told["broken"]
    assert f"{CANARY} of bad child" in told["bad"]
    assert sealed_cells(play) > 20
    assert places_with(play.url, [CANARY]) == []


async def test_the_search_for_what_is_in_clear_finds_it_where_nothing_is_encrypted(
    database_url: str, clock: Clock
) -> None:
    with vault(database_url, clock, codec=None) as play:
        run = play.client.start(rich(secret("input")))
        await play.work_through(keys=None)
        run.send(approved(secret("event")))

        found = {(table, column) for table, column, _ in places_with(play.url, [CANARY])}
    assert found >= {
        ("failures", "error"),
        ("finished", "error"),
        ("finished", "output"),
        ("inbox", "payload"),
        ("journal", "value"),
        ("run_log", "fields"),
        ("run_log", "message"),
    }


async def test_mail_that_waits_and_polls_that_go_on_are_encrypted_in_the_tables(play: Vault) -> None:
    run = play.client.start(rich(secret("input")))
    for _ in range(4):  # through the attempts, to the poll's first look
        await play.work()
        if play.rows("select 1 from kedge.waits where kind = 'p' and substr(state, 1, 1) = '\\x03'"):
            break
        play.clock.advance("2s")
    else:
        raise AssertionError("the run has not come to its poll")
    run.send(approved(secret("event")))
    play.client.send(news(secret("topic")), topic="world")
    assert play.rows("select 1 from kedge.inbox where payload is not null")
    assert places_with(play.url, [CANARY]) == []

    await play.work()
    assert play.rows("select 1 from kedge.events where payload <> ''")
    assert places_with(play.url, [CANARY]) == []


async def test_a_run_is_seen_in_clear_by_who_has_the_key(play: Vault) -> None:
    run = await play.play_rich()

    view = play.client.get(run)
    assert (view.input, view.error) == (secret("input"), None)
    assert view.output == run.result(timeout=0)
    steps = {step.key: step for step in play.client.steps(run)}
    assert steps["first"].value == secret("step")
    assert steps["checked"].value == secret("argument")
    assert steps["event"].value == secret("event")
    assert steps["child"].value == secret("child")
    assert [one.error.message for one in steps["flaky"].attempts] == [f"{CANARY} of an attempt"] * 2
    broken = steps["breaks"].error
    assert broken is not None
    assert broken.message == f"{CANARY} of an error"
    said = list(play.client.watch(run))
    (line,) = [event for event in said if event.kind == "log"]
    assert (line.message, dict(line.fields or {})) == (f"{CANARY} of a line", secret("field"))
    told = {event.step.key: event.step.value for event in said if event.step is not None}
    assert told["insert"] == secret("transaction")


async def test_the_async_client_seals_and_opens_as_its_twin_does(play: Vault) -> None:
    async with AsyncClient.connect(play.url, codec=codec()) as client:
        run = await client.start(rich(secret("input")))
        await play.work_through()
        await run.send(approved(secret("event")))
        await play.work()
        await client.send(news(secret("topic")), topic="world")
        await play.work()
        assert await client.fast_forward(run, secret("fast-forward"), wait="skipped")
        await play.work()

        assert comparable(await run.result(timeout=0)) == expected()
        assert (await client.get(run)).input == secret("input")
        assert {step.key: step.value for step in await client.steps(run)}["first"] == secret("step")
        lines = [event.message async for event in client.watch(run) if event.kind == "log"]
        assert lines == [f"{CANARY} of a line"]
    assert places_with(play.url, [CANARY]) == []


async def test_starts_of_every_form_are_encrypted(play: Vault) -> None:
    many = play.client.start_many([child(secret("one")), child(secret("two"), key="two")])
    with psycopg.connect(play.url) as conn:
        inside = play.client.start(child(secret("three")), conn=conn)
        inside_many = play.client.start_many([child(secret("four"))], conn=conn)
        statement = play.client.start_statement(child(secret("five"), key="five"))
        sql, values = statement.psycopg()
        conn.execute(sql.encode(), values)
    assert places_with(play.url, [CANARY]) == []
    await play.work()

    runs: list[RunHandle[dict[str, Any]]] = [*many, inside, *inside_many, statement.handle(play.client)]
    assert [run.result(timeout=0)["place"] for run in runs] == ["one", "two", "three", "four", "five"]


async def test_what_fails_comes_back_as_itself_and_goes_on_when_it_is_retried(play: Vault) -> None:
    run = play.client.start(failing(secret("input")))
    await play.work_through()

    with pytest.raises(Declined) as declined:
        run.result(timeout=0)
    assert declined.value.word == f"{CANARY} of the end"
    cause = declined.value.__cause__
    assert isinstance(cause, RunFailedError)
    assert cause.error.message
    error = play.client.get(run).error
    assert error is not None
    assert CANARY in str(error.data)
    assert [CANARY in str(one.error.data) for one in play.client.get(run).attempts] == [True]
    (listed,) = play.client.list_runs(workflow=failing).items
    assert listed.error == error
    assert places_with(play.url, [CANARY]) == []

    play.client.retry(run)
    await play.work_through()
    assert play.client.get(run).status == "failed"
    attempts = [CANARY in str(one.error.data) for one in play.client.get(run).attempts]
    assert attempts == [True] * len(attempts)
    assert len(attempts) > 1
    broken = [step for step in play.client.steps(run) if step.key == "breaks"]
    assert all(CANARY in one.error.message for one in broken[0].attempts)
    assert places_with(play.url, [CANARY]) == []


async def test_a_rerun_reads_what_it_takes_over_and_so_does_a_rerun_of_it(play: Vault) -> None:
    run = await play.play_rich()
    again = run.rerun_from("event")
    await play.work()
    again.send(approved(secret("second event")))
    await play.work()
    play.client.send(news(secret("topic")), topic="world")
    await play.work()
    again.fast_forward(secret("fast-forward"), wait="skipped")
    await play.work()
    assert comparable(again.result(timeout=0)) == {**expected(), "event": secret("second event")}
    assert {step.key: step.value for step in play.client.steps(again)}["first"] == secret("step")
    assert play.client.get(again).input == secret("input")
    told = {event.step.key: event.step.value for event in play.client.watch(again) if event.step is not None}
    assert (told["first"], told["event"]) == (secret("step"), secret("second event"))

    third = again.rerun_from("skipped")
    await play.work()
    third.fast_forward(secret("third"), wait="skipped")
    await play.work()
    told = third.result(timeout=0)
    assert (told["event"], told["skipped"]) == (secret("second event"), secret("third"))
    assert {step.key: step.value for step in play.client.steps(third)}["event"] == secret("second event")
    assert places_with(play.url, [CANARY]) == []


async def test_sync_handlers_are_encrypted_too(play: Vault) -> None:
    run = play.client.start(plain_sync(secret("input")))
    await play.work()
    run.send(approved(secret("event"), key="once"))
    run.send(approved(secret("another"), key="once"))
    await play.work()

    assert run.result(timeout=0) == {
        "input": secret("input"),
        "step": secret("sync step"),
        "event": secret("event"),
    }
    assert places_with(play.url, [CANARY]) == []
    with pytest.raises(RunNotActiveError):
        run.send(approved(secret("late")))
    assert places_with(play.url, [CANARY]) == []


async def test_a_worker_that_serves_takes_mail_in_memory(play: Vault) -> None:
    async with (
        Worker(play.url, workflows=WORKFLOWS, codec=codec()),
        AsyncClient.connect(play.url, codec=codec()) as client,
    ):
        run = await client.start(plain_sync(secret("input")))
        await run.send(approved(secret("event")))
        parent = await client.start(child(secret("other")))

        assert (await run.result(timeout="20s"))["event"] == secret("event")
        assert await parent.result(timeout="20s") == secret("other")


# ---- keys of starts


async def test_equal_keys_with_equal_inputs_are_one_run_though_each_is_encrypted_anew(play: Vault) -> None:
    first = play.client.start(child(secret("order"), key="order:1"))

    assert play.client.start(child(secret("order"), key="order:1")).id == first.id
    with pytest.raises(InputConflictError):
        play.client.start(child(secret("another"), key="order:1"))


async def test_the_hash_of_an_input_cannot_be_guessed_from_the_table(play: Vault) -> None:
    request = child(secret("order"), key="order:1")
    play.client.start(request)

    ((stored,),) = play.rows("select hash from kedge.run_keys")
    assert len(stored) == len(request.key_hash)
    assert request.key_hash[:8] not in stored
    assert request.key_hash[8:] not in stored


async def test_across_a_rotation_a_key_is_compared_alone_unless_the_old_digest_key_is_named(play: Vault) -> None:
    first = play.client.start(child(secret("order"), key="order:1"))
    both = {"old": OLD, "new": NEW}

    with Client.connect(play.url, codec=AesGcmCodec(both, current="new")) as rotated:
        assert rotated.start(child(secret("order"), key="order:1")).id == first.id
        assert rotated.start(child(secret("another"), key="order:1")).id == first.id
    with Client.connect(play.url, codec=AesGcmCodec(both, current="new", digest_key="old")) as careful:
        assert careful.start(child(secret("order"), key="order:1")).id == first.id
        with pytest.raises(InputConflictError):
            careful.start(child(secret("another"), key="order:1"))
