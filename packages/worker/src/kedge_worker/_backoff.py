"""Pauses that grow with every failure in a row, so that nothing that does not work is hammered."""

from __future__ import annotations

import asyncio
import random
from typing import Final

_FIRST_S: Final = 0.05


class Backoff:
    """A pause of 50 ms that doubles with every failure, up to the longest, and is forgotten by a success."""

    __slots__ = ("_longest_s", "next_s", "until")

    def __init__(self, longest_s: float = 5.0) -> None:
        self._longest_s = longest_s
        self.next_s = _FIRST_S
        """How long the next pause lasts at most."""
        self.until = 0.0
        """When the present pause is over, on the loop's clock."""

    @property
    def is_over(self) -> bool:
        return asyncio.get_running_loop().time() >= self.until

    def failed(self) -> None:
        """Begin a pause."""
        jitter = random.uniform(0.5, 1)  # noqa: S311
        self.until = asyncio.get_running_loop().time() + self.next_s * jitter
        self.next_s = min(self.next_s * 2, self._longest_s)

    def succeeded(self) -> None:
        self.next_s = _FIRST_S

    async def sleep(self) -> None:
        """Begin a pause and wait for its end."""
        self.failed()
        await asyncio.sleep(self.until - asyncio.get_running_loop().time())
