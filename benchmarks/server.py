"""The server that is measured: durable, with fresh databases, and with what it says of its own work."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Final, LiteralString

import psutil
import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from benchmarks.machine import Machine, this_machine
from kedge_worker._migrator import migrate
from kedge_worker.testing import PostgresServer, postgres_server

SETTINGS: Final = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "min_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    "max_connections": "200",
}
_WAL_MB: Final = 2000
_PREFIX: Final = "kedge_bench_"
_COMMITS: Final = 200


@dataclass(frozen=True)
class Reading:
    """What the server's counters say at one moment."""

    at: float
    """Seconds of this process's clock."""
    server_time: str
    """The database's clock, for comparisons there."""
    wal_bytes: int
    transactions: int
    """Of the measured database. Backends report theirs once a second at most."""
    cpu_s: float | None
    """Of all its processes; None where they are not on this machine."""

    def cpu_until(self, later: Reading) -> float | None:
        """Share of one core between two readings."""
        if self.cpu_s is None or later.cpu_s is None:
            return None
        return (later.cpu_s - self.cpu_s) / (later.at - self.at)


@dataclass(frozen=True)
class DeadRows:
    """Row versions of one database's tables."""

    made: int
    """That updates and deletes have left behind so far, vacuumed or not."""
    standing: int
    """That wait for vacuum, by the server's own estimate."""


class BenchServer:
    """A server, its databases and its counters. Counters are read from another database, so as not to be counted."""

    def __init__(self, server: PostgresServer) -> None:
        self._conn: Final = psycopg.connect(server.url, autocommit=True, prepare_threshold=None)
        self._server = server
        self._postmaster = _parent(self._conn.info.backend_pid, on_this_machine=server.is_ours)
        if server.is_ours:
            self._age()

    def close(self) -> None:
        self._conn.close()

    def fresh_database(self, name: str, *, schema: bool = True) -> str:
        """Drop and create a database, with kedge's schema in it or empty, and return its URL."""
        self.drop_database(name)
        self._conn.execute(sql.SQL("create database {}").format(sql.Identifier(_PREFIX + name)))
        url = self._server.database_url(_PREFIX + name)
        if schema:
            migrate(url)
        return url

    def drop_database(self, name: str) -> None:
        self._conn.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(_PREFIX + name)))

    def settle(self, url: str) -> None:
        """Statistics, clean pages and a checkpoint, so that no measurement pays for what was before it."""
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("vacuum analyze")
        self._conn.execute("checkpoint")

    def _age(self) -> None:
        """
        Have files for the WAL, as a server has that has run for a while: each that must be made takes 50 ms, in which
        nobody's commit goes on.
        """
        self._conn.execute(
            "select count(pg_logical_emit_message(false, '', repeat('x', 1000000))) from generate_series(1, %s)",
            (_WAL_MB,),
        )
        self._conn.execute("checkpoint")

    @contextmanager
    def without_autovacuum(self) -> Generator[None]:
        """
        Let nobody but the measured processes have transactions: autovacuum has some in each database it looks at.

        On a server of our own only: if this process is killed, somebody else's would be without it for good.
        """
        if not self._server.is_ours:
            yield
            return
        self._configure("alter system set autovacuum = off")
        try:
            yield
        finally:
            self._configure("alter system reset autovacuum")

    def _configure(self, statement: LiteralString) -> None:
        self._conn.execute(statement)
        self._conn.execute("select pg_reload_conf()")

    def read(self, url: str) -> Reading:
        row = self._conn.execute(
            """select clock_timestamp()::text, pg_current_wal_insert_lsn() - '0/0', xact_commit + xact_rollback
                 from pg_stat_database where datname = %s""",
            (conninfo_to_dict(url)["dbname"],),
        ).fetchone()
        assert row is not None
        return Reading(perf_counter(), row[0], int(row[1]), int(row[2]), self._cpu_s())

    def dead_rows(self, url: str) -> DeadRows:
        """What kedge's tables, or those of the bare loop, say of their dead rows. Backends report with their end."""
        with psycopg.connect(url, autocommit=True) as conn:
            row = conn.execute(
                "select coalesce(sum(n_tup_upd + n_tup_del), 0), coalesce(sum(n_dead_tup), 0) from pg_stat_user_tables"
            ).fetchone()
        assert row is not None
        return DeadRows(int(row[0]), int(row[1]))

    def describe(self) -> Machine:
        """The machine, the settings that matter, and what a commit costs here."""
        shown = ", ".join(f"{name}={self._setting(name)}" for name in ("fsync", "synchronous_commit", "shared_buffers"))
        version = self._setting("server_version").split()[0]
        return this_machine(postgres=version, settings=shown, commit_ms=self._commit_ms())

    def _setting(self, name: str) -> str:
        row = self._conn.execute("select current_setting(%s)", (name,)).fetchone()
        assert row is not None
        return str(row[0])

    def _commit_ms(self) -> float:
        with psycopg.connect(self.fresh_database("commit", schema=False), autocommit=True) as conn:
            conn.execute("create table t (n int)")
            begun = perf_counter()
            for _ in range(_COMMITS):
                conn.execute("insert into t values (1)")
            took = perf_counter() - begun
        self.drop_database("commit")
        return took / _COMMITS * 1000

    def _cpu_s(self) -> float | None:
        if self._postmaster is None:
            return None
        times = self._postmaster.cpu_times()
        total = times.user + times.system + times.children_user + times.children_system
        for child in self._postmaster.children():
            try:
                own = child.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += own.user + own.system
        return float(total)


@contextmanager
def bench_server() -> Generator[BenchServer]:
    """Start a server of our own, or use the one that the environment names."""
    with postgres_server(settings=SETTINGS) as found:
        server = BenchServer(found)
        try:
            yield server
        finally:
            server.close()


def _parent(backend_pid: int, *, on_this_machine: bool) -> psutil.Process | None:
    return psutil.Process(backend_pid).parent() if on_this_machine else None
