"""What a name may be: of a workflow, event, step, queue or tag; a key, a resource id."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Final

from kedge.errors import InvalidNameError
from kedge.shown import shown

MAX_NAME_BYTES: Final = 200
MAX_KEY_BYTES: Final = 255
"""Of idempotency keys and resource ids: an index entry must hold them beside other columns."""

STEP_SIGNS: Final = frozenset("~/#[]")
"""They build the keys of steps, so no step's id may contain them."""

VERSION_SIGN: Final = "@"
"""Stands between a workflow's name and its version."""

SOLO_LANE: Final = "!solo "
"""Before a queue's name: the lane of its runs whose workers died with them. The schema's functions know it too."""

# Controls, lone surrogates, line and paragraph separators: unreadable in a log, or refused by Postgres.
_REFUSED: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})


def check_name(what: str, name: object, *, limit: int = MAX_NAME_BYTES, without: frozenset[str] = frozenset()) -> str:
    """
    Return the name as a plain str, or refuse it.

    Args:
        what: What it names, for the error: "queue".
        name: Compared and kept as it is: no folding of case, no normalizing.
        limit: In bytes of UTF-8.
        without: Signs that it must not contain.

    Raises:
        InvalidNameError: It is no text, empty, too long, has blanks at an end, or contains a refused sign.
    """
    # Nearly every name takes this way: printable ASCII has one byte a character and no controls.
    if (
        type(name) is str
        and name.isascii()
        and name.isprintable()
        and 0 < len(name) <= limit
        and name[0] != " " != name[-1]
        and (not without or without.isdisjoint(name))
    ):
        return name
    if not isinstance(name, str):
        raise InvalidNameError(what, shown(name), f"is a {type(name).__name__}; give text")
    if problem := _problem(name, limit, without):
        raise InvalidNameError(what, name, problem)
    # A StrEnum's member is a str, but drivers know it as an Enum.
    return str.__str__(name)


def check_queue(name: object) -> str:
    """
    Return a queue's name, or refuse it.

    Raises:
        InvalidNameError: As `check_name`, and for what begins as the engine's own lanes do.
    """
    queue = check_name("queue", name)
    if queue.startswith(SOLO_LANE):
        raise InvalidNameError("queue", queue, f"begins with {SOLO_LANE!r}, as the engine's own lanes do; rename it")
    return queue


def solo_lane(queue: str) -> str:
    """Answer the lane of a queue's runs whose workers died with them."""
    return SOLO_LANE + queue


def check_key(what: str, key: object) -> str:
    """
    Return an idempotency key or a resource id, or refuse it; up to 255 bytes.

    Raises:
        InvalidNameError: As `check_name`.
    """
    return check_name(what, key, limit=MAX_KEY_BYTES)


def check_optional_key(what: str, key: object) -> str | None:
    """
    Do the same where None means that there is none.

    Raises:
        InvalidNameError: As `check_name`.
    """
    return None if key is None else check_key(what, key)


def check_step_id(step_id: object) -> str:
    """
    Return the id of a step or wait, or refuse it.

    Raises:
        InvalidNameError: As `check_name`, and for one of ~ / # [ ].
    """
    return _check_step_text(step_id) if type(step_id) is str else check_name("step", step_id, without=STEP_SIGNS)


# A handler names the same few steps in every run.
@lru_cache(maxsize=4096)
def _check_step_text(step_id: str) -> str:
    return check_name("step", step_id, without=STEP_SIGNS)


def _problem(name: str, limit: int, without: frozenset[str]) -> str | None:
    if not name:
        return "is empty; give it at least one character"
    for place, sign in enumerate(name[: limit + 1]):
        if (category := unicodedata.category(sign)) in _REFUSED:
            kind = {"Cc": "control character", "Cs": "lone surrogate"}.get(category, "line separator")
            return f"contains the {kind} U+{ord(sign):04X} at {place}; remove it"
    size = len(name.encode("utf-8", "surrogatepass"))
    if size > limit:
        return f"has {size:,} bytes, the limit is {limit}; shorten it, or use a hash of it"
    if name != name.strip():
        return "begins or ends with a blank; strip it"
    if refused := next((sign for sign in name if sign in without), None):
        return f"contains {refused!r}, which has a meaning of its own there; use another sign"
    return None
