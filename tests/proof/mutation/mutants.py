"""
Takes one guard at a time out of the SQL, by rule and not by hand: each condition of an `and`, each lock, each
`skip locked`, each `on conflict do nothing`, each `+ 1`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from kedge.schema import functions
from kedge_worker import _statements

SKIPPED: Final = (
    "engine/check_invariants.sql", "engine/clock.sql", "engine/names.sql", "engine/views.sql", "engine/notify.sql",
    "engine/notify_observers.sql", "engine/register_definitions.sql", "api/get_runs_v1.sql", "api/list_runs_v1.sql",
    "api/progress_v1.sql", "api/results_v1.sql", "api/steps_v1.sql", "api/watch_run_v1.sql", "api/ring_v1.sql",
)  # fmt: skip
"""What only looks, or only rings."""

STATEMENTS: Final = (
    "CLAIM", "KEEP", "OPEN_WAITS", "CLOSE_WAITS", "CONSUME_MAIL", "SEND_LETTERS", "KEEP_FAILURES", "LOCK_MOVING",
    "KEEP_TRANSACTION", "MIND_DEPENDENT", "START_ALONE", "SET_PROGRESS", "SET_METADATA", "WRITE_LOG",
)  # fmt: skip

# What finds a row by its name is no guard: the statement means another row without it.
_JOIN: Final = re.compile(r"\(?[\w.]+ = (?:[\w.]+|any \(\w+\)|any \(array ?\(.*|split_part\(.*|substr\(.*)\)?")
_FENCE: Final = re.compile(r"\bepoch\b|\bworker_id\b")

_LITERAL: Final = re.compile(r"--[^\n]*|'(?:[^']|'')*'")
_WORD: Final = re.compile(r"[a-z_]+|[();]", re.IGNORECASE)
_ENDS: Final = frozenset({
    "and", "or", "order", "group", "having", "limit", "for", "returning", "offset", "on", "union", "window", "then",
    "loop", "when", "else", "end", "do", "set", "from", "cross", "left", "join", "select", "insert", "update",
    "delete", "where",
})  # fmt: skip
_PLAIN: Final = [
    (re.compile(r"for (?:no key )?update(?: of \w+)?(?: skip locked)?|for key share"), ""),
    (re.compile(r" skip locked"), ""),
    (re.compile(r"on conflict do nothing"), ""),
    (re.compile(r"\+ 1\b"), "+ 0"),
]


class Mutant(NamedTuple):
    """`where` is a file of the schema, or a statement of the worker; `text` is the whole of it, without the guard."""

    where: str
    line: int
    guard: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.where}:{self.line}: {self.guard}"

    @property
    def is_file(self) -> bool:
        return "/" in self.where


def mutants() -> list[Mutant]:
    """All of them, in the order of the sources."""
    sources = [(name, text) for name, text in functions() if name not in SKIPPED]
    sources += [(name, str(getattr(_statements, name))) for name in STATEMENTS]
    return [mutant for where, text in sources for mutant in _mutants(where, text)]


def _mutants(where: str, text: str) -> Iterator[Mutant]:
    # Of the same length, so that places agree.
    bare = _LITERAL.sub(lambda found: re.sub(r"[^\n]", "~", found[0]), text)
    for start, end in _conditions(bare):
        yield _without(where, text, start, end, "true")
    for pattern, instead in _PLAIN:
        for found in pattern.finditer(bare):
            yield _without(where, text, found.start(), found.end(), instead)


def _without(where: str, text: str, start: int, end: int, instead: str) -> Mutant:
    guard = " ".join(text[start:end].split())
    return Mutant(where, text.count("\n", 0, start) + 1, guard, text[:start] + instead + text[end:])


def _conditions(bare: str) -> Iterator[tuple[int, int]]:
    """Where the conditions of each `where` stand, without its `or`s: those are alternatives, not guards."""
    for found in re.finditer(r"\bwhere\b|\band\b", bare):
        if found[0] == "and" and not _is_guard(bare, found.start()):
            continue
        start = found.end() + 1
        end, ends_with = _end(bare, start)
        condition = " ".join(bare[start:end].split())
        is_join = _JOIN.fullmatch(condition) and not _FENCE.search(condition)
        if condition and ends_with != "or" and not is_join:
            yield start, len(bare[:end].rstrip())


def _is_guard(bare: str, at: int) -> bool:
    """Not the second half of a `between`, and of a `where` or `if`."""
    before = bare[:at]
    opened = max(before.rfind(" where "), before.rfind("\n where "), before.rfind(" if "), before.rfind(" and "))
    return "between" not in before[max(opened, 0) :]


def _end(bare: str, start: int) -> tuple[int, str]:
    depth = 0
    for found in _WORD.finditer(bare, start):
        word = found[0].lower()
        if word == "(":
            depth += 1
        elif word == ")":
            if not depth:
                return found.start(), word
            depth -= 1
        elif word == "case":
            depth += 1
        elif word == "end" and depth:
            depth -= 1
        elif depth == 0 and (word == ";" or (word in _ENDS and not _is_part(bare, found.start(), word))):
            return found.start(), word
    return len(bare), ""


def _is_part(bare: str, at: int, word: str) -> bool:
    """`is distinct from` is an operator."""
    return word == "from" and bare[:at].rstrip().endswith("distinct")
