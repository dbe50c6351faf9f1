"""Reminds customers of what they left in their basket: after three days, and again after a week, unless they buy."""

import msgspec

from kedge import EventRef, WorkflowRef
from kedge_worker import Context, workflow


class Basket(msgspec.Struct, frozen=True):
    """What a customer has left behind."""

    email: str
    articles: tuple[str, ...]


remind = WorkflowRef("remind-of-basket", Basket, str, key=lambda basket: basket.email)
bought = EventRef("bought")


@workflow(remind)
async def handle(ctx: Context, basket: Basket) -> str:
    """Wait for days, in no process's memory; a purchase ends it at any time."""
    for pause in ("3 days", "7 days"):
        who, _ = await ctx.first("wait", ctx.wait_for("bought", bought), ctx.sleep("pause", pause))
        if who == 0:
            return "bought"
        await ctx.step("mail", send_mail, basket, ctx.token(f"mail after {pause}"))
    return "given up"


sent: dict[str, str] = {}


async def send_mail(basket: Basket, idempotency_key: str) -> None:
    """Stands for a mail server that sends nothing twice under one key."""
    sent.setdefault(idempotency_key, basket.email)
