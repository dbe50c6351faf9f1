"""Events between runs, and to whoever waits for a topic."""

from collections.abc import Generator
from typing import Any
from uuid import UUID

import psycopg
import pytest

from kedge import EventRef, InvalidOptionError
from kedge_worker import Context, SyncContext
from kedge_worker.testing import Clock
from tests.scenarios.stage import Stage, handled, stage

greeting = EventRef("greeting", str)


@pytest.fixture
def play(database_url: str) -> Generator[Stage]:
    with stage(database_url) as one:
        yield one


async def listener(ctx: Context) -> str:
    return await ctx.wait_for("hello", greeting)


async def test_a_run_sends_to_another_run_once_however_often_it_is_replayed(play: Stage, clock: Clock) -> None:
    async def collector(ctx: Context) -> list[Any]:
        first = await ctx.wait_for("one", greeting)
        return [first, await ctx.wait_for("two", greeting, timeout="1 day", default=None)]

    async def sender(ctx: Context) -> str:
        to = (await ctx.wait_for("who", EventRef("who", str)))[:36]
        await ctx.send("greet", greeting("hello"), run=to)
        await ctx.sleep("nap", "1h")
        return "sent"

    (collect, made_collector), (send, made_sender) = handled(collector, name="collect"), handled(sender, name="send")
    play.cast(made_collector, made_sender)
    collecting = await play.play(collect())
    sending = await play.play(send())
    sending.send(EventRef("who", str)(str(collecting.id)))
    await play.go_on()
    clock.advance("2h")
    await play.go_on()
    assert sending.result(timeout=0) == "sent"
    assert "greet sent completed" in play.kinds(sending)

    clock.advance("1 day")
    await play.go_on()
    assert collecting.result(timeout=0) == ["hello", None]


async def test_a_sync_handler_sends_too(play: Stage) -> None:
    def sender(ctx: SyncContext) -> None:
        ctx.send("greet", greeting("from a thread"), topic="news")

    (hear, made_listener), (send, made_sender) = handled(on_topic, name="hear"), handled(sender, name="send")
    play.cast(made_listener, made_sender)
    hearing = await play.play(hear())
    await play.play(send())

    assert hearing.result(timeout=0) == "from a thread"


async def on_topic(ctx: Context) -> str:
    return await ctx.wait_for("news", greeting, topic="news")


async def test_a_topic_reaches_every_run_that_waits_for_it_then_and_nobody_else(play: Stage) -> None:
    (hear, made), (other, made_other) = handled(on_topic, name="hear"), handled(listener, name="other")
    play.cast(made, made_other)
    runs = [await play.play(hear()) for _ in range(3)]
    bystander = await play.play(other())
    play.client.send(greeting("all"), topic="news")
    late = await play.play(hear())

    assert [run.result(timeout=0) for run in runs] == ["all"] * 3
    assert late.status() == "waiting"
    assert bystander.status() == "waiting"


async def test_a_wait_for_a_topic_takes_nothing_that_is_sent_to_the_run(play: Stage) -> None:
    hear, made = handled(on_topic, name="hear")
    run = await play.play(hear(), made)
    run.send(greeting("to you"))
    await play.go_on()
    assert run.status() == "waiting"

    play.client.send(greeting("to all"), topic="news")
    await play.go_on()
    assert run.result(timeout=0) == "to all"


async def test_a_send_with_a_key_counts_once_whoever_sends_it(play: Stage, clock: Clock) -> None:
    async def collector(ctx: Context) -> list[Any]:
        first = await ctx.wait_for("one", greeting)
        return [first, await ctx.wait_for("two", greeting, timeout="1 day", default=None)]

    async def sender(ctx: Context) -> None:
        target = UUID(await ctx.wait_for("who", EventRef("who", str)))
        await ctx.send("greet", greeting("hello", key="k"), run=target)
        await ctx.send("again", greeting("hello again", key="k"), run=target)

    (collect, made_collector), (send, made_sender) = handled(collector, name="collect"), handled(sender, name="send")
    play.cast(made_collector, made_sender)
    collecting = await play.play(collect())
    sending = await play.play(send())
    sending.send(EventRef("who", str)(str(collecting.id)))
    await play.go_on()
    collecting.send(greeting("from outside", key="k"))
    await play.go_on()
    clock.advance("2 days")
    await play.go_on()

    assert collecting.result(timeout=0) == ["hello", None]


@pytest.mark.parametrize(
    "options",
    [{}, {"run": UUID(int=1), "topic": "news"}, {"run": "no id"}, {"run": 7}],
)
async def test_a_send_that_says_not_to_whom_is_refused_where_it_is_written(
    play: Stage, options: dict[str, Any]
) -> None:
    async def handler(ctx: Context) -> str:
        with pytest.raises(InvalidOptionError):
            await ctx.send("greet", greeting("hello"), **options)
        return "refused"

    ref, made = handled(handler)
    run = await play.play(ref(), made)

    assert run.result(timeout=0) == "refused"
    assert play.rows("select count(*) from kedge.inbox") == [(0,)]


async def test_a_send_to_a_run_that_is_gone_is_dropped_and_the_sender_goes_on(play: Stage) -> None:
    async def handler(ctx: Context) -> str:
        await ctx.send("greet", greeting("hello"), run="01890a5d-ac96-774b-bcce-b302099a8057")
        return "sent"

    ref, made = handled(handler)
    run = await play.play(ref(), made)

    assert run.result(timeout=0) == "sent"
    assert play.rows("select count(*) from kedge.inbox") == [(0,)]


async def test_a_flush_does_not_wait_for_a_caller_who_has_sent_the_same_event_and_not_committed(play: Stage) -> None:
    async def collector(ctx: Context) -> str:
        return await ctx.wait_for("one", greeting)

    async def sender(ctx: Context) -> None:
        target = await ctx.wait_for("who", EventRef("who", str))
        await ctx.send("greet", greeting("from a run", key="k"), run=target)

    (collect, made_collector), (send, made_sender) = handled(collector, name="collect"), handled(sender, name="send")
    play.cast(made_collector, made_sender)
    collecting = await play.play(collect())
    sending = await play.play(send())
    with psycopg.connect(play.url) as open_transaction:
        play.client.send(greeting("from outside", key="k"), run=collecting, conn=open_transaction)
        sending.send(EventRef("who", str)(str(collecting.id)))
        await play.go_on()
        assert collecting.result(timeout=0) == "from a run"
        open_transaction.rollback()

    assert sending.status() == "completed"
