"""Keys: rotated under load, missing, wrong; strictness; what is never said of them."""

import asyncio
import base64
import copy
import logging
import os
import pickle
from collections.abc import Generator
from typing import Any

import pytest

from kedge import DamagedPayloadError, KeyMissingError, RunDeadlineError, RunFailedError
from kedge.codecs import PayloadContext, key_header
from kedge.encryption import AesGcmCodec, new_key
from kedge_client import AsyncClient, Client
from kedge_worker import Worker
from kedge_worker.testing import Clock
from tests.proof.kit.lanes import thinned
from tests.proof.security.vault import (
    CANARY,
    NEW,
    OLD,
    WORKFLOWS,
    Vault,
    approved,
    child,
    codec,
    failing,
    places_with,
    plain_sync,
    secret,
    vault,
)

BOTH = {"old": OLD, "new": NEW}


@pytest.fixture
def play(database_url: str, clock: Clock) -> Generator[Vault]:
    with vault(database_url, clock) as one:
        yield one


def only_new() -> AesGcmCodec:
    return AesGcmCodec({"new": NEW}, current="new")


def both(current: str = "new", **options: Any) -> AesGcmCodec:
    return AesGcmCodec(BOTH, current=current, **options)


# ---- a key that is missing


@pytest.mark.parametrize("keys", [None, only_new()], ids=["no codec", "another key"])
async def test_a_run_whose_key_is_missing_waits_for_a_worker_that_has_it(play: Vault, keys: Any) -> None:
    run = play.client.start(plain_sync(secret("input")))
    await play.work(keys)

    seen = play.client.get(run)
    assert (seen.status, seen.attempt, seen.crashes, seen.epoch) == ("waiting", 0, 0, 1)
    assert "key 'old'" in str(seen.reason)
    for _ in range(3):  # without a hot loop: one claim each time that it is due
        play.clock.advance("15m")
        await play.work(keys)
    seen = play.client.get(run)
    assert (seen.status, seen.attempt, seen.crashes, seen.epoch) == ("waiting", 0, 0, 4)
    assert "put off 4 times" in str(seen.reason)

    play.clock.advance("15m")
    await play.work()
    run.send(approved(secret("event")))
    await play.work()
    assert run.result(timeout=0)["event"] == secret("event")
    assert play.client.get(run).reason is None


@pytest.mark.parametrize("keys", [None, only_new()], ids=["no codec", "another key"])
async def test_what_an_earlier_life_has_kept_is_not_taken_for_something_else(play: Vault, keys: Any) -> None:
    with Client.connect(play.url) as plain:  # its input is in clear, what the worker keeps is not
        run = plain.start(plain_sync(secret("input")))
        await play.work()
        plain.send(approved(secret("event")), run=run)
    await play.work(keys)

    assert "key 'old'" in str(play.client.get(run).reason)
    play.clock.advance("1m")
    await play.work()
    assert play.client.get(run).status == "completed"


async def test_mail_whose_key_is_missing_puts_off_a_run_that_waits_in_memory(play: Vault) -> None:
    with Client.connect(play.url, codec=only_new()) as stranger:
        async with (
            Worker(play.url, workflows=WORKFLOWS, codec=codec()),
            AsyncClient.connect(play.url, codec=codec()) as client,
        ):
            innocent = await client.start(plain_sync(secret("input")))
            run = await client.start(plain_sync(secret("input")))
            async for event in client.watch(run):
                if event.step is not None:
                    break
            stranger.send(approved(secret("strange")), run=run.id)
            async for event in client.watch(run):
                if event.kind == "status" and "key 'new'" in str(event.reason):
                    break
            await innocent.send(approved(secret("event")))
            assert (await innocent.result(timeout="20s"))["event"] == secret("event")
    play.clock.advance("1m")
    await play.work(both())

    with Client.connect(play.url, codec=both()) as knows:
        assert knows.handle(plain_sync, run.id).result(timeout=0)["event"] == secret("strange")


async def test_a_client_without_the_key_is_told_which_one_it_lacks(play: Vault) -> None:
    run = play.client.start(child(secret("input")))
    bad = play.client.start(failing(secret("input")))
    await play.work_through()

    for keys in (None, only_new()):
        with Client.connect(play.url, codec=keys) as other:
            with pytest.raises(KeyMissingError) as missing:
                other.handle(child, run.id).result(timeout=0)
            assert missing.value.key_id == "old"
            with pytest.raises(RunFailedError) as failed:
                other.handle(failing, bad.id).result(timeout=0)
            assert failed.value.error.kind == "kedge.errors.KeyMissingError"
            assert "'old'" in failed.value.error.message
            # What there is to see is seen without what cannot be read.
            assert isinstance(other.get(run.id).input, bytes)
            assert [step.key for step in other.steps(run.id)] == ["inside"]
            assert list(other.watch(bad.id))
            error = other.get(bad.id).error
            assert error is not None
            assert error.kind == "kedge.errors.KeyMissingError"


