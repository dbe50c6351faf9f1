"""BaseExceptions with which the engine stops user code; never exported, never caught by ``except Exception``."""

from __future__ import annotations

import asyncio


class ClosedError(asyncio.CancelledError):
    """
    The run has left this worker or is about to: every call on its context raises this.

    A CancelledError, so that task groups and anyio treat it as a cancellation.
    """


class StubbornHandler(BaseException):  # a signal, not an error of the handler
    """The run has left, and its handler has been told so a thousand times: it catches every cancellation."""


class LeaseLostError(BaseException):
    """Another worker owns the run by now; nothing that is computed here may be kept."""


class ReplayMismatch(BaseException):  # a signal, not an error of the handler
    """The handler asks for something else than what the journal holds; `.reason` says it in words for operators."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class NotAStep(BaseException):  # a signal, not an error of the function
    """A function that was taken for a step's body has made a request for a child run; nothing is kept of that."""
