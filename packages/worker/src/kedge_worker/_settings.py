"""The settings of a worker: keywords first, then `KEDGE_*` and `DATABASE_URL`; checked once, frozen."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

import msgspec
from psycopg import Error as PostgresError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from kedge import schema as kedge_schema
from kedge.durations import Duration, parse_duration
from kedge.errors import InvalidOptionError
from kedge.names import check_queue
from kedge.redaction import hide
from kedge_worker._retention import AnyRetention, Retention, check_retention, read_retention

# Engine connections: plans must not flip with the statistics, no statement may outlive the lease it works under, and
# what somebody has made in a schema of the path, such as an operator that fits better than ours, is not met. A bitmap
# knows no order and no LIMIT: with statistics of a moment in which nothing was ready, a claim would read all that is.
_PLANNER: Final = {
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "search_path": "pg_catalog,pg_temp",
}

# A standby has nothing to do for a worker: of several hosts the one that takes writes, and none until there is one.
_WRITABLE: Final = {"target_session_attrs": "read-write"}


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Durations in seconds."""

    database_url: str
    schema: str = "kedge"
    queues: tuple[str, ...] = ("default",)
    concurrency: int = 100
    threads: int = 32
    lease_s: float = 15.0
    poll_s: float = 2.0
    grace_s: float = 30.0
    listen: bool = True
    transaction_connections: int = 10
    retention: Retention | None = None
    """Of workflows that say nothing of their own; None: their ended runs are kept for ever."""

    def __post_init__(self) -> None:
        kedge_schema.check_schema_name(self.schema)
        if not self.queues:
            raise InvalidOptionError("queues= is empty: name at least one, such as queues=('default',)")
        _between("concurrency", self.concurrency, 1, 10_000)
        _between("threads", self.threads, 1, 1_000)
        _between("lease", self.lease_s, 0.3, 3600)
        _between("poll", self.poll_s, 0.05, 60)
        _between("grace", self.grace_s, 0, 86_400)
        _between("transaction_connections", self.transaction_connections, 1, 1_000)

    def __repr__(self) -> str:
        # Without the database's URL, which may hold a password: a repr ends up in logs.
        shown = (f"{name}={getattr(self, name)!r}" for name in self.__struct_fields__ if name != "database_url")
        return f"WorkerSettings({', '.join(shown)})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in self.__struct_fields__ if name != "database_url"]

    def hosts_in_clear(self) -> list[str]:
        """Answer the hosts beyond this machine that libpq may reach without TLS, as it does when nothing is said."""
        known = conninfo_to_dict(self.database_url)
        mode = known.get("sslmode") or os.environ.get("PGSSLMODE") or "prefer"
        if mode not in ("disable", "allow", "prefer"):
            return []
        hosts = str(known.get("host") or known.get("hostaddr") or os.environ.get("PGHOST") or "").split(",")
        # Empty, a folder or an abstract name: a unix socket.
        return [host for host in hosts if host and host[0] not in "/@" and not _is_here(host)]

    def journal_conninfo(self) -> str:
        """For the leased statements: nobody waits for a run's row longer than 50 ms."""
        return self._conninfo({**_PLANNER, "lock_timeout": "50ms"}, "journal")

    def control_conninfo(self) -> str:
        """For the courier, the sweeper, and what a worker says of itself."""
        return self._conninfo({**_PLANNER, "lock_timeout": "2s"}, "control")

    def starts_conninfo(self) -> str:
        """For children that start alone: one that has to wait for a caller must not hold up the others for long."""
        return self._conninfo({**_PLANNER, "lock_timeout": "250ms"}, "starts")

    def removal_conninfo(self) -> str:
        """For deletions: what a crash takes of them is deleted again, so nobody waits for the disk or a standby."""
        return self._conninfo({**_PLANNER, "lock_timeout": "2s", "synchronous_commit": "off"}, "removal")

    def beat_conninfo(self) -> str:
        """For the lease: a hung standby must not cost it."""
        return self._conninfo({**_PLANNER, "lock_timeout": "2s", "synchronous_commit": "local"}, "lease")

    def listen_conninfo(self) -> str:
        """For LISTEN: no deadline for a statement that waits."""
        return self._conninfo({}, "listener")

    def transaction_conninfo(self) -> str:
        """For transactional steps: the application's SQL, so nothing is pinned."""
        # A pool opens one connection after the other: one that hangs must not keep the next ones from being tried.
        is_said = "connect_timeout" in conninfo_to_dict(self.database_url) or "PGCONNECT_TIMEOUT" in os.environ
        patience = {} if is_said else {"connect_timeout": "5"}
        return make_conninfo(
            self.database_url,
            application_name="kedge transaction",
            **patience,
            **_WRITABLE,
            **_keepalives(self.lease_s),
        )

    def _conninfo(self, options: Mapping[str, str], what: str) -> str:
        third_ms = f"{int(self.lease_s * 1000 / 3)}ms"
        options = {
            "default_transaction_isolation": "read committed",
            "statement_timeout": "10s",
            "idle_in_transaction_session_timeout": third_ms,
            "client_encoding": "utf8",
            "tcp_user_timeout": third_ms,
            **options,
        }
        own = str(conninfo_to_dict(self.database_url).get("options") or "")
        flags = " ".join(f"-c {key}={value.replace(' ', chr(92) + ' ')}" for key, value in options.items())
        return make_conninfo(
            self.database_url,
            application_name=f"kedge {what}",
            options=f"{own} {flags}".strip(),
            **_WRITABLE,
            **_keepalives(self.lease_s),
        )


