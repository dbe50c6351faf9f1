"""What went wrong, in kedge's own words: psycopg's errors by SQLSTATE."""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

import psycopg

from kedge.errors import (
    DatabaseError,
    InvalidOptionError,
    KedgeError,
    PrivilegesError,
    SchemaError,
    TransactionStateError,
    UnavailableError,
)
from kedge.redaction import redact
from kedge.schema import SCHEMA_VERSION


class Fate(Enum):
    """What became of a transaction whose connection is ours."""

    ROLLED_BACK = auto()
    """By the server, for the sake of another one: repeat it, here."""
    NOT_DONE = auto()
    """This server cannot at the moment: repeat it on a new connection."""
    UNKNOWN = auto()
    """No answer: settle by repeating it on a new connection."""
    REFUSED = auto()
    """For good."""


_ROLLED_BACK: Final = frozenset(("40001", "40P01"))
# 26000, 42P05 and 0A000 come from a pooler, or a DISCARD ALL, that knows nothing of what we have prepared.
_NOT_DONE: Final = frozenset(("25006", "57P03", "26000", "42P05", "0A000"))
_UNKNOWN: Final = frozenset(("57P01", "57P02", "57P05", "40003"))
_MISSING: Final = frozenset(("42P01", "42883", "3F000", "42703"))

# PgBouncer's, to whoever sends settings with the start of a session.
_POOLERS_WORDS: Final = "unsupported startup parameter"

CLOCK_OFF: Final = "KE004"
OVER_LIMIT: Final = "KE005"


def fate(error: psycopg.Error) -> Fate:
    """Tell what became of the transaction that this error ended."""
    state = error.sqlstate
    if state is None or state in _UNKNOWN or state.startswith("08"):
        return Fate.UNKNOWN if isinstance(error, psycopg.OperationalError) else Fate.REFUSED
    if state in _ROLLED_BACK:
        return Fate.ROLLED_BACK
    if state in _NOT_DONE or state.startswith("53"):
        return Fate.NOT_DONE
    return Fate.REFUSED


def refusal(error: psycopg.Error, schema: str) -> KedgeError:
    """Make the typed error of a transaction that was refused, or could not be done."""
    state = error.sqlstate
    if state is None:
        wanted = "; a pooler wants listen=False" if _POOLERS_WORDS in str(error) else ""
        return UnavailableError(f"the database was not reached: {first_line(error)}{wanted}")
    primary = error.diag.message_primary or first_line(error)
    if state in _MISSING:
        return SchemaError(0, SCHEMA_VERSION, f"run kedge-worker migrate --schema {schema}")
    if state == "42501":
        return PrivilegesError(f"{primary}; make the login a member of the client role of `kedge-worker roles`", state)
    if state in {CLOCK_OFF, OVER_LIMIT}:
        hint = error.diag.message_hint
        return InvalidOptionError(f"{primary}. {hint}" if hint else primary)
    if state in {"57014", "55P03"}:
        return UnavailableError("the database took too long and was told to stop; nothing was done", state)
    if state in _ROLLED_BACK or state in _NOT_DONE or state in _UNKNOWN or state[:2] in {"08", "53", "57"}:
        return UnavailableError(primary, state)
    if state[:2] in {"22", "54"}:
        # The server's own words may quote the data.
        return InvalidOptionError(f"the database refuses the data that it was given ({state})")
    return DatabaseError(primary, state)


def refusal_in_transaction(error: psycopg.Error, schema: str) -> KedgeError:
    """Do the same for a statement in a caller's transaction, which is lost by most errors."""
    state = error.sqlstate
    if state is None or state in _UNKNOWN or state.startswith("08"):
        return TransactionStateError(f"the connection of conn= broke: {first_line(error)}", state)
    if state in _ROLLED_BACK or state in {"25P02", "57014", "55P03"}:
        primary = error.diag.message_primary or "the transaction failed"
        return TransactionStateError(f"{primary}; roll the transaction back and repeat it", state)
    return refusal(error, schema)


def harmless(error: psycopg.Error) -> psycopg.Error | None:
    """Answer the error as the cause of ours, unless it would show data to whoever logs it: details quote rows."""
    return None if error.diag.message_detail or "parameters" in (error.diag.context or "") else error


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says: the rest of psycopg's is detail, position and context."""
    text = redact(str(error).strip())
    return text.partition("\n")[0] if text else type(error).__name__