async def test_a_line_that_cannot_be_read_says_so(play: Vault) -> None:
    run = await play.play_rich()

    with Client.connect(play.url) as other:
        (line,) = [event for event in other.watch(run.id) if event.kind == "log"]
    assert "encrypted" in str(line.message)


# ---- rotation


async def test_keys_are_rotated_under_load_and_no_run_notices(play: Vault) -> None:
    # Clients at every stage at once; of the workers one still encrypts with the old key.
    stages = [codec(), both("old"), both("new"), only_new()]

    async def load(keys: AesGcmCodec, number: int) -> list[dict[str, Any]]:
        async with AsyncClient.connect(play.url, codec=keys) as client:
            runs = await client.start_many([child(secret(f"{number}/{n}")) for n in range(20)])
            waiting = await client.start(plain_sync(secret(f"waits {number}")))
            await waiting.send(approved(secret(f"event {number}")))
            # Who has the new key only cannot read what a worker has written with the old one.
            async with AsyncClient.connect(play.url, codec=both()) as reader:
                handles = [reader.handle(one.ref, one.id) for one in (*runs, waiting)]
                return [await one.result(timeout="60s") for one in handles]

    async with (
        Worker(play.url, workflows=WORKFLOWS, codec=both("old")) as first,
        Worker(play.url, workflows=WORKFLOWS, codec=both("new")),
    ):
        told = await asyncio.gather(*(load(keys, number) for number, keys in enumerate(stages)))
        await first.stop(grace="5s")
    assert [len(one) for one in told] == [21] * 4
    assert places_with(play.url, [CANARY]) == []
    assert play.rows("select 1 from kedge.runs") == []


async def test_what_the_old_key_has_written_is_read_while_it_is_held_and_waits_when_it_is_gone(play: Vault) -> None:
    run = play.client.start(plain_sync(secret("input")))
    await play.work()

    await play.work(both())
    with Client.connect(play.url, codec=both()) as rotated:
        rotated.send(approved(secret("event")), run=run)
        await play.work(only_new())
        assert "key 'old'" in str(rotated.get(run).reason)
        play.clock.advance("1h")
        await play.work(both())
        assert rotated.handle(plain_sync, run.id).result(timeout=0)["event"] == secret("event")


# ---- wrong, cut, broken


async def test_another_key_of_the_same_name_is_noticed(play: Vault) -> None:
    run = play.client.start(child(secret("input")))
    wrong = AesGcmCodec({"old": new_key()}, current="old")
    await play.work(wrong)

    assert "is another one here" in str(play.client.get(run).reason)
    play.clock.advance("1h")
    await play.work()
    with Client.connect(play.url, codec=wrong) as other, pytest.raises(DamagedPayloadError):
        other.handle(child, run.id).result(timeout=0)


@pytest.mark.parametrize("length", thinned([1, 2, 16, 17, 18, 20, 21, 40, 60], of=3))
async def test_a_payload_that_is_cut_off_harms_no_worker(play: Vault, length: int) -> None:
    run = play.client.start(child(secret("input")))
    other = play.client.start(child(secret("other")))
    play.rows(f"update kedge.journal set value = substr(value, 1, {length}) where run_id = '{run.id}'")

    for keys in (None, codec()):
        await play.work(keys)
        assert "header is damaged" in str(play.client.get(run).reason) or "key 'old'" in str(
            play.client.get(run).reason
        )
        play.clock.advance("1h")
    assert other.result(timeout=0) == secret("other")


async def test_a_header_cannot_write_what_it_likes_into_a_reason(play: Vault) -> None:
    run = play.client.start(child(secret("input")))
    for name in (b"a\0b", b"\xff\xfe", b"'; drop table", b"x" * 65, b""):
        header = b"\x03" + run.id.bytes + len(name).to_bytes(1, "big") + name + bytes(60)
        play.rows("update kedge.journal set value = %s where run_id = %s", header, run.id)
        play.clock.advance("1h")
        await play.work()
        assert str(play.client.get(run).reason).partition(" (put")[0].endswith("its header is damaged")


class Broken(AesGcmCodec):
    """Fails where it is told to, with its payload in its words, as somebody's codec might."""

    def __init__(self, fails: str) -> None:
        super().__init__({"old": OLD}, current="old")
        self.fails = fails

    def encode(self, payload: bytes, context: PayloadContext, /) -> bytes:
        if context.place == self.fails:
            raise ZeroDivisionError(f"cannot encode {payload!r}")
        return super().encode(payload, context)

    def decode(self, data: bytes, context: PayloadContext, /) -> bytes:
        if self.fails == f"decoding {context.place}":
            raise ZeroDivisionError(f"cannot decode {super().decode(data, context)!r}")
        return super().decode(data, context)


