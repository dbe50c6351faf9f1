"""
A plugin for pytest: every client that a test makes with `connect()` goes through PgBouncer in transaction mode, without
LISTEN; workers and the tests' own looks at the tables go straight to the server.

    KEDGE_PROOF_POOLER_LOG=log pytest -p tests.proof.chaos.through_pooler tests/integration/client
"""

from __future__ import annotations

import functools
import inspect
import os
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from kedge_client import AsyncClient, Client
from tests.proof.chaos.servers import debian_program

LOG_VARIABLE: Final = "KEDGE_PROOF_POOLER_LOG"
ABOUT_PUSH: Final = ("waiting(", "watchers", "observers", "pg_stat_activity")
CONFIGURATION: Final = """
[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 10
max_client_conn = 500
server_idle_timeout = 2
server_login_retry = 1
"""


class Pooler:
    """PgBouncer in front of one server; `settings` are lines for its configuration."""

    def __init__(self, host: str, port: str, *, password: str = "", settings: str = "") -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="kedge-pgbouncer-")
        folder = Path(self._folder.name)
        folder.chmod(0o755)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port: int = listener.getsockname()[1]
        text = CONFIGURATION.format(host=host, port=port, own_port=self.port)
        entry = f"* = host={host} port={port} user=postgres" + (f" password={password}" if password else "")
        text = text.replace(f"* = host={host} port={port}", entry)
        (folder / "pgbouncer.ini").write_text(text + settings)
        self.log = Path(os.environ.get(LOG_VARIABLE) or folder / "log")
        # It refuses to be root; whoever runs the server may use its socket.
        owner = Path(host).stat() if host.startswith("/") else os.stat(self._folder.name)
        user = owner.st_uid if owner.st_uid else 65534
        for path in (folder, folder / "pgbouncer.ini"):
            os.chown(path, user, -1)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [debian_program("pgbouncer"), str(folder / "pgbouncer.ini")],
                stdout=log,
                stderr=log,
                user=user if os.geteuid() == 0 else None,
            )
        self._wait()

    def url(self, conninfo: str) -> str:
        """The same database through the pooler."""
        given = conninfo_to_dict(conninfo)
        for name in ("host", "port", "options", "hostaddr"):
            given.pop(name, None)
        return make_conninfo("", **cast("dict[str, Any]", given), host="127.0.0.1", port=self.port)

    def close(self) -> None:
        """Stop it."""
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()

    def _wait(self) -> None:
        end = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert self._process.poll() is None, self.log.read_text()
                assert time.monotonic() < end, self.log.read_text()
                time.sleep(0.02)


class Detour:
    """Replaces `connect` of the clients."""

    def __init__(self) -> None:
        self._poolers: dict[tuple[str, str], Pooler] = {}
        self.detours = 0

    def install(self) -> None:
        for kind in (Client, AsyncClient):
            own: Any = kind
            own.connect = classmethod(self._wrapped(own.connect.__func__))

    def close(self) -> None:
        for pooler in self._poolers.values():
            pooler.close()

    def _wrapped(self, connect: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(connect)
        def detoured(kind: type, dsn: str | None = None, /, **options: Any) -> Any:
            url = self._through(dsn)
            if url is None:
                return connect(kind, dsn, **options)
            self.detours += 1
            return connect(kind, url, **{**options, "listen": False})

        return detoured

    def _through(self, dsn: str | None) -> str | None:
        given = conninfo_to_dict(dsn or "")
        host, port = str(given.get("host", "")), str(given.get("port", "5432"))
        # Only the tests' server: a proxy with faults, a closed port, or nothing at all is what the test is about.
        if not host.startswith("/") or not _is_socket(Path(host) / f".s.PGSQL.{port}"):
            return None
        if (host, port) not in self._poolers:
            self._poolers[host, port] = Pooler(host, port)
        return self._poolers[host, port].url(str(dsn))


def _is_socket(path: Path) -> bool:
    return path.exists() and stat.S_ISSOCK(path.stat().st_mode)


_detour: Final = Detour()


def pytest_configure() -> None:
    """Begin."""
    _detour.install()


def pytest_unconfigure() -> None:
    """End."""
    _detour.close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what waits until a client has registered for a push: none does here."""
    pushed = [item for item in items if any(word in _source(item) for word in ABOUT_PUSH)]
    config.hook.pytest_deselected(items=pushed)
    items[:] = [item for item in items if item not in set(pushed)]


def _source(item: pytest.Item) -> str:
    return inspect.getsource(item.obj) if isinstance(item, pytest.Function) else ""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many clients went through the pooler: none would prove nothing."""
    terminalreporter.write_line(f"through the pooler: {_detour.detours} clients")
