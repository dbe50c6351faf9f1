"""Workflows that put a secret into every place where a payload can stand, and the keys to read it again."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any, Final

import psycopg

from kedge import DomainError, EventRef, Retry, WorkflowRef
from kedge.encryption import AesGcmCodec, new_key
from kedge_client import Client, RunHandle
from kedge_worker import Context, NotYet, SyncContext, Worker, step, workflow
from kedge_worker.testing import Clock

CANARY: Final = "c4n4ry"
"""In all that must not be read in the tables; and in nothing else."""

OLD, NEW = new_key(), new_key()


def secret(place: str) -> dict[str, Any]:
    """A payload that says where it belongs."""
    return {"place": place, "word": f"{CANARY} of {place}"}


def codec(*, strict: bool = False) -> AesGcmCodec:
    """What everybody has who has only the old key."""
    return AesGcmCodec({"old": OLD}, current="old", strict=strict)


class Declined(DomainError):
    word: str


rich: Final = WorkflowRef[dict[str, Any], dict[str, Any]]("rich", dict[str, Any], dict[str, Any], raises=(Declined,))
child: Final = WorkflowRef[dict[str, Any], dict[str, Any]]("child", dict[str, Any], dict[str, Any])
bad_child: Final = WorkflowRef[dict[str, Any], None]("bad-child", dict[str, Any], None)
plain_sync: Final = WorkflowRef[dict[str, Any], dict[str, Any]]("plain-sync", dict[str, Any], dict[str, Any])
failing: Final = WorkflowRef[dict[str, Any], None]("failing", dict[str, Any], None, raises=(Declined,))
approved: Final = EventRef("approved", dict[str, Any])
news: Final = EventRef("news", dict[str, Any])

_flakes: Final[dict[str, int]] = {}


async def echo(value: dict[str, Any]) -> dict[str, Any]:
    return value


def echo_in_thread(value: dict[str, Any]) -> dict[str, Any]:
    return value


@step(check_input=True)
async def checked(value: dict[str, Any]) -> dict[str, Any]:
    return value


async def flaky(run: str) -> dict[str, Any]:
    _flakes[run] = _flakes.get(run, 0) + 1
    if _flakes[run] < 3:
        raise ValueError(f"{CANARY} of an attempt")
    return secret("retried")


@step(raises=(Declined,))
async def declines() -> None:
    raise Declined(word=f"{CANARY} of a declared error")


async def breaks() -> None:
    raise RuntimeError(f"{CANARY} of an error")


def look(state: dict[str, Any] | None = None) -> dict[str, Any] | NotYet:
    return secret("poll") if state else NotYet(secret("state"))


async def insert(conn: psycopg.AsyncConnection[Any], value: dict[str, Any]) -> dict[str, Any]:
    await conn.execute("select 1")
    return value


@workflow(child)
async def child_handler(ctx: Context, given: dict[str, Any]) -> dict[str, Any]:
    return await ctx.step("inside", echo, given)


@workflow(bad_child)
async def bad_child_handler(ctx: Context, given: dict[str, Any]) -> None:
    raise ValueError(given["word"])


@workflow(rich)
async def rich_handler(ctx: Context, given: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {"input": given}
    line = f"{CANARY} of a line"
    ctx.log.info(line, **secret("field"))
    told["step"] = await ctx.step("first", echo, secret("step"))
    told["checked"] = await ctx.step("checked", checked, secret("argument"))
    told["thread"] = await ctx.step("thread", echo_in_thread, secret("thread"))
    told["parallel"] = list(
        await asyncio.gather(
            ctx.branch("a", ctx.step, "one", echo, secret("one")), ctx.branch("b", ctx.step, "two", echo, secret("two"))
        )
    )
    told["transaction"] = await ctx.transaction("insert", insert, secret("transaction"))
    told["retried"] = await ctx.step("flaky", flaky, str(ctx.run_id), retry=Retry(5, initial="1s", jitter=False))
    told["poll"] = await ctx.poll("look", look, every="1s")
    try:
        await ctx.step("declines", declines)
    except Declined as error:
        told["declared"] = error.word
    try:
        await ctx.step("breaks", breaks)
    except Exception as error:  # noqa: BLE001  # what the handler gets of it
        told["broken"] = str(error)
    told["child"] = await ctx.call("child", child(secret("child")))
    told["keyed"] = await ctx.call("keyed", child(secret("keyed child"), key=f"{ctx.run_id}"))
    told["map"] = await ctx.map("map", child, [secret("item 0"), secret("item 1")])
    try:
        await ctx.call("bad", bad_child(secret("bad child")))
    except Exception as error:  # noqa: BLE001  # as above
        told["bad"] = str(error)
    told["event"] = await ctx.wait_for("event", approved)
    told["topic"] = await ctx.wait_for("topic", news, topic="world")
    told["skipped"] = await ctx.wait_for("skipped", approved)
    await ctx.send("tell", news(secret("sent")), topic="nobody")
    return told


@workflow(plain_sync)
def sync_handler(ctx: SyncContext, given: dict[str, Any]) -> dict[str, Any]:
    first = ctx.step("first", echo_in_thread, secret("sync step"))
    return {"input": given, "step": first, "event": ctx.wait_for("event", approved)}


@workflow(failing, retry=Retry(2, initial="1s", jitter=False))
async def failing_handler(ctx: Context, given: dict[str, Any]) -> None:
    await ctx.step("before", echo, secret("before"))
    try:
        await ctx.step("breaks", breaks)
    finally:
        raise Declined(word=f"{CANARY} of the end")


WORKFLOWS: Final = (rich_handler, child_handler, bad_child_handler, sync_handler, failing_handler)


class Vault:
    """One database, a client with keys, and workers with keys that work until there is nothing to do."""

    def __init__(self, url: str, clock: Clock, client: Client) -> None:
        self.url = url
        self.clock = clock
        self.client = client
        self.keys: Any = codec()
        """What workers have if nothing else is said."""

    async def work(self, keys: Any = ..., *workflows: Any) -> int:
        """Execute what can be executed, with these keys; answers how many runs have ended."""
        keys = self.keys if keys is ... else keys
        return await Worker(self.url, workflows=workflows or WORKFLOWS, codec=keys).run_until_idle()

    async def work_through(self, *, keys: Any = ..., hours: int = 3) -> None:
        """The same, and again each hour."""
        await self.work(keys)
        for _ in range(hours):
            self.clock.advance("1h")
            await self.work(keys)

    async def play_rich(self, client: Client | None = None, word: str = "input") -> RunHandle[dict[str, Any]]:
        """The whole of it, from a start to the end."""
        client = client or self.client
        run = client.start(rich(secret(word)))
        await self.work_through()
        run.send(approved(secret("event")))
        await self.work()
        client.send(news(secret("topic")), topic="world")
        await self.work()
        assert run.fast_forward(secret("fast-forward"), wait="skipped")
        await self.work()
        return run

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """What stands in the tables."""
        with psycopg.connect(self.url, autocommit=True) as conn:
            cursor = conn.execute(query.encode(), values)
            return cursor.fetchall() if cursor.description else []


@contextmanager
def vault(url: str, clock: Clock, **options: Any) -> Generator[Vault]:
    """Open and close a client around it."""
    with Client.connect(url, codec=options.pop("codec", codec()), **options) as client:
        yield Vault(url, clock, client)


def expected(word: str = "input") -> dict[str, Any]:
    """What the rich handler answers, as far as it is no text made of an error."""
    return {
        "input": secret(word),
        "step": secret("step"),
        "checked": secret("argument"),
        "thread": secret("thread"),
        "parallel": [secret("one"), secret("two")],
        "transaction": secret("transaction"),
        "retried": secret("retried"),
        "poll": secret("poll"),
        "declared": f"{CANARY} of a declared error",
        "child": secret("child"),
        "keyed": secret("keyed child"),
        "map": [secret("item 0"), secret("item 1")],
        "event": secret("event"),
        "topic": secret("topic"),
        "skipped": secret("fast-forward"),
    }


def places_with(url: str, words: Iterable[str]) -> list[tuple[str, str, str]]:
    """Table, column and word, for each word that stands in clear in any column of the schema."""
    found: list[tuple[str, str, str]] = []
    with psycopg.connect(url, autocommit=True) as conn:
        columns = conn.execute(
            "select c.relname::text, a.attname::text, a.atttypid = 'bytea'::regtype from pg_class c"
            " join pg_attribute a on a.attrelid = c.oid"
            " where c.relnamespace = 'kedge'::regnamespace and c.relkind in ('r', 'p') and a.attnum > 0"
            " and not a.attisdropped order by 1, a.attnum"
        ).fetchall()
        for table, column, is_bytes in columns:
            for word in words:
                # Of an array of bytea, or JSON, the text holds the bytes in hex.
                hexed = word.encode().hex()
                there = (
                    "position(%(raw)s::bytea in t.{0}) > 0"
                    if is_bytes
                    else ("t.{0}::text ilike %(like)s or t.{0}::text ilike %(hex)s")
                )
                query = f'select count(*) from kedge."{table}" t where ' + there.format(f'"{column}"')
                values = {"raw": word.encode()} if is_bytes else {"like": f"%{word}%", "hex": f"%{hexed}%"}
                ((count,),) = conn.execute(query.encode(), values).fetchall()
                if count:
                    found.append((table, column, word))
    return found