@pytest.mark.parametrize(
    "fails",
    thinned(["value", "output", "error", "log", "poll", "arguments", "decoding input", "decoding event"], of=4),
)
async def test_a_codec_that_fails_puts_the_run_off_and_writes_nothing_in_clear(
    play: Vault, fails: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="kedge.worker")
    run = play.client.start(WORKFLOWS[0].ref(secret("input")))
    run.send(approved(secret("event")))
    for _ in range(4):
        await play.work(Broken(fails))
        play.clock.advance("20s")

    # It, or its child, which it waits for.
    (seen,) = [one for one in play.client.list_runs().items if one.reason]
    assert seen.status == "waiting"
    assert "ZeroDivisionError" in str(seen.reason)
    assert (seen.attempt, seen.crashes) == (0, 0)
    assert places_with(play.url, [CANARY]) == []
    assert CANARY not in "\n".join(record.getMessage() for record in caplog.records if record.name == "kedge.worker")
    play.clock.advance("1h")
    await play.work_through()
    assert [one.reason for one in play.client.list_runs().items if one.reason] == []


# ---- strictness


async def test_what_was_kept_before_encryption_is_read_unless_that_is_forbidden(play: Vault) -> None:
    with Client.connect(play.url) as plain:
        run, old = plain.start(child(secret("input"))), plain.start(child(secret("old")))
        await play.work(codec(strict=True))
        assert "strict=True" in str(plain.get(run).reason)
        play.clock.advance("1h")
        await play.work(None)
    with (
        Client.connect(play.url, codec=codec(strict=True)) as strict,
        pytest.raises(DamagedPayloadError, match="clear"),
    ):
        strict.handle(child, run.id).result(timeout=0)
    assert play.client.handle(child, old.id).result(timeout=0) == secret("old")


async def test_strict_mode_takes_the_errors_that_sql_makes_and_no_others(play: Vault) -> None:
    late = play.client.start(child(secret("input"), timeout="1h"))
    forged = play.client.start(child(secret("input"), timeout="1h"))
    play.clock.advance("2h")
    await play.work(codec(strict=True))
    play.rows(
        "update kedge.finished set error = '\\x01'::bytea || convert_to("
        '\'{"kind":"builtins.ValueError","message":"forged"}\', \'UTF8\') where id = %s',
        forged.id,
    )

    with Client.connect(play.url, codec=codec(strict=True)) as strict:
        with pytest.raises(RunDeadlineError):
            strict.handle(child, late.id).result(timeout=0)
        with pytest.raises(RunFailedError) as refused:
            strict.handle(child, forged.id).result(timeout=0)
        assert refused.value.error.kind == "kedge.errors.DamagedPayloadError"


async def test_strict_mode_executes_everything_that_is_encrypted(play: Vault) -> None:
    play.keys = codec(strict=True)
    with Client.connect(play.url, codec=play.keys) as strict:
        run = await play.play_rich(strict)
        assert run.result(timeout=0)["step"] == secret("step")


# ---- what is never said


def test_a_key_is_in_no_repr_no_error_and_no_pickle() -> None:
    keys = codec()
    context = PayloadContext(new_uuid(), "output")
    said = [repr(keys), str(keys), repr([keys])]
    for broken in (key_header("new") + bytes(60), key_header("old") + bytes(60), key_header("old")):
        with pytest.raises((KeyMissingError, DamagedPayloadError)) as refused:
            keys.decode(broken, context)
        said += [str(refused.value), repr(refused.value), repr(vars(refused.value))]
        assert refused.value.__cause__ is None
    with pytest.raises(Exception, match="32 bytes") as short:
        AesGcmCodec({"short": OLD[:-1]}, current="short")
    said += [str(short.value), repr(short.value)]
    forms = [OLD.hex(), repr(OLD)[2:-1], base64.b64encode(OLD).decode(), repr(OLD[:-1])[2:-1]]
    assert [one for one in said for form in forms if form in one] == []
    for copied in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="holds keys"):
            copied(keys)


def new_uuid() -> Any:
    from uuid import uuid4

    return uuid4()


def test_a_forked_process_encrypts_under_a_salt_of_its_own() -> None:
    keys = codec()
    context = PayloadContext(new_uuid(), "output")
    mine = keys.encode(b"x", context)
    reader, writer = os.pipe()
    child_pid = os.fork()
    if child_pid == 0:
        os.write(writer, keys.encode(b"x", context))
        os._exit(0)
    os.waitpid(child_pid, 0)
    theirs = os.read(reader, 1000)
    os.close(reader)
    os.close(writer)

    begin = len(key_header("old"))
    assert keys.decode(theirs, context) == b"x"
    assert mine[begin : begin + 16] != theirs[begin : begin + 16]
