"""How Postgres executes a statement: prepared as the engine prepares it, explained, and what its plan touches."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import psycopg
from psycopg import sql

GROWING: Final = frozenset(
    (
        "runs",
        "journal",
        "finished",
        "inbox",
        "inbox_failed",
        "run_keys",
        "run_tags",
        "watchers",
        "waits",
        "events",
        "run_log",
        "failures",
        "progress",
        "run_metadata",
        "observers",
        "removals",
    )
)
"""`workers` and `idle` have as many rows as there are processes: any plan is good there."""

_COMMENT: Final = re.compile(r"--[^\n]*")
_NAMED: Final = re.compile(r"%\((\w+)\)s")
_END: Final = re.compile(r";\s*\n|\n\s*loop\n")
_INTO: Final = re.compile(r"(?<!insert )\binto \w+(?:, \w+)*")


class Plan:
    """What EXPLAIN (ANALYZE, FORMAT JSON) says."""

    def __init__(self, explained: dict[str, Any]) -> None:
        self._nodes = list(_walk(explained["Plan"]))
        self._scans = [
            node for node in self._nodes if node.get("Relation Name") in GROWING and "Scan" in node["Node Type"]
        ]

    def __str__(self) -> str:
        return "\n".join(
            f"{node['Node Type']} on {node['Relation Name']} by {node.get('Index Name')}, condition"
            f" {node.get('Index Cond')}, filter {node.get('Filter')}: {_touched(node):g} rows"
            for node in self._scans
        )

    @property
    def scanned_whole(self) -> set[str]:
        """The growing tables that are read from one end to the other, whatever is in them."""
        return {str(node["Relation Name"]) for node in self._scans if node["Node Type"] == "Seq Scan"}

    @property
    def indexes(self) -> set[str]:
        return {str(node["Index Name"]) for node in self._nodes if "Index Name" in node}

    @property
    def blocks(self) -> int:
        """How many blocks of tables and indexes were looked at, also for dead entries, also inside of functions."""
        return int(self._nodes[0]["Shared Hit Blocks"] + self._nodes[0]["Shared Read Blocks"])

    @property
    def touched(self) -> int:
        """How many rows of growing tables were looked at, wanted or not."""
        return round(sum(_touched(node) for node in self._scans))


def numbered(statement: str) -> tuple[str, list[str]]:
    """Return a statement with $1 in the place of %(name)s, and the names in the order of their numbers."""
    names = list(dict.fromkeys(_NAMED.findall(statement)))
    return _NAMED.sub(lambda found: f"${names.index(found[1]) + 1}", statement), names


def inner_statement(conn: psycopg.Connection, function: str, beginning: str, variables: Sequence[str]) -> str:
    """
    Return one statement out of a function's source, as PL/pgSQL gives it to the planner: variables are parameters.

    Args:
        conn: To the database that has the function.
        function: Its name.
        beginning: How the statement begins in the source.
        variables: The names that become $1, $2, ... in this order.
    """
    row = conn.execute(
        "select prosrc from pg_proc where proname = %s and pronamespace = 'kedge'::regnamespace", (function,)
    ).fetchone()
    assert row is not None, f"there is no function {function}"
    source = _COMMENT.sub("", row[0]).replace('"kedge".', "kedge.")
    assert source.count(beginning) == 1, (
        f"{function} has {source.count(beginning)} statements that begin so: {beginning}"
    )
    text = _END.split(source[source.index(beginning) :])[0]
    text = re.sub(r"^(return query\s+select|\w+ :=|perform)\s", "select ", _INTO.sub("", text))
    for number, name in enumerate(variables, 1):
        text = re.sub(rf"(?<![.\w]){re.escape(name)}\b", f"${number}", text)
    return text


def prepare(conn: psycopg.Connection, name: str, statement: str, types: Sequence[str] = ()) -> None:
    """Prepare it on this connection, under whose settings it will be planned."""
    declared = f"({', '.join(types)})" if types else ""
    conn.execute(f"prepare {name} {declared} as {statement}".encode())


def explain(conn: psycopg.Connection, name: str, arguments: Sequence[object]) -> Plan:
    """
    Execute a prepared statement for its plan, and undo what it did.

    Twice, and the second counts: at the first a session reads catalogs, for the plans inside of functions too.
    """
    given = sql.SQL("({})").format(sql.SQL(", ").join(map(sql.Literal, arguments))) if arguments else sql.SQL("")
    query = sql.SQL("explain (analyze, buffers, format json) execute {} {}").format(sql.Identifier(name), given)
    row = None
    for _ in range(2):
        with conn.transaction(force_rollback=True):
            row = conn.execute(query).fetchone()
    assert row is not None
    return Plan(row[0][0])


def _walk(node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _walk(child)


def _touched(node: Mapping[str, Any]) -> float:
    removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    return float((node["Actual Rows"] + removed) * node["Actual Loops"])
