"""Tells the errors of Postgres apart by what they mean for a worker; the modules above need no driver for that."""

from __future__ import annotations

import logging
from typing import Final

from psycopg import Error as PostgresError
from psycopg import OperationalError as TroubleError

from kedge.redaction import redact
from kedge_worker._signals import LeaseLostError

__all__ = [
    "PostgresError",
    "TroubleError",
    "does_not_fit",
    "is_about_data",
    "is_gone",
    "is_lease_lost",
    "is_locked",
    "is_temporary",
    "lacks_privileges",
    "said",
]


class _Sayings(logging.Filter):
    """Lets errors say in log lines what is wrong, and neither data nor secrets."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(said(one) if isinstance(one, BaseException) else one for one in record.args)
        return True


# Of all modules here: what one of them logs of an error must not depend on its author's memory.
logging.getLogger("kedge.worker").addFilter(_Sayings())


def said(error: BaseException) -> str:
    """Answer what an error says: of Postgres' the primary message alone, for its details quote rows."""
    primary = error.diag.message_primary if isinstance(error, PostgresError) else None
    if primary is not None and isinstance(error, PostgresError):
        return redact(f"{primary} ({error.sqlstate})")
    return redact(str(error))


_LEASE_LOST: Final = "KE001"
_LOCKED: Final = "55P03"
_PRIVILEGES: Final = "42501"
# Demoted, in recovery, shutting down, crashed, starting.
_GONE: Final = frozenset(("25006", "55000", "57P01", "57P02", "57P03"))
# Rolled back for certain: a lost race, a deadline of the server.
_REPEATABLE: Final = frozenset(("40001", "40P01", "57014"))


def is_lease_lost(error: BaseException) -> bool:
    """The worker's row is gone: others have taken its runs back."""
    return isinstance(error, LeaseLostError) or (isinstance(error, PostgresError) and error.sqlstate == _LEASE_LOST)


def is_gone(error: PostgresError) -> bool:
    """The connection or the server is gone: what was asked may or may not have happened."""
    state = error.sqlstate
    return state is None or state[:2] == "08" or state in _GONE


def is_locked(error: PostgresError) -> bool:
    """Somebody else holds a row, longer than we wait for it; rolled back."""
    return error.sqlstate == _LOCKED


def is_temporary(error: PostgresError) -> bool:
    """Rolled back; the same again, a little later, may work: a lost race, or a server out of resources."""
    state = error.sqlstate
    return state is not None and (state in _REPEATABLE or state[:2] == "53")


def is_about_data(error: PostgresError) -> bool:
    """Something in the rows that were asked for or written is refused; rolled back, and a repeat fails again."""
    return not (
        is_lease_lost(error) or is_gone(error) or is_locked(error) or is_temporary(error) or does_not_fit(error)
    )


def does_not_fit(error: BaseException) -> bool:
    """The schema is missing or of another release, or the role may not do this: no repeat will help."""
    state = error.sqlstate if isinstance(error, PostgresError) else None
    return state is not None and state[:2] in ("42", "3F")


def lacks_privileges(error: BaseException) -> bool:
    """The role may not do this."""
    return isinstance(error, PostgresError) and error.sqlstate == _PRIVILEGES
