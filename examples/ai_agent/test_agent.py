"""Tools at once, limits that park, a person who looks at the draft: and nothing is paid for twice."""

import pytest

from examples.ai_agent.agent import (
    MODEL,
    Question,
    RateLimitedError,
    Reply,
    ToolCall,
    answer_question,
    handle,
    reviewed,
)
from examples.ai_agent.stub import StubModel
from kedge_client import Client
from kedge_worker import Worker
from kedge_worker.testing import Clock

TOOLS = (ToolCall("search", "tea"), ToolCall("search", "cups"), ToolCall("price", "tea"))


@pytest.fixture
def model() -> StubModel:
    """It wants three tools, is busy for ten minutes, and knows the answer then."""
    stub = StubModel([Reply(tool_calls=TOOLS), RateLimitedError(600), Reply("this I found")])
    MODEL[:] = [stub]
    return stub


async def test_every_call_is_made_once_although_the_run_leaves_memory(
    kedge_url: str, kedge_clock: Clock, model: StubModel
) -> None:
    """The rate limit parks the run; whoever takes it up again has the first reply and the tools' values."""
    with Client.connect(kedge_url) as client:
        run = client.start(answer_question(Question("What of tea?")))
        await Worker(kedge_url, workflows=[handle]).run_until_idle()
        assert run.status() == "waiting"
        assert (model.completions, len(model.tools), model.at_once) == (2, 3, 3)

        kedge_clock.advance("10m")
        await Worker(kedge_url, workflows=[handle]).run_until_idle()

        assert run.result(timeout=0) == "this I found: search(tea): TEA; search(cups): CUPS; price(tea): TEA"
        assert (model.completions, len(model.tools)) == (3, 3)


@pytest.mark.usefixtures("model")
async def test_a_person_may_change_the_draft(kedge_url: str, kedge_clock: Clock) -> None:
    """The draft is in the run's metadata, for whoever shows it."""
    with Client.connect(kedge_url) as client:
        run = client.start(answer_question(Question("What of tea?", review=True)))
        worker = Worker(kedge_url, workflows=[handle])
        await worker.run_until_idle()
        kedge_clock.advance("10m")
        await worker.run_until_idle()
        draft = client.get(run).metadata["draft"]
        run.send(reviewed(f"{draft}. Enjoy!"))
        await worker.run_until_idle()

        assert run.result(timeout=0).endswith("price(tea): TEA. Enjoy!")
