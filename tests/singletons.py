"""What stands in the tables of singletons, for the tests of them."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from tests import moves
from tests.sessions import Session

POLICIES: Final = ("raise", "return", "cancel_old")


def letters(session: Session, kind: str) -> list[tuple[Any, ...]]:
    """Letters of a kind, in order of arrival: to which run, from whom, about what."""
    return session.rows("select run_id, sender, slot, reason from kedge.inbox where kind = $1 order by seq", (kind,))


def gates(session: Session) -> list[UUID]:
    """The runs behind a gate."""
    return [run for (run,) in session.rows("select run_id from kedge.waits where kind = 'g' and key = '' order by 1")]


def holders(session: Session) -> list[tuple[str, str, UUID]]:
    """By workflow and key; of all resources."""
    return session.rows("select workflow, key, run_id from kedge.singletons order by 1, 2")


def active(session: Session) -> list[UUID]:
    """The live runs that are singletons and behind no gate."""
    return [
        run
        for (run,) in session.rows(
            "select r.id from kedge.runs r where r.is_singleton"
            " and not exists (select 1 from kedge.waits w where w.run_id = r.id and w.kind = 'g') order by 1"
        )
    ]


def of(answer: moves.Started) -> UUID:
    assert answer.run is not None
    return answer.run
