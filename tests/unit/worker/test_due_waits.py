"""A wait whose time came while its run was parked ends at the next claim, also where nobody has a slot to spare."""

from kedge_worker._context import Context
from kedge_worker._outcomes import Park
from kedge_worker._sync_context import SyncContext
from tests.unit.worker.journal import Lives, bound


async def test_a_wait_that_is_due_at_the_claim_is_served_and_not_parked_again() -> None:
    async def handler(ctx: Context) -> str:
        await ctx.sleep("an-hour", "1h")
        return "awake"

    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run()
        assert isinstance(move, Park)
        lives.journal.now_s += 1800
        assert isinstance(await lives.again(claimed), Park)
        lives.journal.now_s += 1800

        assert lives.result(await lives.again(claimed)) == "awake"


async def test_a_sync_handler_that_only_waits_is_parked_too() -> None:
    def handler(ctx: SyncContext) -> str:
        ctx.sleep("an-hour", "1h")
        return "awake"

    async with Lives(bound(handler)) as lives:
        claimed, move = await lives.run()
        assert isinstance(move, Park)
        lives.journal.now_s += 3600

        assert lives.result(await lives.again(claimed)) == "awake"
