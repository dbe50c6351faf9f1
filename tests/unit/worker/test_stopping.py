"""How runs leave: by their end, by cancel, lost lease and shutdown; and what no handler can do to a worker."""

import asyncio
import contextlib
import threading
import time
from typing import Any

import pytest
from msgspec.structs import replace

from kedge.errors import ForeignTaskError
from kedge.failures import decode_error
from kedge.refs import WorkflowRef
from kedge_worker import _executor, _handling
from kedge_worker._context import Context
from kedge_worker._outcomes import End, GiveBack, Park, Released
from kedge_worker._sync_context import SyncContext
from kedge_worker._workflows import workflow
from tests.unit.worker.journal import Lives, bound, claim


async def echo(value: int) -> int:
    return value


async def forever() -> None:
    await asyncio.Event().wait()


async def rounds(count: int = 30) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def begin(lives: Lives, **changes: Any) -> Any:
    """Start a run and let it come to where it waits."""
    claimed = claim(lives.workflow, **changes)
    lives.executor.start(claimed)
    await rounds()
    return claimed


# ---- the end of a handler


@pytest.mark.parametrize("is_sync", [False, True], ids=["async", "sync"])
async def test_a_run_that_is_stopped_before_its_handler_has_begun_leaves_all_the_same(is_sync: bool) -> None:
    begun: list[str] = []

    async def handler(_: Context) -> None:
        begun.append("async")

    def sync_handler(_: SyncContext) -> None:
        begun.append("sync")

    async with Lives(bound(sync_handler if is_sync else handler)) as lives:
        claimed = claim(lives.workflow)
        lives.executor.start(claimed)
        lives.executor.ask(claimed.id, "x", "enough")
        move = await lives.journal.moved(claimed.id)
        await rounds()

        assert (move, begun, lives.executor.runs) == (End("x", reason="enough"), [], {})


async def test_a_run_leaves_memory_when_its_move_is_stored() -> None:
    async def handler(ctx: Context) -> int:
        return await ctx.step("a", echo, 7)

    async with Lives(bound(handler)) as lives:
        lives.journal.settled = None
        claimed, move = await lives.run()
        await rounds()
        assert list(lives.executor.runs) == [claimed.id]
        lives.executor.settled(list(lives.executor.runs.values()), [])

        assert lives.executor.runs == {}
        assert lives.freed == 1
        assert lives.result(move) == 7


async def test_a_handlers_exception_ends_its_run_with_the_traceback_and_without_values() -> None:
    async def handler(_ctx: Context) -> None:
        password = "hunter2"  # must not be found again
        raise LookupError(len(password))

    async with Lives(bound(handler)) as lives:
        _, move = await lives.run()

    assert isinstance(move, End)
    error = decode_error(move.error)
    assert (move.status, error.kind, error.message) == ("f", "builtins.LookupError", "7")
    assert "in handler" in str(error.traceback)
    assert b"hunter2" not in (move.error or b"").split(b"password = ", 1)[0]


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError()])
@pytest.mark.parametrize("where", ["handler", "task"])
async def test_whatever_a_handler_raises_the_worker_lives(error: BaseException, where: str) -> None:
    async def raising() -> None:
        raise error

    async def handler(_ctx: Context) -> None:
        await (raising() if where == "handler" else asyncio.create_task(raising()))

    async with Lives(bound(handler)) as lives:
        _, move = await lives.run()

    assert isinstance(move, End)
    assert move.status == "f"


async def test_an_input_that_does_not_decode_fails_the_run_with_that_error() -> None:
    @workflow(WorkflowRef("typed", int, int))
    async def handler(_ctx: Context, value: int) -> int:
        return value

    async with Lives(handler) as lives:
        claimed = replace(claim(handler, 1), input=b'\x01"seven"')
        lives.executor.start(claimed)
        move = await lives.journal.moved(claimed.id)

    assert isinstance(move, End)
    assert decode_error(move.error).kind == "kedge.errors.NotDecodableError"


async def test_a_result_that_does_not_fit_fails_the_run_with_that_error() -> None:
    @workflow(WorkflowRef("typed", int, int))
    async def handler(_ctx: Context, value: int) -> Any:
        return str(value)

    async with Lives(handler) as lives:
        _, move = await lives.run(1)

    assert isinstance(move, End)
    assert decode_error(move.error).kind == "kedge.errors.NotEncodableError"


