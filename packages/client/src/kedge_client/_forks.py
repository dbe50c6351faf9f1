"""What must begin anew in a forked child, for a socket, a lock or a thread of the parent is of no use there."""

from __future__ import annotations

import os
import weakref
from typing import Final, Protocol


class Forkable(Protocol):
    """What can begin anew."""

    def after_fork(self) -> None:
        """Forget the parent's sockets, locks and threads; called in the child, before anything else runs there."""


_all: Final[weakref.WeakSet[Forkable]] = weakref.WeakSet()


def begin_anew_after_fork(forkable: Forkable) -> None:
    """Call `after_fork` in every child that is forked while the object lives."""
    _all.add(forkable)


def _after_fork() -> None:
    for forkable in list(_all):
        forkable.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
