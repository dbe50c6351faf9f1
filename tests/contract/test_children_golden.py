"""Bytes that stand in databases about children: what releases have written must be read for ever."""

import contextlib
from uuid import UUID

import pytest

from kedge.errors import ChildCancelledError, ChildFailedError, RunActiveError
from kedge.failures import decode_error
from kedge.refs import WorkflowRef
from kedge_worker import _starting
from kedge_worker._context import Context
from kedge_worker._memo import RowMeta
from kedge_worker._runs import Mail, Started
from tests.unit.worker.journal import Lives, bound

CHILD = UUID("01900000-0000-7000-8000-000000000001")
HOLDER = UUID("01900000-0000-7000-8000-000000000002")

ship = WorkflowRef("ship", str, str, version="2")


async def call(ctx: Context) -> str:
    return await ctx.call("a", ship("hat"))


async def alone(ctx: Context) -> str:
    return await ctx.call("a", ship("hat", key="k"))


@pytest.fixture(autouse=True)
def same_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_starting, "new_run_id", lambda: CHILD)


async def test_a_start_is_kept_as_ever() -> None:
    async with Lives(bound(call)) as lives:
        claimed, _ = await lives.run()

        (row,) = lives.journal.memo(claimed.id)
        assert (row.kind, row.key) == ("n", "a/start")
        assert row.value == b'\x01"01900000-0000-7000-8000-000000000001"'
        workflow, digest = RowMeta.decode(row.meta).inputs
        assert workflow == b"ship@2"
        assert digest.hex() == "35b2a129a762f70cd3f5bb52b893e653"
        (wait,) = lives.journal.waits(claimed.id)
        assert wait.state == row.value


@pytest.mark.parametrize(
    ("letter", "kind", "value"),
    [
        (b'c\x01"sent"', "c", b'\x01"sent"'),
        (
            b'f\x01{"kind":"shop.Bad","message":"no"}',
            "f",
            (
                b'\x01{"kind":"kedge.errors.ChildFailedError","message":"run 01900000-0000-7000-8000-000000000001 '
                b'failed: shop.Bad: no","key":"a","cause":{"kind":"shop.Bad","message":"no"}}'
            ),
        ),
        (b"xlate", "f", b'\x01{"kind":"kedge.errors.ChildCancelledError","message":"late","key":"a"}'),
        (b"x", "f", b'\x01{"kind":"kedge.errors.ChildCancelledError","message":"","key":"a"}'),
    ],
)
async def test_an_end_is_told_and_kept_as_ever(letter: bytes, kind: str, value: bytes) -> None:
    async def handler(ctx: Context) -> None:
        with contextlib.suppress(ChildFailedError, ChildCancelledError):
            await ctx.call("a", ship("hat"))

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        await lives.again(claimed, mail=(Mail(HOLDER, 1, "k:a", letter),))

        row = lives.journal.memo(claimed.id)[-1]
        assert (row.kind, row.key, row.value) == (kind, "a", value)


async def test_a_damaged_letter_is_a_failure_that_says_so() -> None:
    async with Lives(bound(call)) as lives:
        claimed, _ = await lives.run()
        await lives.again(claimed, mail=(Mail(HOLDER, 1, "k:a", b""),))

        info = decode_error(lives.journal.memo(claimed.id)[-1].value)
        assert info.cause is not None
        assert "there are no bytes" in info.cause.message


async def test_a_refused_start_is_kept_as_ever() -> None:
    async with Lives(bound(alone)) as lives:
        lives.child_starts.answers = [Started(HOLDER, "active")]
        claimed, _ = await lives.run()

        (row,) = lives.journal.memo(claimed.id)
        assert (row.kind, row.key, RowMeta.decode(row.meta).operation) == ("f", "a/start", "n")
        assert row.value.startswith(b'\x01{"kind":"kedge.errors.RunActiveError","message":')
        assert row.value.endswith(
            b'"key":"a/start","data":{"run_id":"01900000-0000-7000-8000-000000000001",'
            b'"existing_id":"01900000-0000-7000-8000-000000000002","workflow":"ship","key":"k"}}'
        )
        caught: list[RunActiveError] = []

        async def handler(ctx: Context) -> None:
            try:
                await alone(ctx)
            except RunActiveError as error:
                caught.append(error)

    async with Lives(bound(handler)) as lives:
        await lives.run(memo=(row,), next_seq=2)

    assert caught[0].args == (CHILD, HOLDER, "ship", "k")
