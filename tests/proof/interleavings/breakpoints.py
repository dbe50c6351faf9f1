"""
Breakpoints between the statements of the engine's PL/pgSQL functions: the same source text, with a stop in front of
each statement that touches the database.

At READ COMMITTED each statement of a VOLATILE function has a snapshot of its own, so that others may commit between
any two of them. SQL functions, and those that are STABLE, are one statement: they get no stops.

A stop is an ASSERT: unlike PERFORM it leaves FOUND and ROW_COUNT alone, which the next statement may look at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

from kedge.schema import functions
from tests.proof.interleavings.touches import Touch, Toucher

ARMED: Final = "kedge_proof.session"
"""The setting that arms a session: its number, from 1. Elsewhere stops do nothing."""

SCHEMA: Final = """
create schema kedge_proof;

-- Two locks take turns, so that the tester can hold the next one before the session has left this one. The place is
-- counted by a sequence, because a setting would go back with a subtransaction. The session's own lock_timeout is for
-- the locks of rows, not for this one.
create function kedge_proof.stop(p_function text, p_number int) returns boolean
language plpgsql set lock_timeout = 0 set client_min_messages = notice as $$
declare
    v_session int := nullif(current_setting('kedge_proof.session', true), '')::int;
    v_turn bigint;
begin
    if v_session is not null then
        v_turn := nextval(('kedge_proof.turn_' || v_session)::regclass);
        raise notice 'kedge_proof % % %', p_function, p_number, v_turn;
        perform pg_advisory_lock(v_session, (v_turn % 2)::int);
        perform pg_advisory_unlock(v_session, (v_turn % 2)::int);
    end if;
    return true;
end $$;
"""

_FUNCTION: Final = re.compile(
    r"create\s+(?:or\s+replace\s+)?function\s+kedge\.(?P<name>\w+)\s*\(.*?\bas\s+\$\$(?P<body>.*?)\$\$\s*;",
    re.DOTALL | re.IGNORECASE,
)
# Comments and quoted text first, so that nothing inside them is taken for a word.
_TOKEN: Final = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|\"[^\"]*\"|[A-Za-z_][\w$]*|[();]|\S", re.DOTALL)


class SplitError(Exception):
    """A body that the splitter does not know how to read."""


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement of a body: where it begins, and its text; of IF and FOR up to THEN and LOOP."""

    start: int
    text: str


@dataclass(frozen=True, slots=True)
class Function:
    """One function of the schema; `source` is its CREATE, `body` what stands between its dollars."""

    name: str
    source: str
    body: str

    @property
    def header(self) -> str:
        return self.source[: self.source.index("$$")]

    @property
    def is_split(self) -> bool:
        """Whether each of its statements has a snapshot of its own."""
        header = self.header.lower()
        return "plpgsql" in header and re.search(r"\b(stable|immutable)\b", header) is None


@cache
def sources() -> dict[str, Function]:
    """Every function of the schema."""
    found: dict[str, Function] = {}
    for _, text in functions():
        for match in _FUNCTION.finditer(text):
            if match["name"] in found:
                raise SplitError(f"two functions are called {match['name']}")
            found[match["name"]] = Function(match["name"], match[0], match["body"])
    return found


@cache
def toucher() -> Toucher:
    """Tells which tables a statement touches, by its text."""
    bodies = {f.name: f.body for f in sources().values() if not f.is_split}
    return Toucher(bodies, frozenset(f.name for f in sources().values() if f.is_split))


@cache
def places() -> Mapping[tuple[str, int], str]:
    """Every stop (function, number), and the statement behind it."""
    return {
        (function.name, number): statement.text
        for function in sources().values()
        if function.is_split
        for number, statement in enumerate(_stopped(function), 1)
    }


def touched_at(function: str, number: int) -> Touch:
    """What the statement behind a stop touches."""
    return toucher().of(places()[function, number])


def instrumented(function: Function) -> str:
    """The function's CREATE OR REPLACE with its stops."""
    body = function.body
    for number, statement in reversed([*enumerate(_stopped(function), 1)]):
        stop = f"assert kedge_proof.stop('{function.name}', {number}); "
        body = body[: statement.start] + stop + body[statement.start :]
    source = function.source.replace(function.body, body)
    return re.sub(r"^create\s+function", "create or replace function", source, flags=re.IGNORECASE)


def install(actors: int) -> str:
    """All of it as one script, for a database that has the schema under its usual name."""
    turns = "".join(f"create sequence kedge_proof.turn_{n};\n" for n in range(1, actors + 1))
    return SCHEMA + turns + "\n".join(instrumented(f) for f in sources().values() if f.is_split)


def statements(body: str) -> Iterator[Statement]:
    """
    The statements of a PL/pgSQL body, in the order of its text.

    One begins behind BEGIN, THEN, ELSE, LOOP and every semicolon of the block; THEN and ELSE of a CASE expression, and
    words in parentheses, are parts of a statement.

    Raises:
        SplitError: A construct that is not used in this schema so far.
    """
    tokens = [(m.start(), m[0].lower()) for m in _TOKEN.finditer(body) if not m[0].startswith(("--", "/*"))]
    at = 0
    while at < len(tokens) and tokens[at][1] != "begin":
        at += 1
    while at < len(tokens):
        start, word = tokens[at]
        if word in ("begin", "else", "loop", "exception"):
            at += 1
            continue
        if word in ("declare", "case", "<"):
            raise SplitError(f"{word!r} at the beginning of a statement is not read so far")
        until = {"if": "then", "elsif": "then", "when": "then", "for": "loop", "while": "loop", "foreach": "loop"}
        stop = until.get(word, ";")
        end = _behind(tokens, at, stop)
        if word not in ("end", "elsif", "when", "exit", "continue", "null"):
            yield Statement(start, body[start : tokens[end - 1][0]])
        at = end


def _behind(tokens: list[tuple[int, str]], at: int, stop: str) -> int:
    """The place behind the next `stop` outside of parentheses and CASE expressions."""
    depth = cases = 0
    for place in range(at, len(tokens)):
        word = tokens[place][1]
        if word == stop and depth == 0 and cases == 0:
            return place + 1
        depth += (word == "(") - (word == ")")
        if word == "case":
            cases += 1
        elif word == "end" and cases > 0:
            cases -= 1
        if depth < 0:
            raise SplitError(f"a parenthesis too many near {tokens[place]}")
    if tokens[at][1] == "end":  # of the function, without a semicolon
        return len(tokens)
    raise SplitError(f"a statement without {stop!r}: {tokens[at]}")


def _stopped(function: Function) -> list[Statement]:
    """The statements that get a stop: those that touch anything themselves; whom they call stops by itself."""
    return [s for s in statements(function.body) if toucher().of(s.text)]
