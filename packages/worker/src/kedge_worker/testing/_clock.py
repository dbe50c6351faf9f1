"""The database's clock, moved by tests instead of waiting."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import psycopg
from psycopg import sql

from kedge.durations import Duration, parse_duration

# The same words as the schema's own, so that clock() is still inlined and an index still serves its predicates.
_REPLACEMENT: Final = """
    create or replace function {schema}.clock() returns timestamptz
    language sql stable parallel safe as $$ select now() + interval {offset} $$;

    create or replace function {schema}.instant() returns timestamptz
    language sql volatile parallel safe as $$ select clock_timestamp() + interval {offset} $$;
"""


class Clock:
    """
    Moves the time by which the runs of a test's database wait: sleeps, timeouts, deadlines, retries, delayed starts.

    Leases of workers are not moved: they never use this clock. Only one clock for a database: each counts its own
    offset.
    """

    def __init__(self, database: str | psycopg.Connection, *, schema: str = "kedge") -> None:
        """
        Args:
            database: Of a test, never another one: two functions of its schema are replaced. A URL, or a connection.
            schema: Where kedge's tables live.
        """
        self._database = database
        self._schema = schema
        self.offset = timedelta()

    def advance(self, duration: Duration) -> None:
        """
        Move the time on. What begins after the return sees it.

        Raises:
            InvalidDurationError: It is no duration.
        """
        self.offset += parse_duration(duration, option="advance")
        microseconds = self.offset // timedelta(microseconds=1)
        statement = sql.SQL(_REPLACEMENT).format(
            schema=sql.Identifier(self._schema), offset=sql.Literal(f"{microseconds} microseconds")
        )
        if isinstance(self._database, str):
            with psycopg.connect(self._database, autocommit=True) as connection:
                connection.execute(statement)
        else:
            self._database.execute(statement)
