"""What the waits of a race share."""

from __future__ import annotations


class Race:
    """Of the waits of one race only one takes mail, or its time: what the others would have taken is kept for later."""

    __slots__ = ("is_decided",)

    def __init__(self) -> None:
        self.is_decided = False
