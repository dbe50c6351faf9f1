"""A word that stands nowhere by itself, and the search for it in whatever was written."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterable
from typing import Final

CANARY: Final = "kanarienvogel"


def forms(text: str) -> Iterable[bytes]:
    """How a text may stand in a log: as it is, as bytea in hex, as base64."""
    raw = text.encode()
    # Of base64 the middle, which is the same whatever stands around it.
    middles = (base64.b64encode(b"x" * shift + raw)[4 if shift else 0 : -4] for shift in range(3))
    return (raw, raw.hex().encode(), *middles)


def found_in(data: bytes, secrets: Iterable[str] = (CANARY,)) -> list[bytes]:
    """The places where a secret stands, with what is around it."""
    places: list[bytes] = []
    for secret in secrets:
        for form in forms(secret):
            at = data.lower().find(form.lower())
            if at >= 0:
                places.append(data[max(0, at - 150) : at + 100])
    return places


class Lines(logging.Handler):
    """Keeps what is logged, tracebacks included."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))
