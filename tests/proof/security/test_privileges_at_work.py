"""With nothing but the rights of their roles clients, workers, admins and migrators do all that they have to."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from kedge import EventRef, NonRetryable, WorkflowRef
from kedge.errors import PrivilegesError
from kedge.schema.privileges import roles_sql
from kedge_client import Client
from kedge_worker import Context, Worker, workflow
from kedge_worker.__main__ import main
from kedge_worker._migrator import migrate
from kedge_worker.testing import PostgresServer
from tests.proof.security.roles import Land
from tests.proof.security.test_privileges import open_to_everybody, without_entry

go = EventRef("go", int)
everything = WorkflowRef("everything", int, int)
child = WorkflowRef("child", int, int)
failing = WorkflowRef("failing", None, int)


async def add(number: int) -> int:
    return number + 1


async def pay(conn: psycopg.AsyncConnection[Any], number: int) -> None:
    await conn.execute("insert into effects values (%s)", (number,))


@workflow(child)
async def run_child(ctx: Context, number: int) -> int:
    return await ctx.step("add", add, number)


@workflow(everything)
async def run_everything(ctx: Context, number: int) -> int:
    ctx.log.info("begins")
    ctx.progress(1, 4)
    ctx.set_metadata(a=1)
    number = await ctx.step("add", add, number)
    await ctx.transaction("paid", pay, number)
    number += await ctx.call("one", child(1))
    number += await ctx.call("keyed", child(2, key=f"k{number}"))
    number += sum(await ctx.map("many", child, [3, 4]))
    await ctx.sleep("nap", "1 ms")
    return number + await ctx.wait_for("go", go)


@workflow(failing)
async def run_failing(ctx: Context) -> int:
    del ctx
    raise NonRetryable("no")


@contextmanager
def working(land: Land) -> Generator[tuple[Client, Worker]]:
    with land.open() as conn:
        conn.execute("create table public.effects (n int)")
        conn.execute("grant insert on public.effects to proof_worker")
    worker = Worker(land.url_of("worker"), workflows=[run_everything, run_child, run_failing])
    with Client.connect(land.url_of("client")) as client:
        yield client, worker


async def test_client_worker_and_admin_do_their_work_with_their_rights_alone(land: Land) -> None:
    with working(land) as (client, worker):
        first = client.start(everything(1, key="first", tags=["a"], resource="r"))
        assert client.start(everything(1, key="first", tags=["a"], resource="r")).id == first.id
        others = client.start_many([child(n, key=f"n{n}") for n in range(3)])
        single = client.start(child(7, singleton="cancel_old"))
        assert single.id != client.start(child(8, singleton="cancel_old")).id
        lost = client.start(failing())
        await worker.run_until_idle()

        assert client.get(first).status == "waiting", client.get(first).error
        client.pause(first)
        await worker.run_until_idle()
        client.resume(first)
        first.send(go(5))
        client.retry(lost)
        await worker.run_until_idle()

        assert first.result(timeout="5 s") == 2 + 2 + 3 + 4 + 5 + 5
        assert [run.result(timeout="5 s") for run in others] == [1, 2, 3]
        again = client.rerun_from(first, "nap")
        waiting = client.start(everything(2))
        await worker.run_until_idle()
        assert client.fast_forward(waiting, 9)
        client.cancel(again, cascade=True)
        await worker.run_until_idle()

        assert waiting.result(timeout="5 s") > 0
        assert client.get(again).status == "cancelled"
        assert client.get(lost).status == "failed"
        assert client.progress(first).percent is not None
        assert client.steps(first)[0].key == "add"
        assert {run.id for run in client.list_runs(workflow=child).items} >= {run.id for run in others}
        assert client.count_runs(workflow=everything) == 3
        assert client.last(everything) is not None
        assert [event.kind for event in client.watch(first)] != []
    with land.open("admin") as conn:
        assert conn.execute("select * from kedge.check_invariants(history => true)").fetchall() == []
        for view in ("all_runs", "runs_view", "steps_view"):
            assert conn.execute(f"select * from kedge.{view}".encode()).fetchall() != []


def test_a_worker_ends_its_predecessor_and_nobody_elses_sessions(land: Land) -> None:
    me = uuid4()
    with land.open("worker") as old, land.open("worker") as new, land.open("client") as other:
        worker_row = (
            "insert into kedge.workers (id, lease_until, lease, started_at, protocol, name, queues, workflows)"
            " values (%s, now() + interval '1 h', interval '1 h', now(), 1, 'w', '{default}', '{}')"
        )
        new.execute(worker_row.encode(), (me,))
        mine = old.execute(
            "select pid, backend_start from pg_stat_activity where pid = pg_backend_pid()"
        ).fetchone() or (0, None)
        theirs = land.rows("select pid, backend_start from pg_stat_activity where pid = %s", other.info.backend_pid)[0]

        new.execute("select kedge.take_over_journal(%s, %s, %s)", (me, *theirs))
        assert other.execute("select 1").fetchone() == (1,)
        new.execute("select kedge.take_over_journal(%s, %s, %s)", (me, *mine))
        with pytest.raises(psycopg.OperationalError):
            old.execute("select 1")
        new.execute("delete from kedge.workers where id = %s", (me,))


# ---- upgrades -----------------------------------------------------------------------------------------------------


def test_a_migration_by_a_member_of_the_owner_keeps_owners_and_privileges(land: Land) -> None:
    with land.open() as conn:
        conn.execute("drop function kedge.waits_v1, kedge.sort_inbox, kedge.run_log_v1")
        conn.execute("grant execute on function kedge.ring_v1 to public")
        conn.execute("grant select on kedge.runs to public")
        conn.execute("update kedge.migrations set hash = 'of another release' where number = 0")

    with pytest.raises(PrivilegesError, match="grant kedge_owner to the login that migrates"):
        migrate(land.url_of("worker"))
    assert migrate(land.url_of("owner")) == ["functions and views"]

    with land.open() as conn:
        assert (without_entry(conn), open_to_everybody(conn)) == (set(), set())
        owners = conn.execute(
            "select distinct pg_get_userbyid(proowner)::text from pg_proc where pronamespace = 'kedge'::regnamespace"
        ).fetchall()
        assert owners == [("kedge_owner",)]
    with land.open("worker") as conn:
        conn.execute("select * from kedge.sort_inbox(1)")
    with land.open("client") as conn:
        conn.execute("select * from kedge.waits_v1(null, null)")


def test_roles_come_before_the_schema_or_behind_it_by_hand_or_by_command_as_often_as_one_likes(
    postgres: PostgresServer, logins: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    del logins
    for name in ("KEDGE_DATABASE_URL", "KEDGE_SCHEMA"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    with empty_database(postgres) as url, psycopg.connect(url, autocommit=True) as conn:
        assert main(["roles", "--sql", "--schema", "kedge"]) == 0
        script = capsys.readouterr().out
        conn.execute(script.encode())
        migrate(as_login(url, "proof_owner"))
        assert (without_entry(conn), open_to_everybody(conn)) == (set(), set())
        before = conn.execute(_ACCESS).fetchall()

        assert main(["roles", "--database-url", url, "--schema", "kedge"]) == 0
        conn.execute(script.encode())
        assert capsys.readouterr().out.startswith("installed kedge_owner, kedge_client")
        assert conn.execute(_ACCESS).fetchall() == before
    assert script == roles_sql("kedge")


def test_who_may_create_roles_and_owns_the_schema_installs_them_without_being_a_superuser(
    postgres: PostgresServer,
) -> None:
    schema, login = f"k_{uuid4().hex[:8]}", f"ops_{uuid4().hex[:8]}"
    with empty_database(postgres) as url, psycopg.connect(url, autocommit=True) as conn:
        conn.execute(f"create role {login} login createrole password 'proof'".encode())
        conn.execute(
            sql.SQL("grant create on database {} to {}").format(sql.Identifier(conn.info.dbname), sql.Identifier(login))
        )
        try:
            migrate(as_login(url, login), schema=schema)
            with psycopg.connect(as_login(url, login), autocommit=True) as ops:
                ops.execute(roles_sql(schema).encode())
                ops.execute(roles_sql(schema).encode())
            assert migrate(as_login(url, login), schema=schema) == []
            assert conn.execute(
                "select distinct pg_get_userbyid(relowner)::text from pg_class where relnamespace = %s::regnamespace",
                (schema,),
            ).fetchall() == [(f"{schema}_owner",)]
        finally:
            for name in (*(f"{schema}_{role}" for role in ("owner", "client", "worker", "admin")), login):
                conn.execute(f"drop owned by {name} cascade".encode())
                conn.execute(f"drop role {name}".encode())


_ACCESS = """
    select relname::text, relacl::text from pg_class where relnamespace = 'kedge'::regnamespace
    union all select proname::text, proacl::text from pg_proc where pronamespace = 'kedge'::regnamespace
    order by 1
