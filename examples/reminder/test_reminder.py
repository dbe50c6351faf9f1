"""A workflow of ten days, tested in milliseconds: the real engine, a real Postgres, and a clock that moves."""

import pytest

from examples.reminder import reminder
from examples.reminder.reminder import Basket, bought, handle, remind
from kedge_client import Client
from kedge_worker import Worker
from kedge_worker.testing import Clock

BASKET = Basket("ada@example.org", ("tea", "cups"))


@pytest.fixture(autouse=True)
def nothing_sent() -> None:
    """Forget the mails of other tests."""
    reminder.sent.clear()


async def test_two_mails_go_out_and_then_nothing(kedge_url: str, kedge_clock: Clock) -> None:
    """After three days, and after seven more."""
    worker = Worker(kedge_url, workflows=[handle])
    with Client.connect(kedge_url) as client:
        run = client.start(remind(BASKET))
        await worker.run_until_idle()
        assert len(reminder.sent) == 0

        kedge_clock.advance("3 days")
        await worker.run_until_idle()
        assert len(reminder.sent) == 1

        kedge_clock.advance("7 days")
        await worker.run_until_idle()
        assert run.result(timeout=0) == "given up"
        assert len(reminder.sent) == 2


async def test_who_buys_is_not_reminded_again(kedge_url: str, kedge_clock: Clock) -> None:
    """The event ends the wait whenever it comes."""
    worker = Worker(kedge_url, workflows=[handle])
    with Client.connect(kedge_url) as client:
        run = client.start(remind(BASKET))
        await worker.run_until_idle()
        kedge_clock.advance("4 days")
        await worker.run_until_idle()
        run.send(bought())
        await worker.run_until_idle()

        assert run.result(timeout=0) == "bought"
        assert len(reminder.sent) == 1
