"""
The functions that clients call, called directly, as a client's login, with whatever their parameters' types can hold.

Each call does what it says or ends with an SQLSTATE of data or limits. Then a worker meets what has been left behind:
every run ends or waits with a reason, innocents end well, and a client can look at all of it.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, cast
from uuid import UUID, uuid4

import psycopg
from psycopg import sql

from kedge.errors import KedgeError
from kedge.event_refs import EventRef
from kedge.ids import new_run_id
from kedge.refs import WorkflowRef
from kedge.schema.privileges import CLIENT_FUNCTIONS
from kedge_client import Client
from kedge_worker import Context, Worker, workflow
from tests.proof.fuzz.zoo_values import TEXTS
from tests.proof.kit.lanes import amount, turn
from tests.proof.kit.plugin import Figure
from tests.proof.security.roles import Land

STATES: Final = ("KE", "22", "23", "40", "53", "54", "57014")
"""Our own; data; constraints; races; resources; limits; and a call that took too long was told to stop."""

Given = WorkflowRef[dict[str, int], Any]("given", dict[str, int], Any)
Waits = WorkflowRef[None, Any]("waits", None, Any)
Innocent = WorkflowRef[int, int]("innocent", int, int)
Go = EventRef[int]("go", int)


@workflow(Given)
async def given_handler(ctx: Context, value: dict[str, int]) -> Any:
    return await ctx.step("look", len, value)


@workflow(Waits)
async def waits_handler(ctx: Context) -> Any:
    await ctx.sleep("long", "30 days")
    return await ctx.wait_for("go", Go, topic="news")


@workflow(Innocent)
async def innocent_handler(ctx: Context, number: int) -> int:
    return await ctx.step("same", abs, number)


def texts() -> list[str | None]:
    """What can be sent as text at all: neither NUL nor half a surrogate."""
    return [None, *(text for text in TEXTS if "\0" not in text and text.encode("utf-8", "ignore").decode() == text)]


def values_of(type_: str, runs: Sequence[UUID]) -> list[Any]:
    """Literals of a type, as text that the server reads; None is null."""
    match type_:
        case "text":
            known = ["given", "waits", "go", "news", "default", "return", "raise", "cancel_old", "sleep:long", "x@y@z"]
            return [*texts(), *known, "y" * 401, "y" * 1_001, "y" * 3_000_000]
        case "text[]":
            return [
                None,
                "{}",
                "{NULL}",
                "{a,a}",
                '{"",NULL," "}',
                "{{a,b},{c,d}}",
                "[5:6]={a,b}",
                "{" + "a," * 3000 + "z}",
                "{" + "t" * 5_000 + "}",
            ]
        case "uuid":
            ids = ["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff", str(uuid4())]
            return [None, *ids, *(str(new_run_id()) for _ in range(8)), *map(str, runs), *map(str, runs)]
        case "uuid[]":
            mine = ",".join(map(str, runs))
            return [
                None,
                "{}",
                "{NULL}",
                f"{{{mine}}}",
                f"{{{mine},{mine}}}",
                f"{{{new_run_id()},{new_run_id()}}}",
                f"{{{{{new_run_id()}}},{{{new_run_id()}}}}}",
                "{" + ",".join(str(uuid4()) for _ in range(2000)) + "}",
            ]
        case "bytea":
            return [
                None,
                "",
                r"\x01",
                r"\x00",
                r"\x02c1",
                r"\x03",
                r"\xff00",
                r"\x017b7d",
                r"\x01ff",
                r"\x01" + "5b" * 5000,
                r"\x01226422",
                r"\x0137",
                r"\x01" + "20" * 100_000,
            ]
        case "bytea[]":
            return [None, "{}", "{NULL}", r'{"\\x01"}', r'{"\\x017b7d","\\x00"}', r'{"\\x017b7d",NULL}']
        case "integer" | "bigint":
            return [None, "0", "1", "-1", "2147483647", "-2147483648", "32767", "32768", "-32768", "-32769"]
        case "double precision":
            return [None, "0", "-1", "1", "NaN", "Infinity", "-Infinity", "1e300", "1e-300", "3e9", "86400"]
        case "timestamp with time zone":
            return [
                None,
                "infinity",
                "-infinity",
                "4713-01-01 BC",
                "0001-01-01",
                "294276-12-31",
                "1969-01-01",
                "2100-01-01",
            ]
        case "boolean":
            return [None, "true", "false"]
        case _:
            raise AssertionError(f"no values of type {type_}")


def functions(conn: psycopg.Connection[Any]) -> dict[str, list[tuple[str, str]]]:
    """The functions with their parameters' names and types."""
    rows = conn.execute(
        "select p.proname, coalesce(p.proargnames, '{}'), p.proargtypes::oid[]::regtype[]::text[] from pg_proc p"
        " where p.pronamespace = 'kedge'::regnamespace and p.proname = any (%s)",
        (list(CLIENT_FUNCTIONS),),
    ).fetchall()
    return {name: list(zip(names, types, strict=False)) for name, names, types in rows}


