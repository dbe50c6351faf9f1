"""A hundred thousand runs that wait for something far away cost a worker that has nothing to do nothing."""

import asyncio

import psycopg

from kedge import EventRef, WorkflowRef
from kedge_client import Client
from kedge_worker import Context, Worker, workflow

PARKED = 100_000
LOOKS = 10

parked = WorkflowRef("parked", None, str)
never = EventRef("never", str)


@workflow(parked)
async def wait_for_long(ctx: Context) -> str:
    """Waits for an event, for ten years at most."""
    return await ctx.wait_for("never", never, timeout="3650 days", default="")


def multiply(conn: psycopg.Connection) -> None:
    """Of the one parked run a hundred thousand, with everything that a park leaves behind."""
    for table, own in (("journal", "run_id"), ("runs", "id"), ("waits", "run_id")):
        columns = [
            str(name)
            for (name,) in conn.execute(
                """select attname from pg_attribute
                    where attrelid = %s::regclass and attnum > 0 and not attisdropped and attgenerated = ''
                    order by attnum""",
                (f"kedge.{table}",),
            )
        ]
        changed = {
            own: f"(lpad(to_hex(n), 8, '0') || substr({own}::text, 9))::uuid",
            **({"seq": "nextval('kedge.runs_seq')"} if table == "runs" else {}),
        }
        values = ", ".join(changed.get(name, name) for name in columns)
        conn.execute(
            f"""insert into kedge.{table} ({", ".join(columns)})
                select {values} from kedge.{table}, generate_series(2, {PARKED}) as n""".encode()
        )
    conn.execute("vacuum analyze")


def rows_read(conn: psycopg.Connection) -> int:
    """How many rows and entries of indexes were looked at since the server counts."""
    ((tables, indexes),) = conn.execute(
        """select (select sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)) from pg_stat_user_tables
                    where schemaname = 'kedge'),
                  (select sum(idx_tup_read) from pg_stat_user_indexes where schemaname = 'kedge')"""
    )
    return int(tables) + int(indexes)


def claims_tried(conn: psycopg.Connection) -> int:
    """How often somebody looked for due runs."""
    ((count,),) = conn.execute(
        "select idx_scan from pg_stat_user_indexes where indexrelid = 'kedge.runs_due'::regclass"
    )
    return int(count)


async def have_left(conn: psycopg.Connection) -> None:
    """A server's process tells what it has read when it ends."""
    while conn.execute(
        "select 1 from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() and backend_type"
        " = 'client backend'"
    ).fetchall():
        await asyncio.sleep(0.01)


async def test_a_worker_without_work_reads_nothing_of_a_hundred_thousand_parked_runs(
    database_url: str, conn: psycopg.Connection
) -> None:
    with Client.connect(database_url) as client:
        client.start(parked())
    await Worker(database_url, workflows=[wait_for_long]).run_until_idle()
    with psycopg.connect(database_url, autocommit=True) as other:  # what it reads is counted when it leaves
        multiply(other)
        ((waiting,),) = other.execute("select count(*) from kedge.runs where state = 'w' and worker_id is null")
    await have_left(conn)
    before, tried = rows_read(conn), claims_tried(conn)

    # It claims, sorts letters and sweeps by its timers, for nobody notifies it.
    async with asyncio.timeout(60), Worker(database_url, workflows=[wait_for_long], listen=False, poll="100ms"):
        while claims_tried(conn) < tried + LOOKS:
            await asyncio.sleep(0.05)
    await have_left(conn)

    assert waiting == PARKED
    read = rows_read(conn) - before
    assert read < 10 * LOOKS, f"{read} rows in {LOOKS} looks"
