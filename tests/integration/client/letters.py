"""What the tests of the letters share: the events, the calls of all verbs, and runs in states that they meet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import msgspec
import psycopg

from kedge import EventRef

Verb: TypeAlias = Callable[..., Any]


class Payment(msgspec.Struct, frozen=True):
    order_id: str
    cents: int = 100


SETTLED: Final = EventRef("payment-settled", Payment)
ANSWERED: Final = EventRef("answered", int | None)
APPROVED: Final = EventRef("approved")

PAYMENT: Final = Payment("o-1")

VERBS: Final = ("send", "cancel", "pause", "resume", "retry", "fast_forward")


def call(client: Any, verb: str, run: Any) -> Callable[..., Any]:
    """A verb of a client about this run, without its other arguments."""

    def bound(**options: Any) -> Any:
        if verb == "send":
            return client.send(APPROVED(), run=run, **options)
        return getattr(client, verb)(run, **options)

    return bound


def call_handle(handle: Any, verb: str) -> Callable[..., Any]:
    """The same of a handle."""

    def bound(**options: Any) -> Any:
        return handle.send(APPROVED(), **options) if verb == "send" else getattr(handle, verb)(**options)

    return bound


def inbox(conn: psycopg.Connection) -> list[tuple[Any, ...]]:
    """(kind, slot, payload) of the unsorted letters, in order of arrival."""
    return conn.execute("select kind::text, slot, payload from kedge.inbox order by seq").fetchall()


def sort(conn: psycopg.Connection) -> None:
    """Let the courier go its way until nothing is left."""
    while conn.execute("select remaining from kedge.sort_inbox(500)").fetchone() == (True,):
        pass


def mail(conn: psycopg.Connection) -> list[tuple[str, bytes]]:
    """(slot, payload) of what runs have been sent and not read, in order of arrival."""
    return conn.execute("select slot, payload from kedge.events where consumed_seq is null order by seq").fetchall()


def acceptable(conn: psycopg.Connection, verb: str, run_id: Any) -> None:
    """Let the run be in a state in which the verb is accepted."""
    match verb:
        case "resume":
            # As the courier pauses a run in the queue.
            conn.execute(
                "update kedge.runs set state = 's', due_at = kedge.instant() where id = %s and state <> 's'", (run_id,)
            )
        case "fast_forward":
            conn.execute(
                "insert into kedge.waits (run_id, opened_at, due_at, kind, key)"
                " values (%s, now(), now() + '1 h', 'd', 'nap')",
                (run_id,),
            )
            conn.execute(
                "update kedge.runs set state = 'w', due_at = now() + '1 h', has_waits = true where id = %s", (run_id,)
            )
        case _:
            pass
