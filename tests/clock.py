"""The database's clock, moved by tests instead of waiting."""

from datetime import timedelta

import psycopg
from psycopg import sql

# The same words as the schema's own, so that clock() is still inlined and an index still serves its predicates.
REPLACEMENT = """
    create or replace function {schema}.clock() returns timestamptz
    language sql stable parallel safe as $$ select now() + interval {offset} $$;

    create or replace function {schema}.instant() returns timestamptz
    language sql volatile parallel safe as $$ select clock_timestamp() + interval {offset} $$;
"""


class Clock:
    """
    Moves `clock()` and `instant()` of one test's database. Leases are not moved: they never use them.

    Only one clock for a database: each counts its own offset.
    """

    def __init__(self, database: str | psycopg.Connection, *, schema: str = "kedge") -> None:
        self._database = database
        self._schema = schema
        self.offset = timedelta()

    def advance(self, duration: timedelta | float) -> None:
        """Move the time by a duration; numbers are seconds. Statements that begin after the return see it."""
        self.offset += duration if isinstance(duration, timedelta) else timedelta(seconds=duration)
        microseconds = self.offset // timedelta(microseconds=1)
        statement = sql.SQL(REPLACEMENT).format(
            schema=sql.Identifier(self._schema), offset=sql.Literal(f"{microseconds} microseconds")
        )
        if isinstance(self._database, str):
            with psycopg.connect(self._database, autocommit=True) as connection:
                connection.execute(statement)
        else:
            self._database.execute(statement)
