"""One PostgreSQL server of our own, from initdb to its removal, with the faults that tests need."""

import atexit
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote

import psutil
import psycopg

from kedge_worker.testing._errors import ServerStartError
from kedge_worker.testing._server_folder import ServerFolder
from kedge_worker.testing._server_processes import kill_server, resume_server, suspend_server

START_DEADLINE_S: Final = 60
STOP_DEADLINE_S: Final = 30
SOCKET_PORT: Final = 5432


class LocalServer:
    """
    A server with a data directory of its own, running from construction to `close`.

    Raises:
        ServerStartError: initdb or the server failed; `.output` has the last that it wrote.
    """

    def __init__(self, programs: Path, *, settings: Mapping[str, str], tcp: bool, in_memory: bool) -> None:
        self._owner = os.getpid()
        self._folder = ServerFolder(in_memory=in_memory)
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen: list[psutil.Process] = []
        self._password = secrets.token_hex(16)
        self._tcp = tcp
        self._port = _free_port() if tcp else SOCKET_PORT
        atexit.register(self.close)
        try:
            self._programs = self._folder.reachable(programs)
            self._initialise(settings)
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """The database `postgres`, by TCP if that was asked for, else by the socket in the server's folder."""
        if self._tcp:
            return f"postgresql://postgres:{self._password}@127.0.0.1:{self._port}/postgres"
        return f"postgresql://postgres@/postgres?host={quote(str(self._folder.socket), safe='')}&port={self._port}"

    @property
    def log(self) -> Path:
        """What the server wrote, of all its starts."""
        return self._folder.path / "log"

    def start(self) -> None:
        """Start the server and wait until it answers. Nothing happens if it runs."""
        if self._process is not None:
            return
        with self.log.open("ab") as log:
            command = [str(self._programs / "postgres"), "-D", str(self._folder.data)]
            self._process = self._folder.popen(command, output=log)
        deadline = time.monotonic() + START_DEADLINE_S
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=2).close()
                return
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.kill()
                    raise ServerStartError("postgres", self._last_lines()) from error
            # 40 to 100 ms in all, more after a crash, and there is nothing to wait on.
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop the server as an administrator would: transactions are rolled back, clients are told (57P01)."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_DEADLINE_S)
            self._process = None
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill every process of the server: clients see their sockets close, the next start recovers from the WAL."""
        if self._process is None:
            return
        kill_server(self._process.pid)
        self._process.wait()
        self._process = None
        # The number in it may belong to another process by the time that somebody reads it.
        (self._folder.data / "postmaster.pid").unlink(missing_ok=True)

    def freeze(self) -> None:
        """Suspend every process of the server: its sockets stay open, and nobody answers."""
        self._frozen = suspend_server(self._process.pid) if self._process is not None else []

    def thaw(self) -> None:
        """Let a frozen server run on."""
        resume_server(self._frozen)
        self._frozen = []

    def close(self) -> None:
        """Stop the server and remove all that there was of it. May be repeated."""
        if os.getpid() != self._owner:  # a forked child that leaves through atexit
            return
        atexit.unregister(self.close)
        self.thaw()
        self.stop()
        self._folder.remove()

    def _initialise(self, settings: Mapping[str, str]) -> None:
        secret = self._folder.path / "password"
        secret.write_text(self._password)
        self._folder.give(secret)
        command = [
            str(self._programs / "initdb"),
            "-D",
            str(self._folder.data),
            "-U",
            "postgres",
            "--pwfile",
            str(secret),
        ]
        command += ["--encoding=UTF8", "--locale=C", "--auth-local=trust", "--auth-host=scram-sha-256", "--no-sync"]
        initdb = self._folder.popen(command, output=subprocess.PIPE)
        output, _ = initdb.communicate()
        if initdb.returncode != 0:
            raise ServerStartError("initdb", output.decode(errors="replace").strip())
        secret.unlink()
        placement = {
            "listen_addresses": "127.0.0.1" if self._tcp else "",
            "port": str(self._port),
            "unix_socket_directories": str(self._folder.socket),
        }
        with (self._folder.data / "postgresql.conf").open("a") as conf:
            conf.writelines(f"{name} = '{value}'\n" for name, value in {**settings, **placement}.items())

    def _last_lines(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