async def test_tasks_that_a_handler_leaves_behind_are_cancelled_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    unwound: list[str] = []

    async def tidy(ctx: Context) -> None:
        try:
            await ctx.step("left", forever)
        finally:
            await rounds()
            unwound.append("left")

    async def handler(ctx: Context) -> str:
        keep = [asyncio.create_task(tidy(ctx)), asyncio.create_task(forever())]
        await ctx.step("a", echo, len(keep))
        return "done"

    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run()

    assert lives.result(move) == "done"
    assert unwound == ["left"]
    assert lives.journal.keys(claimed.id) == [("s", "a")]
    assert "2 unfinished tasks" in caplog.text


async def test_the_context_is_of_no_use_after_the_end() -> None:
    kept: list[Context] = []

    async def handler(ctx: Context) -> None:
        kept.append(ctx)

    async with Lives(bound(handler)) as lives:
        await lives.run()
        await rounds()

        with pytest.raises(ForeignTaskError):
            await kept[0].step("late", echo, 1)


async def test_the_context_is_refused_in_tasks_outside_of_the_run() -> None:
    kept: asyncio.Future[Context] = asyncio.get_running_loop().create_future()

    async def handler(ctx: Context) -> None:
        kept.set_result(ctx)
        await forever()

    async with Lives(bound(handler)) as lives:
        await begin(lives)

        with pytest.raises(ForeignTaskError):
            await (await kept).step("foreign", echo, 1)


async def test_a_run_of_a_workflow_that_is_not_registered_is_put_off() -> None:
    async def handler(_ctx: Context) -> None: ...

    async with Lives(bound(handler)) as lives:
        _, move = await lives.run(workflow="somebody-elses")

    assert isinstance(move, GiveBack)
    assert move.delay_s > 0
    assert "somebody-elses" in str(move.reason)


# ---- cancel


async def test_a_run_with_a_cancel_request_is_not_executed() -> None:
    executed: list[int] = []

    async def handler(_ctx: Context) -> None:
        executed.append(1)

    async with Lives(bound(handler)) as lives:
        _, move = await lives.run(request="x", reason="changed my mind")

    assert move == End("x", reason="changed my mind")
    assert executed == []


async def test_a_cancelled_handler_unwinds_before_its_end_is_written() -> None:
    unwound: list[str] = []

    async def handler(ctx: Context) -> None:
        try:
            await ctx.step("long", forever)
        finally:
            await rounds()
            unwound.append("handler")

    async with Lives(bound(handler)) as lives:
        claimed = await begin(lives)
        lives.executor.ask(claimed.id, "x", "enough")
        move = await lives.journal.moved(claimed.id)

    assert move == End("x", reason="enough")
    assert unwound == ["handler"]
    assert lives.journal.keys(claimed.id) == []


async def test_a_cancelled_handler_can_do_nothing_more() -> None:
    refused: list[str] = []

    async def handler(ctx: Context) -> str:
        try:
            await ctx.step("long", forever)
        except BaseException:  # noqa: BLE001  # that is the point
            for _ in range(2):
                try:
                    await ctx.step("more", echo, 1)
                except Exception:  # noqa: BLE001  # must not catch it
                    refused.append("as an Exception")
                except asyncio.CancelledError:
                    refused.append("as a cancellation")
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                await ctx.step("in finally", echo, 1)
            refused.append("in finally")
        return "swallowed"

    async with Lives(bound(handler)) as lives:
        claimed = await begin(lives)
        lives.executor.ask(claimed.id, "x", None)
        move = await lives.journal.moved(claimed.id)

    assert move == End("x", reason=None)
    assert refused == ["as a cancellation"] * 2 + ["in finally"]
    assert lives.journal.keys(claimed.id) == []


async def test_a_handler_that_has_returned_stays_completed() -> None:
    async def handler(_ctx: Context) -> str:
        return "done"

    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run()
        lives.executor.ask(claimed.id, "x", "too late")
        await rounds()

        assert lives.journal.moves[claimed.id] == move
        assert lives.result(move) == "done"


async def test_all_branches_unwind_when_the_run_is_cancelled() -> None:
    unwound: list[int] = []

    async def branch(ctx: Context, number: int) -> None:
        try:
            await ctx.step("long", forever)
        finally:
            unwound.append(number)

    async def handler(ctx: Context) -> None:
        background = asyncio.create_task(branch(ctx, 3))
        await asyncio.gather(branch(ctx, 1), branch(ctx, 2), return_exceptions=True)
        await background

    async with Lives(bound(handler)) as lives:
        claimed = await begin(lives)
        lives.executor.ask(claimed.id, "x", None)
        move = await lives.journal.moved(claimed.id)

    assert move == End("x", reason=None)
    assert sorted(unwound) == [1, 2, 3]
    assert lives.journal.keys(claimed.id) == []