def database_url(given: str | None) -> str:
    """
    The given one, `KEDGE_DATABASE_URL`, `DATABASE_URL`, else libpq's own; forms of other drivers are understood.

    Its password is taken out of error texts from here on.

    Raises:
        InvalidOptionError: It cannot be read. The message does not repeat it: it may hold a password.
    """
    url = given or os.environ.get("KEDGE_DATABASE_URL") or os.environ.get("DATABASE_URL") or ""
    scheme, separator, rest = url.partition("://")
    if separator and scheme.split("+")[0] in ("postgres", "postgresql"):
        return _readable(f"postgresql://{rest}")
    return _readable(url)


def make_settings(
    url: str | None,
    *,
    schema: str | None,
    queues: Sequence[str] | None,
    concurrency: int | None,
    threads: int | None,
    lease: Duration | None,
    poll: Duration | None,
    grace: Duration | None,
    listen: bool | None,
    transaction_connections: int | None,
    retention: AnyRetention | None,
) -> WorkerSettings:
    """Keywords first, then the environment, then the defaults."""
    given: dict[str, object] = {
        "schema": schema,
        "queues": None if queues is None else ",".join(queues),
        "concurrency": concurrency,
        "threads": threads,
        "lease_s": lease,
        "poll_s": poll,
        "grace_s": grace,
        "listen": listen,
        "transaction_connections": transaction_connections,
        "retention": check_retention(retention),
    }
    values: dict[str, object] = {"database_url": database_url(url)}
    for name, keyword in given.items():
        option = name.removesuffix("_s")
        value = os.environ.get(f"KEDGE_{option.upper()}") if keyword is None else keyword
        if value is None:
            continue
        if name == "retention":
            values[name] = read_retention(value) if isinstance(value, str) else value
        elif name == "queues":
            values[name] = tuple(check_queue(queue.strip()) for queue in str(value).split(",") if queue.strip())
        elif isinstance(value, (timedelta, str, int, float)) and name.endswith("_s"):
            values[name] = parse_duration(value, option=option).total_seconds()
        else:
            values[name] = value
    try:
        return msgspec.convert(values, WorkerSettings, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidOptionError(f"worker settings: {error}") from error


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _readable(url: str) -> str:
    try:
        known = conninfo_to_dict(url)
    except (PostgresError, UnicodeError):
        raise InvalidOptionError(
            "the database's URL cannot be read: write postgresql://user:password@host:5432/database"
            " or 'host=... dbname=...'"
        ) from None
    secrets = (known.get(name) for name in ("password", "sslpassword"))
    hide(os.environ.get("PGPASSWORD"), *(str(secret) for secret in secrets if secret))
    return url


def _keepalives(lease_s: float) -> dict[str, str]:
    return {
        "keepalives_idle": "5",
        "keepalives_interval": "2",
        "keepalives_count": "3",
        "tcp_user_timeout": str(int(lease_s * 1000 / 3)),
    }


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InvalidOptionError(f"{name}={value:g} is out of range: {low:g} to {high:g}")