"""


def as_login(url: str, name: str) -> str:
    return make_conninfo(url, user=name, password="proof")


@contextmanager
def empty_database(server: PostgresServer) -> Generator[str]:
    name = f"kedge_empty_{uuid4().hex[:12]}"
    with psycopg.connect(server.url, autocommit=True) as conn:
        conn.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        try:
            yield server.database_url(name)
        finally:
            conn.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def test_the_logins_of_the_page_on_roles_can_be_made_as_it_says(land: Land) -> None:
    page = (Path(__file__).parents[3] / "docs" / "how-to" / "roles.md").read_text("utf-8")
    (block,) = re.findall(r"^```sql\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    logins = re.findall(r"create role (\w+)", block)

    with land.open() as conn, conn.transaction(force_rollback=True):
        conn.execute(block.encode())
        members = {
            (str(login), str(role))
            for login, role in conn.execute(
                "select m.member::regrole::text, m.roleid::regrole::text from pg_auth_members m"
                " where m.member::regrole::text = any (%s)",
                (logins,),
            )
        }
        assert members == {
            ("shop_api", "kedge_client"),
            ("shop_worker", "kedge_worker"),
            ("shop_operator", "kedge_admin"),
            ("shop_migrator", "kedge_owner"),
        }
        settings = conn.execute("select rolconfig from pg_roles where rolname = 'shop_api'").fetchone()
    assert settings == (["statement_timeout=10s", "lock_timeout=5s", "idle_in_transaction_session_timeout=30s"],)
