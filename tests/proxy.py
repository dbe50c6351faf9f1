"""A wire between a client and the server that a test can cut, at the one moment that matters."""

from __future__ import annotations

import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Final

from psycopg.conninfo import conninfo_to_dict, make_conninfo

CHUNK: Final = 65536


class Proxy:
    """Passes everything on, until it is told otherwise."""

    def __init__(self, conninfo: str) -> None:
        given = {name: str(value) for name, value in conninfo_to_dict(conninfo).items()}
        host, port = given.get("host", "/var/run/postgresql"), given.get("port", "5432")
        self._server: tuple[str, int] | str = f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._closed = False
        self._refuses = False
        self._trigger = b""
        self._cuts = 0
        self.cuts_made = 0
        """How many answers were lost."""
        self.url: Final = make_conninfo(conninfo, host="127.0.0.1", port=self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def lose_answers(self, to: bytes, *, times: int = 1) -> None:
        """Cut the connection when the server answers to what contains these bytes: it is done, and nobody is told."""
        self._trigger, self._cuts = to, times

    def refuse(self) -> None:
        """Let nobody through from now on, and cut who is connected."""
        self._refuses = True
        self.cut()

    def cut(self) -> None:
        """Cut all connections."""
        for sock in self._open:
            _close(sock)

    def close(self) -> None:
        """Let go of everything."""
        self._closed = True
        _close(self._listener)
        self.cut()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refuses:
                _close(client)
                continue
            server = socket.socket(socket.AF_UNIX if isinstance(self._server, str) else socket.AF_INET)
            server.connect(self._server)
            self._open += [client, server]
            armed = threading.Event()
            threading.Thread(target=self._ask, args=(client, server, armed), daemon=True).start()
            threading.Thread(target=self._answer, args=(client, server, armed), daemon=True).start()

    def _ask(self, client: socket.socket, server: socket.socket, armed: threading.Event) -> None:
        with suppress(OSError):
            while data := client.recv(CHUNK):
                if self._cuts and self._trigger in data:
                    armed.set()
                server.sendall(data)
        _close(server)

    def _answer(self, client: socket.socket, server: socket.socket, armed: threading.Event) -> None:
        with suppress(OSError):
            while data := server.recv(CHUNK):
                if armed.is_set():
                    self._cuts -= 1
                    self.cuts_made += 1
                    break
                client.sendall(data)
        _close(client)
        _close(server)


@contextmanager
def proxy(conninfo: str) -> Generator[Proxy]:
    """A wire to this server; its `url` leads through it."""
    made = Proxy(conninfo)
    try:
        yield made
    finally:
        made.close()


def _close(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
