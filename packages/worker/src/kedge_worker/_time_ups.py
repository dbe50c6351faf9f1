"""The engine's own failures of steps and polls: time, or the number of checks, was up."""

from __future__ import annotations

from typing import ClassVar

from kedge.errors import StepTimedOutError, WaitTimeoutError
from kedge.failures import kind_of


class TimeUp(Exception):
    """What retry policies look at; it is kept under the name of the public error that handlers get for it."""

    kept_as: ClassVar[str]

    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class StepTimeUp(TimeUp, StepTimedOutError):
    """An attempt of a step has taken too long."""

    kept_as = kind_of(StepTimedOutError)


class PollTimeUp(TimeUp, WaitTimeoutError):
    """A poll has no time, or no check, left."""

    kept_as = kind_of(WaitTimeoutError)
