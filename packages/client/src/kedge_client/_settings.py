"""Where the database is, and how the client's own connections are made: pure, from arguments and environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final

import msgspec
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from kedge.codecs import PayloadCodec
from kedge.durations import Duration, parse_positive_duration
from kedge.errors import InvalidOptionError
from kedge.redaction import hide
from kedge.schema import check_schema_name
from kedge.shown import shown

DSN_VARIABLES: Final = ("KEDGE_DATABASE_URL", "DATABASE_URL")
SCHEMA_VARIABLE: Final = "KEDGE_SCHEMA"
MAX_CONNECTIONS: Final = 100

# "postgresql+psycopg://" is SQLAlchemy's way to name a driver; libpq knows nothing of it.
_SCHEME: Final = re.compile(r"postgres(?:ql)?(?:\+\w+)?://", re.IGNORECASE)


class ClientSettings(msgspec.Struct, frozen=True):
    """What a client was told about its way of working."""

    schema: str
    timeout_s: float
    """How long a statement may take; the server stops it then."""
    listen: bool
    """Whether results are pushed. Off, the client sends nothing that a transaction pooler would mind."""
    wake: bool
    """Whether starts ring the doorbell."""
    codec: PayloadCodec | None = None
    """Encrypts payloads."""


def client_settings(
    *, schema: str | None, timeout: Duration, listen: bool, wake: bool, codec: PayloadCodec | None = None
) -> ClientSettings:
    """
    Check what was given, and take the rest from the environment.

    Raises:
        InvalidOptionError: The schema's name cannot be one.
        InvalidDurationError: The timeout is none, or zero.
    """
    name = schema if schema is not None else os.environ.get(SCHEMA_VARIABLE) or "kedge"
    timeout_s = parse_positive_duration(timeout, option="timeout").total_seconds()
    return ClientSettings(schema=check_schema_name(name), timeout_s=timeout_s, listen=listen, wake=wake, codec=codec)


def check_max_connections(max_connections: int) -> int:
    """
    Return how many connections a client may open.

    Raises:
        InvalidOptionError: Not 1 to 100.
    """
    if type(max_connections) is not int or not 1 <= max_connections <= MAX_CONNECTIONS:
        raise InvalidOptionError(f"max_connections must be 1 to {MAX_CONNECTIONS}, not {shown(max_connections)}")
    return max_connections


def resolve_dsn(dsn: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """
    Return the DSN that was given, or the environment's, in libpq's form.

    Empty when there is none: libpq then goes by its own variables (PGHOST, PGSERVICE ...).

    Raises:
        InvalidOptionError: It cannot be read. The message does not repeat it: it may hold a password.
    """
    origin, given = _given(dsn, environment)
    given = _SCHEME.sub("postgresql://", given, count=1) if _SCHEME.match(given) else given
    try:
        known = conninfo_to_dict(given)
    except (psycopg.Error, UnicodeError):
        raise InvalidOptionError(
            f"{origin} cannot be read: write postgresql://user:password@host:5432/database or 'host=... dbname=...'"
        ) from None
    secrets = (known.get(name) for name in ("password", "sslpassword"))
    hide(os.environ.get("PGPASSWORD"), *(str(secret) for secret in secrets if secret))
    return given


def _given(dsn: object, environment: Mapping[str, str]) -> tuple[str, str]:
    if isinstance(dsn, str):
        return "the DSN", dsn
    if dsn is not None:
        raise InvalidOptionError(f"a DSN is text, not a {type(dsn).__name__}; a pool goes to the constructor")
    named = ((name, environment[name]) for name in DSN_VARIABLES if environment.get(name))
    return next(named, ("the DSN", ""))


def own_conninfo(dsn: str, settings: ClientSettings) -> str:
    """
    Return the DSN with what a client's own connections add; what it says itself stays.

    `statement_timeout` makes the server give up; keepalives and `tcp_user_timeout` find a dead network; a server that
    is alive and silent is found by the client's own deadline, since neither of them can. Of several hosts the one
    that takes writes is used, so that a client follows a failover.
    """
    given = conninfo_to_dict(dsn)
    added: dict[str, str | int] = {
        "application_name": "kedge-client",
        "connect_timeout": 5,
        "keepalives_idle": 15,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": round((settings.timeout_s + 5) * 1000),
    }
    if "PGTARGETSESSIONATTRS" not in os.environ:
        added["target_session_attrs"] = "read-write"
    if "PGAPPNAME" in os.environ:
        del added["application_name"]
    if "PGCONNECT_TIMEOUT" in os.environ:
        del added["connect_timeout"]
    kept = {name: value for name, value in added.items() if name not in given}
    if settings.listen:
        # What was given comes last and wins. Poolers refuse options at the start of a session.
        options = given.get("options") or os.environ.get("PGOPTIONS") or ""
        # A plan that was kept since the tables were empty would read them whole. Where there is no way but to read a
        # table, as with the few that sleep, Postgres before 18 takes it for so dear that it compiles the plan: 30 ms.
        pinned = f"-c statement_timeout={round(settings.timeout_s * 1000)} -c enable_seqscan=off -c jit=off"
        kept["options"] = f"{pinned} {options}".rstrip()
    return make_conninfo(dsn, **kept)
