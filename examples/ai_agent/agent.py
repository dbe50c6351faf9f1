"""An agent that answers questions with a language model and tools: each costly call is made once and kept."""

from typing import Protocol

import msgspec

from kedge import EventRef, WorkflowRef
from kedge_worker import Context, Retry, RetryAfter, step, workflow


class Question(msgspec.Struct, frozen=True):
    """What a user asks; a draft goes to a person first if it says so."""

    text: str
    review: bool = False


class ToolCall(msgspec.Struct, frozen=True):
    """What the model wants to know."""

    tool: str
    argument: str


class Reply(msgspec.Struct, frozen=True):
    """What the model says: the answer, or what it wants to know before."""

    text: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()


class RateLimitedError(Exception):
    """What a model's library raises when it is asked too often."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"again after {retry_after_s} s")
        self.retry_after_s = retry_after_s


class Model(Protocol):
    """The part of a model's library that is used here; `stub.py` has one for tests."""

    async def complete(self, messages: list[str]) -> Reply: ...

    async def call_tool(self, call: ToolCall) -> str: ...


answer_question = WorkflowRef("answer-question", Question, str)
reviewed = EventRef("reviewed", str)
MODEL: list[Model] = []


@step(retry=Retry(10, initial="1s", maximum="5m"), timeout="2m")
async def ask_model(messages: list[str]) -> Reply:
    """Ask once; a limit says itself how long to wait, which may park the run."""
    try:
        return await MODEL[0].complete(messages)
    except RateLimitedError as error:
        raise RetryAfter(error.retry_after_s, "the model is rate limited") from error


async def use_tool(call: ToolCall) -> str:
    """Use one tool; several are used at once."""
    return await MODEL[0].call_tool(call)


@workflow(answer_question, timeout="1 day")
async def handle(ctx: Context, question: Question) -> str:
    """Ask, use tools side by side, ask again: after a crash nothing that was paid for is paid for again."""
    messages = [question.text]
    reply = await ctx.step("ask", ask_model, messages)
    while reply.tool_calls:
        found = await ctx.map("tool", use_tool, reply.tool_calls)
        messages += [
            f"{call.tool}({call.argument}): {value}" for call, value in zip(reply.tool_calls, found, strict=True)
        ]
        reply = await ctx.step("ask", ask_model, messages)
    draft = reply.text or "I do not know."
    if question.review:
        ctx.set_metadata(draft=draft)
        return await ctx.wait_for("review", reviewed, timeout="12h", default=draft)
    return draft
