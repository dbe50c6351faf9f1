"""A person in the loop: an expense waits for its approval, for three days at most, and is paid or refused."""

from typing import Literal

import msgspec

from kedge import EventRef, WorkflowRef
from kedge_worker import Context, workflow


class Expense(msgspec.Struct, frozen=True):
    """What somebody wants to be paid back."""

    employee: str
    cents: int


class Decision(msgspec.Struct, frozen=True):
    """What the manager's form sends."""

    verdict: Literal["approved", "refused"]
    by: str


class Settlement(msgspec.Struct, frozen=True):
    """How it ended."""

    state: Literal["paid", "refused", "expired"]
    by: str | None = None


settle_expense = WorkflowRef("settle-expense", Expense, Settlement)
decided = EventRef("decided", Decision)


@workflow(settle_expense)
async def handle(ctx: Context, expense: Expense) -> Settlement:
    """
    Ask, wait, act.

    The decision may come in a second or in a day, while workers come and go. One that comes before the handler asks for
    it is kept; one that does not fit `Decision` is refused where it is sent.
    """
    await ctx.step("ask", ask_manager, expense)
    ctx.set_metadata(stage="waiting for a decision")
    decision = await ctx.wait_for("decision", decided, timeout="3 days", default=None)
    if decision is None:
        return Settlement("expired")
    if decision.verdict == "refused":
        return Settlement("refused", decision.by)
    await ctx.step("pay", pay, expense)
    return Settlement("paid", decision.by)


async def ask_manager(expense: Expense) -> None:
    """Stands for a mail with two links; each of them sends the event."""


async def pay(expense: Expense) -> str:
    """Stands for the bank."""
    return f"transfer of {expense.cents} to {expense.employee}"
