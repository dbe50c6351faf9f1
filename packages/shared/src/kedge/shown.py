"""A refused value, or somebody's error, as it stands in a message: short, on one line, whatever its own code does."""

from __future__ import annotations

from reprlib import Repr
from typing import Final

MAX_SHOWN: Final = 60
"""Characters."""
MAX_TOLD: Final = 200
"""Characters."""

_repr: Final = Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = MAX_SHOWN


def shown(value: object) -> str:
    """Answer the value's repr, cut in the middle when it is long, and its type when it has none."""
    try:
        text = _repr.repr(value)
    except Exception:  # noqa: BLE001  # the value's own code, or an int with too many digits
        return f"<{type(value).__qualname__}>"
    text = " ".join(text.split())
    half = MAX_SHOWN // 2 - 2
    return text if len(text) <= MAX_SHOWN + 2 else f"{text[:half]}...{text[-half:]}"


def told(error: BaseException) -> str:
    """Answer an error's class and message, cut to 200 characters."""
    try:
        message = " ".join(str(error).split())
    except Exception:  # noqa: BLE001  # its own code
        message = ""
    text = f"{type(error).__qualname__}: {message}" if message else type(error).__qualname__
    return text if len(text) <= MAX_TOLD else f"{text[:MAX_TOLD]}..."