async def test_a_handler_that_does_not_stop_is_ended_without_it_and_holds_its_slot(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_executor, "UNWINDING_S", 0.01)
    stop = asyncio.Event()

    async def handler(_ctx: Context) -> None:
        while not stop.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await stop.wait()

    async with Lives(bound(handler)) as lives:
        claimed = await begin(lives)
        lives.executor.ask(claimed.id, "x", "enough")
        move = await lives.journal.moved(claimed.id)
        await rounds()
        assert claimed.id in lives.executor.runs
        stop.set()
        await rounds()

        assert lives.executor.runs == {}

    assert move == End("x", reason="enough")
    assert "still runs" in caplog.text


# ---- a lost lease


async def test_nothing_is_written_for_a_run_that_is_lost() -> None:
    unwound: list[int] = []

    async def handler(ctx: Context) -> None:
        await ctx.step("a", echo, 1)
        try:
            await ctx.step("long", forever)
        finally:
            unwound.append(1)

    async with Lives(bound(handler)) as lives:
        claimed = await begin(lives)
        lives.executor.lose(claimed.id)
        await rounds()

        assert lives.executor.runs == {}
        assert lives.freed == 1

    assert unwound == [1]
    assert claimed.id not in lives.journal.moves
    assert lives.journal.keys(claimed.id) == [("s", "a")]


async def test_a_barrier_that_meets_a_lost_lease_ends_the_handler() -> None:
    reached: list[str] = []

    async def handler(ctx: Context) -> None:
        await ctx.step("a", echo, 1)
        run.lost = True
        try:
            await ctx.step("b", echo, 1)
        except Exception:  # noqa: BLE001  # must not catch it
            reached.append("caught")
        reached.append("went on")

    async with Lives(bound(handler)) as lives:
        run = lives.executor.start(claim(lives.workflow))
        await rounds()

        assert lives.executor.runs == {}

    assert reached == []
    assert lives.journal.moves == {}


async def test_lost_and_claimed_again_the_new_one_stays() -> None:
    async def handler(_ctx: Context) -> None:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await stop.wait()
                return

    stop = asyncio.Event()
    async with Lives(bound(handler)) as lives:
        claimed = await begin(lives)
        lives.executor.lose(claimed.id)
        again = lives.executor.start(replace(claimed, epoch=2))
        stop.set()
        await lives.journal.moved(claimed.id)

        assert lives.executor.runs.get(claimed.id) in (again, None)
        assert isinstance(lives.journal.moves[claimed.id], End)


async def test_a_run_whose_data_the_database_refuses_ends_failed() -> None:
    async def handler(_ctx: Context) -> None:
        await forever()

    async with Lives(bound(handler)) as lives:
        run = lives.executor.start(claim(lives.workflow))
        await rounds()
        lives.executor.fail(run, ValueError("invalid byte sequence"))
        move = await lives.journal.moved(run.claimed.id)

    assert isinstance(move, End)
    assert decode_error(move.error).message == "invalid byte sequence"


# ---- shutdown


async def test_shutdown_waits_for_handlers_that_end_by_themselves() -> None:
    async def handler(ctx: Context) -> str:
        await ctx.step("a", rounds)
        return "done"

    async with Lives(bound(handler)) as lives:
        claimed = claim(lives.workflow)
        lives.executor.start(claimed)

        assert await lives.executor.shutdown(10) == []
        assert lives.result(lives.journal.moves[claimed.id]) == "done"


async def test_after_the_grace_runs_are_given_back_and_charge_nobody() -> None:
    async def handler(ctx: Context) -> None:
        await ctx.step("a", echo, 1)
        await ctx.step("long", forever)

    async with Lives(bound(handler)) as lives:
        claimed = await begin(lives)

        assert await lives.executor.shutdown(0) == []

    assert lives.journal.moves[claimed.id] == GiveBack()
    assert lives.journal.keys(claimed.id) == [("s", "a")]


async def test_hurry_skips_the_grace() -> None:
    async def handler(_ctx: Context) -> None:
        await forever()

    async with Lives(bound(handler)) as lives:
        claimed = await begin(lives)
        hurry = asyncio.Event()
        hurry.set()

        assert await lives.executor.shutdown(3600, hurry=hurry) == []
        assert lives.journal.moves[claimed.id] == GiveBack()


async def test_what_a_body_has_done_when_it_is_stopped_is_kept() -> None:
    async def stubborn() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await forever()
        return "charged all the same"

    async def handler(ctx: Context) -> str:
        return await ctx.step("charge", stubborn)

    async with Lives(bound(handler)) as lives:
        claimed = await begin(lives)
        await lives.executor.shutdown(0)

        assert lives.journal.moves[claimed.id] == GiveBack()
        assert lives.journal.keys(claimed.id) == [("s", "charge")]


