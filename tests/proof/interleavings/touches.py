"""
What a statement reads and what it locks or writes, table by table, by its text.

Two steps of different transactions can change places without a difference unless they lock or write the same table, or
one of them is the commit of what the other one reads: what is not committed yet is invisible. A whole table counts as
one thing, so more is taken for dependent than is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

from kedge.schema import migrations

_NOISE: Final = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'", re.DOTALL)
_NAMED: Final = re.compile(r"\bkedge\.(\w+)(\s*\()?")
_WRITTEN: Final = re.compile(r"\b(?:insert\s+into|update|delete\s+from)\s+kedge\.(\w+)", re.IGNORECASE)
_LOCKED: Final = re.compile(r"\bfor\s+(?:no\s+key\s+)?(?:update|share|key\s+share)\b", re.IGNORECASE)
_ADVISORY: Final = re.compile(r"\bpg_(?:try_)?advisory_\w+", re.IGNORECASE)
_VIEWS: Final = {"all_runs": ("runs", "finished")}

ADVISORY: Final = "(advisory locks)"
EVERYTHING: Final = "(everything)"


@dataclass(frozen=True, slots=True)
class Touch:
    """The tables of one step. What is written counts as read as well."""

    reads: frozenset[str] = frozenset()
    writes: frozenset[str] = frozenset()
    commits: bool = False
    """It ends its transaction: the writes are those of all of it."""

    def __bool__(self) -> bool:
        return bool(self.reads or self.writes)

    def commutes_with(self, other: Touch) -> bool:
        """Whether it makes no difference which of the two comes first."""
        if EVERYTHING in self.writes | other.writes:
            return False
        if self.commits and other.commits:
            return True
        if self.commits:
            return not other.sees(self.writes)
        if other.commits:
            return not self.sees(other.writes)
        return not self.writes & other.writes

    def sees(self, committed: frozenset[str]) -> bool:
        """Whether a commit in front of it may make a difference to it."""
        return bool(committed) and (EVERYTHING in self.reads or bool(committed & (self.reads | self.writes)))

    def with_snapshot(self) -> Touch:
        """The first statement of a REPEATABLE READ transaction: it reads for all of it."""
        return Touch(self.reads | {EVERYTHING}, self.writes)

    def within_snapshot(self) -> Touch:
        """A later one: what others commit changes only what it locks or writes."""
        return Touch(self.writes, self.writes, self.commits)


ALL: Final = Touch(frozenset((EVERYTHING,)), frozenset((EVERYTHING,)))


@cache
def tables() -> frozenset[str]:
    """Every table of the schema."""
    made = re.compile(r"create\s+(?:unlogged\s+)?table\s+kedge\.(\w+)", re.IGNORECASE)
    return frozenset(name for migration in migrations() for name in made.findall(migration.sql))


class Toucher:
    """
    Args:
        bodies: Of the functions that are one statement each: what they touch, their caller touches.
        stopping: The functions that stop in front of each of their own statements: calling one touches nothing.
    """

    def __init__(self, bodies: Mapping[str, str], stopping: frozenset[str]) -> None:
        self._bodies = bodies
        self._stopping = stopping
        self._known: dict[str, Touch] = {}
        self._under_way: set[str] = set()

    def of(self, text: str) -> Touch:
        """What a statement touches."""
        known = self._known.get(text)
        if known is None:
            known = self._known[text] = self._look(text)
        return known

    def _look(self, text: str) -> Touch:
        plain = _NOISE.sub("''", text).replace('"kedge".', "kedge.")
        if "pg_terminate_backend" in plain:
            return ALL
        reads: set[str] = set()
        writes: set[str] = set()
        for name, called in _NAMED.findall(plain):
            if called and name not in tables():
                if name in self._stopping:
                    continue
                if name not in self._bodies:
                    raise LookupError(f"nothing is known of the function {name}")
                if name not in self._under_way:
                    self._under_way.add(name)
                    inner = self.of(self._bodies[name])
                    self._under_way.discard(name)
                    reads |= inner.reads
                    writes |= inner.writes
            else:
                reads.update(_VIEWS.get(name, (name,) if name in tables() else ()))
        writes.update(name for name in _WRITTEN.findall(plain) if name in tables())
        if _LOCKED.search(plain):
            writes |= reads
        if _ADVISORY.search(plain):
            writes.add(ADVISORY)
        return Touch(frozenset(reads | writes), frozenset(writes))
