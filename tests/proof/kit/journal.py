"""
What clients, workers and step bodies say of themselves, outside the database: one JSON line each.

A line is one write to a file that is opened for appending: it survives the death of its process, and no two mix.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec

SUFFIX: Final = ".journal"

Line: TypeAlias = dict[str, Any]
"""`what`, `at` (monotonic seconds, comparable on one machine), `who`, and the fields of its kind."""


class Journal:
    """
    Appends to `<folder>/<who>.journal`.

    What may be said: start, send, cancel with .invoke, .ok, .fail (not done) or .unknown; result.ok and result.failed;
    life and life.end of a handler, told (what it got, in order), body (a step's body begins), fault (what a test did).
    """

    def __init__(self, folder: Path, who: str) -> None:
        self.who = who
        self._file = os.open(folder / f"{who}{SUFFIX}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, what: str, /, **fields: object) -> None:
        """Add one line."""
        line = {"what": what, "at": time.monotonic(), "who": self.who, **fields}
        os.write(self._file, msgspec.json.encode(line) + b"\n")

    def close(self) -> None:
        os.close(self._file)


def read_journals(folder: Path) -> list[Line]:
    """All lines of all journals of a folder, by time."""
    return sorted(_lines(folder), key=lambda line: float(line["at"]))


def _lines(folder: Path) -> Iterator[Line]:
    for file in sorted(folder.glob(f"*{SUFFIX}")):
        for line in file.read_bytes().splitlines():
            yield msgspec.json.decode(line, type=dict[str, Any])