def called(
    conn: psycopg.Connection[Any], name: str, arguments: dict[str, tuple[str, Any]], done: Counter[str]
) -> str | None:
    """Call a function; say what is wrong with what it answered."""
    given = [
        sql.SQL("{} => {}::{}").format(sql.Identifier(parameter), sql.Placeholder(), sql.SQL(cast("Any", type_)))
        for parameter, (type_, _) in arguments.items()
    ]
    call = sql.SQL("select * from kedge.{}({})").format(sql.Identifier(name), sql.SQL(", ").join(given))
    try:
        conn.execute(call, [value for _, value in arguments.values()]).fetchall()
        done[name] += 1
    except psycopg.Error as error:
        state = error.sqlstate or "none"
        if not state.startswith(STATES):
            short = {key: str(value)[:50] for key, (_, value) in arguments.items()}
            return f"{name}{short}: {state} {error.diag.message_primary}"
    except (ValueError, OverflowError):
        done[name] += 1  # psycopg cannot load a time without end; the function has answered
    return None


async def test_no_call_of_a_function_leaves_anything_that_a_worker_stumbles_over(land: Land, figure: Figure) -> None:
    chance = random.Random(turn())
    handlers = (given_handler, waits_handler, innocent_handler)
    wrong: list[str] = []
    calls, done = 0, Counter[str]()
    with Client.connect(land.url) as client:
        handles: list[Any] = [
            client.start(Waits()),
            client.start(Given({"a": 1})),
            client.start(Given({}, delay="1 day")),
        ]
        await Worker(land.url, workflows=handlers).run_until_idle()
        runs = [handle.id for handle in handles]
        innocents = client.start_many([Innocent(number) for number in range(20)])

        with land.open() as owner:
            known = functions(owner)
        assert sorted(known) == sorted(CLIENT_FUNCTIONS)
        with land.open("client", statement_timeout="5s") as conn:
            for _ in range(amount(thin=6, full=120)):
                for name, parameters in known.items():
                    calls += 1
                    arguments = {
                        parameter: (type_, chance.choice(values_of(type_, runs))) for parameter, type_ in parameters
                    }
                    # Mostly what is sensible, so that not everything ends at its first parameter.
                    if chance.random() < 0.7:
                        arguments |= sensible(arguments, chance, runs)
                    if said := called(conn, name, arguments, done):
                        wrong.append(said)

        async with asyncio.timeout(120):
            await Worker(land.url, workflows=handlers, grace="1s").run_until_idle()

        for number, handle in enumerate(innocents):
            assert client.get(handle).status == "cancelled" or handle.result("0s") == number
        statuses = Counter[str]()
        for run, workflow_name, status, reason, has_waits in land.rows(
            "select a.id, a.workflow, a.status, a.reason, exists (select 1 from kedge.waits w where w.run_id = a.id) or"
            " a.due_at is not null from kedge.all_runs a"
        ):
            statuses[status] += 1
            is_ours = workflow_name.split("@")[0] in {"given", "waits", "innocent"}
            if status == "running" or (status == "waiting" and not reason and not has_waits):
                wrong.append(f"run {run} of {workflow_name}: {status} {reason}")
            if status == "pending" and is_ours and workflow_name in {"given", "waits", "innocent"}:
                queue = land.rows("select queue from kedge.runs where id = %s", run)
                if queue == [("default",)]:
                    wrong.append(f"run {run} of {workflow_name} was not executed")
            for look in (client.get, client.steps, client.progress):
                try:
                    look(run)
                except KedgeError:
                    pass
                except Exception as error:  # noqa: BLE001  # that is what is looked for
                    wrong.append(f"{look.__name__} of {run}: {error!r:.100}")
    figure("calls of SQL functions as a client", calls)
    assert done.total() > calls / 5, f"too few come behind the first check: {done}"
    assert not wrong, "\n".join([f"{len(wrong)} of {calls}, {dict(statuses)}", *wrong[:30]])


