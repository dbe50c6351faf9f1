"""With the settings that we document every connection is encrypted to the server that is meant, or there is none."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from kedge.errors import UnavailableError
from kedge.refs import WorkflowRef
from kedge_client import AsyncClient, Client
from kedge_worker import Context, Worker, workflow
from kedge_worker._migrator import migrate
from kedge_worker._settings import WorkerSettings
from kedge_worker.testing import PostgresServer, PostgresUnavailableError, postgres_server
from tests.proof.security.certificates import HOST, Authority

HOW: Final = (
    "NOT RUN: no PostgreSQL with TLS. The embedded one is built without it; install the distribution's:"
    " apt-get install postgresql"
)

CONNECTIONS: Final = frozenset(
    {"kedge journal", "kedge control", "kedge lease", "kedge listener", "kedge transaction", "kedge-client"}
)
LOOK: Final = b"""
    select a.application_name, s.ssl from pg_stat_ssl s join pg_stat_activity a using (pid)
     where a.backend_type = 'client backend'
"""

pay = WorkflowRef("pay", int, int)


async def charge(conn: psycopg.AsyncConnection[Any], amount: int) -> int:
    ((encrypted,),) = await (await conn.execute("select ssl from pg_stat_ssl where pid = pg_backend_pid()")).fetchall()
    assert encrypted
    return amount


@workflow(pay)
async def handle_pay(ctx: Context, amount: int) -> int:
    await ctx.sleep("rest", 0)
    return await ctx.transaction("charge", charge, amount)


class Secured:
    """A server that takes nothing but TLS, by TCP, and shows the certificate that it is told to."""

    def __init__(self, server: PostgresServer) -> None:
        process: Any = server._process
        folder: Path = process._folder.make("tls")
        self._server = server
        self._give: Callable[[Path], None] = process._folder.give
        self.authority = Authority(folder, "authority")
        self.good = self.authority.issue("good", HOST)
        self.bad = {
            "of another host": self.authority.issue("name", "other.kedge.test"),
            "expired": self.authority.issue("expired", HOST, ended_days_ago=1),
            "of another authority": Authority(folder, "stranger").issue("stranger", HOST),
        }
        self.port = int(conninfo_to_dict(server.url)["port"] or 0)
        self._socket = make_conninfo(server.url, host=str(process._folder.socket))
        hba = process._folder.data / "pg_hba.conf"
        hba.write_text("hostnossl all all all reject\n" + hba.read_text())

    def show(self, files: tuple[Path, Path]) -> None:
        """Show this certificate from now on. Restarts: of a reload nobody knows when it has been followed."""
        for file in files:
            self._give(file)
        with psycopg.connect(self._socket, autocommit=True) as conn:
            for name, value in (("ssl_cert_file", files[0]), ("ssl_key_file", files[1]), ("ssl", "on")):
                conn.execute(f"alter system set {name} = '{value}'".encode())
        self._server.restart()

    def url(self, **settings: str | int) -> str:
        """How clients and workers are told to reach it, as documented; the name need not resolve."""
        given: dict[str, str | int] = {
            "host": HOST,
            "hostaddr": "127.0.0.1",
            "port": self.port,
            "sslmode": "verify-full",
            "sslrootcert": str(self.authority.root),
            "channel_binding": "require",
        }
        return make_conninfo(self._server.url, **{**given, **settings})


@pytest.fixture(scope="module")
def secured() -> Generator[Secured]:
    try:
        with postgres_server(15, fast=True, tcp=True, sources=("local",)) as server:
            migrate(server.url)
            yield Secured(server)
    except PostgresUnavailableError:
        pytest.skip(HOW)


async def test_every_connection_is_encrypted_with_the_documented_settings(secured: Secured) -> None:
    secured.show(secured.good)
    seen: dict[str, bool] = {}

    with Client.connect(secured.url()) as client, psycopg.connect(secured.url(), autocommit=True) as conn:
        async with Worker(secured.url(), workflows=[handle_pay]), AsyncClient.connect(secured.url()) as other:
            assert await (await other.start(pay(6))).result("30s") == 6
            assert await asyncio.to_thread(client.start(pay(7)).result, "30s") == 7
            async with asyncio.timeout(30):
                # The lease's connection opens with its first beat.
                while not seen.keys() >= CONNECTIONS:
                    for name, encrypted in conn.execute(LOOK).fetchall():
                        seen[name] = seen.get(name, True) and encrypted
                    await asyncio.sleep(0)

    assert all(seen.values())


@pytest.mark.parametrize("certificate", ["of another host", "expired", "of another authority"])
async def test_a_server_with_another_certificate_is_refused(secured: Secured, certificate: str) -> None:
    secured.show(secured.bad[certificate])

    await refused(secured.url())
    # It is the certificate that is refused: whoever does not look at it gets in.
    psycopg.connect(secured.url(sslmode="require", sslrootcert="/nowhere")).close()


async def test_an_authority_that_this_machine_does_not_know_is_refused(secured: Secured) -> None:
    secured.show(secured.good)

    await refused(secured.url(sslrootcert="system"))


async def test_a_proxy_that_denies_tls_gets_nothing(secured: Secured) -> None:
    secured.show(secured.good)
    with denying_proxy() as (port, heard):
        await refused(secured.url(port=port))
        assert heard
        assert all(message == SSL_REQUEST for message in heard)

        # What the setting guards from: without it the user's name goes out in clear.
        heard.clear()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(secured.url(port=port, sslmode="prefer", channel_binding="disable", connect_timeout=3))
        assert any(b"postgres" in message for message in heard)


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("postgresql://db.example/x", ["db.example"]),
        ("postgresql://a@db1.example,10.0.0.2:5433/x?sslmode=prefer", ["db1.example", "10.0.0.2"]),
        ("host=db.example sslmode=disable", ["db.example"]),
        ("postgresql://db.example/x?sslmode=verify-full", []),
        ("postgresql://db.example/x?sslmode=require", []),
        ("postgresql://localhost,127.0.0.1:5433,[::1]/x", []),
        ("postgresql:///x?host=/run/postgresql", []),
        ("host=@abstract", []),
        ("", []),
    ],
)
def test_a_worker_knows_which_hosts_it_may_reach_in_clear(url: str, hosts: list[str]) -> None:
    assert WorkerSettings(database_url=url).hosts_in_clear() == hosts


def test_the_settings_may_also_stand_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "db.example")
    assert WorkerSettings(database_url="").hosts_in_clear() == ["db.example"]

    monkeypatch.setenv("PGSSLMODE", "verify-full")
    assert WorkerSettings(database_url="").hosts_in_clear() == []


async def test_a_worker_says_once_that_it_may_go_in_clear(caplog: pytest.LogCaptureFixture) -> None:
    # A name that never resolves: RFC 6761.
    worker = Worker("postgresql://app:geheim@db.invalid/x", workflows=[handle_pay])
    async with asyncio.TaskGroup() as group:
        task = group.create_task(worker.run(signals=False))
        while not any("no database yet" in record.message for record in caplog.records):
            await asyncio.sleep(0)
        await worker.stop()
    assert task.done()

    (said,) = [record.getMessage() for record in caplog.records if "sslmode=verify-full" in record.getMessage()]
    assert "db.invalid" in said
    assert "geheim" not in caplog.text


def test_all_connections_of_a_worker_take_the_same_settings() -> None:
    url = f"postgresql://{HOST}/x?sslmode=verify-full&sslrootcert=system&channel_binding=require"
    settings = WorkerSettings(database_url=url)

    made = [name for name in dir(settings) if name.endswith("_conninfo") and not name.startswith("_")]
    assert len(made) >= 6
    for name in made:
        known = conninfo_to_dict(getattr(settings, name)())
        assert (known["sslmode"], known["sslrootcert"], known["channel_binding"]) == (
            "verify-full",
            "system",
            "require",
        )


async def refused(url: str) -> None:
    """Client, async client and worker get a typed error, and no connection."""
    with Client.connect(url, timeout="2s") as client, pytest.raises(UnavailableError):
        await asyncio.to_thread(client.start, pay(1))
    async with AsyncClient.connect(url, timeout="2s") as client:
        with pytest.raises(UnavailableError):
            await client.start(pay(1))
    with pytest.raises(UnavailableError):
        await Worker(url, workflows=[handle_pay]).run_once()


SSL_REQUEST: Final = b"\0\0\0\x08\x04\xd2\x16\x2f"


@contextlib.contextmanager
def denying_proxy() -> Generator[tuple[int, list[bytes]]]:
    """Stand between, say to everybody that the server has no TLS, and note what comes then."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    conn, _ = listener.accept()
                except OSError:
                    return
                with conn:
                    conn.settimeout(5)
                    with contextlib.suppress(OSError):
                        while message := conn.recv(4096):
                            heard.append(message)
                            if message != SSL_REQUEST:
                                break
                            conn.sendall(b"N")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1], heard
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()