async def test_a_run_is_not_given_back_while_its_body_runs_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_executor, "UNWINDING_S", 0.01)
    go, begun = threading.Event(), threading.Event()

    def body() -> None:
        begun.set()
        go.wait(10)

    async def handler(ctx: Context) -> None:
        await ctx.step("blocks", body)

    async with Lives(bound(handler)) as lives:
        claimed = claim(lives.workflow)
        lives.executor.start(claimed)
        await asyncio.to_thread(begun.wait)

        assert await lives.executor.shutdown(0) == [claimed.id]
        assert claimed.id not in lives.journal.moves
        go.set()

        assert await lives.journal.moved(claimed.id) == GiveBack()


async def test_runs_that_come_during_the_shutdown_are_given_back() -> None:
    async def handler(_ctx: Context) -> None: ...

    async with Lives(bound(handler)) as lives:
        await lives.executor.shutdown(0)
        _, move = await lives.run()

    assert move == GiveBack()


async def test_a_leftover_that_does_not_stop_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_handling, "UNWINDING_S", 0.01)
    stop = asyncio.Event()
    left: list[asyncio.Task[None]] = []

    async def stubborn() -> None:
        while not stop.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await stop.wait()

    async def handler(_ctx: Context) -> str:
        left.append(asyncio.create_task(stubborn()))
        await rounds()
        return "done"

    async with Lives(bound(handler)) as lives:
        _, move = await lives.run()
        stop.set()
        await left[0]

    assert lives.result(move) == "done"


async def test_a_line_is_logged_for_each_move_and_none_has_a_payload(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "kedge.worker")

    @workflow(WorkflowRef("secret", str, str))
    async def handler(_ctx: Context, value: str) -> str:
        if value == "secret 2":
            raise ValueError(value)
        return value

    async with Lives(handler) as lives:
        for number in (1, 2):
            claimed, _ = await lives.run(f"secret {number}", epoch=number)
            await rounds()

            assert (
                f"run {claimed.id} (secret) {'completed' if number == 1 else 'failed'}: epoch {number}" in caplog.text
            )

    assert "secret 1" not in caplog.text
    assert "secret 2" not in caplog.text


@pytest.mark.parametrize("races", [False, True])
async def test_a_handler_that_catches_everything_and_asks_again_for_ever_does_not_hold_the_others(races: bool) -> None:
    may_end = False

    async def handler(ctx: Context) -> str:
        while not may_end:
            with contextlib.suppress(BaseException):
                if races:
                    await ctx.first("race", ctx.sleep("nap", "1h"), ctx.sleep("long", "2h"))
                else:
                    await ctx.sleep("nap", "1h")
        return "dropped"

    async with Lives(bound(handler)) as lives:
        claimed = lives.begin()
        async with asyncio.timeout(10):
            while not (execution := lives.executor._executions[lives.executor.runs[claimed.id]]).is_hopeless:
                await asyncio.sleep(0.01)
        assert claimed.id not in lives.journal.moves

        may_end = True
        execution.interrupt()
        assert isinstance(await lives.journal.moved(claimed.id), Park)


async def test_a_sync_handler_that_catches_everything_leaves_the_interpreter_to_the_others() -> None:
    may_end = threading.Event()

    def handler(ctx: SyncContext) -> str:
        while not may_end.is_set():
            with contextlib.suppress(BaseException):
                ctx.sleep("nap", "1h")
        return "dropped"

    async with Lives(bound(handler)) as lives:
        claimed = lives.begin()
        async with asyncio.timeout(30):
            while not (execution := lives.executor._executions[lives.executor.runs[claimed.id]]).is_hopeless:
                await asyncio.sleep(0.01)
        refusals = execution.refusals
        await asyncio.sleep(0.3)
        assert execution.refusals <= refusals + 10

        may_end.set()
        assert isinstance(await lives.journal.moved(claimed.id), Park)


async def test_a_sync_handler_that_begins_to_wait_while_it_is_stopped_ends_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_executor, "UNWINDING_S", 3600)
    about = threading.Event()

    def handler(ctx: SyncContext) -> str:
        about.set()
        ctx.sleep("nap", "1h")
        return "awake"

    async with Lives(bound(handler)) as lives:
        claimed, _ = await lives.run()
        about.clear()
        again = lives.begin_again(claimed)
        execution = lives.executor._executions[lives.executor.runs[claimed.id]]
        while not about.is_set():
            await asyncio.sleep(0)
        time.sleep(0.05)  # the loop stands, so what the thread asks for comes behind the stop
        execution.stop(Released())

        async with asyncio.timeout(10):
            assert await lives.journal.moved(again.id) == GiveBack()