def sensible(
    arguments: dict[str, tuple[str, Any]], chance: random.Random, runs: Sequence[UUID]
) -> dict[str, tuple[str, Any]]:
    """Replace all but one or two of the values by such as a client gives."""
    odd = set(chance.sample(sorted(arguments), min(len(arguments), 2)))
    usual: dict[str, Any] = {
        "p_id": str(new_run_id()),
        "p_ids": f"{{{new_run_id()},{new_run_id()}}}",
        "p_workflow": chance.choice(["given", "waits", "given@2", "nobody's"]),
        "p_queue": "default",
        "p_priority": "0",
        "p_input": r"\x017b7d",
        "p_inputs": r'{"\\x017b7d","\\x017b7d"}',
        "p_on_conflict": "return",
        "p_strict": "false",
        "p_run": str(chance.choice(runs)),
        "p_letter": str(uuid4()),
        "p_event": "go",
        "p_payload": r"\x0137",
        "p_limit": "10",
        "p_channel": "kedge_c_fuzz",
        "p_full": "true",
        "p_backward": "false",
        "p_is_dependent": "false",
        "p_cascade": "false",
    }
    return {name: (type_, usual.get(name)) for name, (type_, _) in arguments.items() if name not in odd}


def test_the_check_sees_a_call_that_fails_in_another_way(land: Land) -> None:
    done = Counter[str]()
    with land.open("client") as conn:
        assert called(conn, "no_such_function", {}, done)
        assert called(conn, "end_runs", {}, done)
    assert not done


METAS: Final = (
    r"\x00",
    r"\x01",
    r"\x0137",
    r"\xff",
    "\\x01" + b'{"metadata": 7}'.hex(),
    "\\x01" + b'{"origin": "nobody"}'.hex(),
    "\\x01" + b'{"timeout_s": 1e300}'.hex(),
    "\\x01" + b'{"retry": {"max_attempts": -5, "initial_s": 1, "factor": 1, "maximum_s": 1, "jitter": true}}'.hex(),
)


async def test_runs_with_unreadable_terms_end_and_hide_no_others(land: Land) -> None:
    with land.open("client") as conn:
        for meta in METAS:
            for given in (r"\x017b7d", r"\x0137", ""):
                values: dict[str, Any] = {"p_id": new_run_id(), "p_input": given, "p_meta": meta}
                conn.execute(
                    "select kedge.start_run_v1(p_id => %(p_id)s, p_workflow => 'given', p_queue => 'default',"
                    " p_priority => 0, p_input => %(p_input)s::bytea, p_meta => %(p_meta)s::bytea, p_key => null,"
                    " p_key_hash => null, p_on_conflict => 'return', p_resource => null, p_delay_s => null,"
                    " p_start_at => null, p_tags => null, p_strict => false)",
                    values,
                )
    with Client.connect(land.url_of("client")) as client:
        innocent = client.start(Innocent(7))

        await Worker(land.url, workflows=[given_handler, innocent_handler]).run_until_idle()

        assert innocent.result("0s") == 7
        listed = client.list_runs(limit=100).items
        assert Counter(run.status for run in listed) == {"failed": 2 * len(METAS), "completed": len(METAS) + 1}
        assert all(client.get(run).id == run.id for run in listed)
