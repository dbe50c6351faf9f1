"""What else is in the tables while something is measured: runs that have ended long ago, and runs that wait."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import psycopg

from benchmarks.workflows import one_step


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Runs of the workflow that is measured."""

    finished: int = 0
    waiting: int = 0

    @property
    def name(self) -> str:
        if self.finished:
            return f"beside {self.finished:,} finished runs"
        return f"beside {self.waiting:,} waiting runs" if self.waiting else "beside nothing"

    @property
    def database(self) -> str:
        return f"finished_{self.finished}" if self.finished else f"waiting_{self.waiting}"


ALONE: Final = Surroundings()

# The journal of a run that has ended: its input and one step; of one that waits: its input.
_FILL: Final = (
    """insert into kedge.journal (run_id, at, seq, epoch, took_ms, kind, key, value, meta)
       select {id}, now(), seq, seq, 0, case seq when 0 then 'i' else 's' end::"char", 'work', '\\x017b7d', ''
         from generate_series(1, {ended}) as n, generate_series(0, 1) as seq""",
    """insert into kedge.finished (id, ended_at, epoch, next_seq, rank, attempt, crashes, status, queue, workflow,
                                   output)
       select {id}, now(), 1, 2, 0, 0, 0, 'c', 'default', '{workflow}', '\\x017b7d'
         from generate_series(1, {ended}) as n""",
    """insert into kedge.journal (run_id, at, seq, epoch, took_ms, kind, key, value, meta)
       select {id}, now(), 0, 0, 0, 'i', '', '\\x017b7d', ''
         from generate_series({ended} + 1, {ended} + {waiting}) as n""",
    """insert into kedge.runs (id, since, due_at, state, queue, workflow)
       select {id}, now(), now() + interval '1 day' + n * interval '1 s', 'w', 'default', '{workflow}'
         from generate_series({ended} + 1, {ended} + {waiting}) as n""",
)
# In the order of time, and long ago.
_ID: Final = "('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid"


def fill(url: str, what: Surroundings) -> None:
    """Insert them."""
    with psycopg.connect(url, autocommit=True) as conn:
        for statement in _FILL:
            text = statement.format(id=_ID, ended=what.finished, waiting=what.waiting, workflow=one_step.qualified_name)
            conn.execute(text.encode())


def forget_the_ready(url: str) -> None:
    """Delete what the repetition before has left to do."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("delete from kedge.runs where state <> 'w'")
