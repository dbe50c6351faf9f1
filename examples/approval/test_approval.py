"""The three ways in which it can end, and the short cut for people who test by hand."""

import pytest

from examples.approval.approval import Decision, Expense, Settlement, decided, handle, settle_expense
from kedge import InvalidEventError
from kedge_client import Client
from kedge_worker import Worker
from kedge_worker.testing import Clock

EXPENSE = Expense("grace", 4_200)


async def test_an_approved_expense_is_paid(kedge_url: str) -> None:
    """The event carries who has decided."""
    worker = Worker(kedge_url, workflows=[handle])
    with Client.connect(kedge_url) as client:
        run = client.start(settle_expense(EXPENSE))
        await worker.run_until_idle()
        assert client.get(run).metadata == {"stage": "waiting for a decision"}

        run.send(decided(Decision("approved", by="ada")))
        await worker.run_until_idle()
        assert run.result(timeout=0) == Settlement("paid", "ada")


async def test_what_nobody_decides_expires(kedge_url: str, kedge_clock: Clock) -> None:
    """The three days are counted by the database."""
    worker = Worker(kedge_url, workflows=[handle])
    with Client.connect(kedge_url) as client:
        run = client.start(settle_expense(EXPENSE))
        await worker.run_until_idle()
        kedge_clock.advance("3 days")
        await worker.run_until_idle()

        assert run.result(timeout=0) == Settlement("expired")


async def test_fast_forward_stands_in_for_the_manager(kedge_url: str) -> None:
    """It ends the wait that is open, with data for the event."""
    worker = Worker(kedge_url, workflows=[handle])
    with Client.connect(kedge_url) as client:
        run = client.start(settle_expense(EXPENSE))
        await worker.run_until_idle()
        assert client.fast_forward(run, {"verdict": "refused", "by": "nobody"})
        await worker.run_until_idle()

        assert run.result(timeout=0) == Settlement("refused", "nobody")


def test_a_form_that_sends_nonsense_hears_it_at_once() -> None:
    """The type of the event says what fits."""
    with pytest.raises(InvalidEventError, match="verdict"):
        decided({"verdict": "maybe", "by": "ada"})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # the point
