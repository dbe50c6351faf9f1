"""What the function of a poll answers when there is nothing to answer yet."""

from __future__ import annotations

import types
import typing
from typing import Any

from kedge.result_types import MISSING


class NotYet:
    """
    Returned by the function of `ctx.poll`: look again later. Anything else is the answer, None included.

    Args:
        state: What the next check gets as its keyword `state`, if the function has a parameter of this name. Up to
            64 KiB as JSON. None: nothing; the next check is called without it.
    """

    __slots__ = ("state",)

    def __init__(self, state: object = None, /) -> None:
        self.state = state

    def __repr__(self) -> str:
        return "NotYet()" if self.state is None else f"NotYet({self.state!r:.100})"


def without_not_yet(type_: Any) -> Any:
    """The type of an answer, of the type of a result."""
    if type_ is NotYet:
        return MISSING
    if typing.get_origin(type_) not in (typing.Union, types.UnionType):
        return type_
    members = typing.get_args(type_)
    answers = tuple(member for member in members if member is not NotYet)
    return typing.Union[answers] if 0 < len(answers) < len(members) else type_  # noqa: UP007  # of a tuple
