"""A model that has been told what to say, behind the interface that a real one has."""

import asyncio

from examples.ai_agent.agent import RateLimitedError, Reply, ToolCall


class StubModel:
    """Counts what it is asked, since real ones count money."""

    def __init__(self, replies: list[Reply | RateLimitedError]) -> None:
        self._replies = replies
        self.completions = 0
        self.tools: list[ToolCall] = []
        self.at_once = 0
        self._running = 0

    async def complete(self, messages: list[str]) -> Reply:
        """Answer what comes next."""
        self.completions += 1
        reply = self._replies.pop(0)
        if isinstance(reply, RateLimitedError):
            raise reply
        return _filled(reply, messages)

    async def call_tool(self, call: ToolCall) -> str:
        """Answer in capitals, after a moment."""
        self.tools.append(call)
        self._running += 1
        self.at_once = max(self.at_once, self._running)
        await asyncio.sleep(0.01)
        self._running -= 1
        return call.argument.upper()


def _filled(reply: Reply, messages: list[str]) -> Reply:
    """Let the last answer say what it has heard."""
    return Reply(f"{reply.text}: {'; '.join(messages[1:])}") if reply.text else reply
