import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import psycopg

from kedge_worker.testing import Clock

ROOT = Path(__file__).parents[2]

# A live run without its journal's first row.
BREAKING = "insert into kedge.runs (id, since, state, queue, workflow) values (gen_random_uuid(), now(), 'p', 'q', 'w')"


def test_what_one_test_writes_the_next_does_not_see(tmp_path: Path) -> None:
    outcome = _pytest(
        tmp_path,
        """
        import pytest

        @pytest.mark.parametrize("turn", [1, 2])
        def test_writes(conn, turn):
            conn.execute("create table mine ()")
        """,
    )

    assert "2 passed" in outcome


def test_a_test_that_leaves_broken_invariants_fails_with_the_rows_unless_it_says_so(tmp_path: Path) -> None:
    outcome = _pytest(
        tmp_path,
        f"""
        import pytest

        BREAKING = {BREAKING!r}

        def test_breaks(conn):
            conn.execute(BREAKING)

        @pytest.mark.breaks_invariants
        def test_breaks_on_purpose(conn):
            conn.execute(BREAKING)

        def test_is_innocent(conn):
            pass
        """,
    )

    assert "3 passed, 1 error" in outcome
    assert "the test left 1 broken invariants" in outcome
    assert "live run without journal seq 0" in outcome
    assert "ERROR at teardown of test_breaks _" in outcome


def test_no_database_is_left_behind(tmp_path: Path) -> None:
    outcome = _pytest(
        tmp_path,
        """
        import psycopg, pytest
        from kedge_worker.testing._databases import Databases

        def names(url):
            with psycopg.connect(url) as conn:
                return {row[0] for row in conn.execute("select datname from pg_database")}

        def test_drops_all(postgres):
            before = names(postgres.url)
            databases = Databases(postgres)
            url = databases.create()
            with psycopg.connect(url):
                assert len(names(postgres.url) - before) == 2
                databases.drop(url)
            databases.close()
            assert names(postgres.url) == before
        """,
    )

    assert "1 passed" in outcome


async def test_an_async_test_needs_no_mark(database_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(database_url) as conn:
        row = await (await conn.execute("select kedge.clock() = now()")).fetchone()

    assert row == (True,)


def test_both_clocks_move_by_the_same_offset(conn: psycopg.Connection, clock: Clock) -> None:
    clock.advance(timedelta(days=3))
    clock.advance(60)

    row = conn.execute(
        "select kedge.clock() - now(), kedge.instant() - clock_timestamp() between '3 days 59 s' and '3 days 61 s'"
    ).fetchone()
    assert row == (timedelta(days=3, seconds=60), True)


def test_a_prepared_statement_sees_the_moved_clock(conn: psycopg.Connection, clock: Clock) -> None:
    query = "select kedge.clock() - now()"
    conn.execute("set plan_cache_mode = force_generic_plan")
    assert conn.execute(query, prepare=True).fetchone() == (timedelta(0),)

    clock.advance(timedelta(hours=1))

    assert conn.execute(query, prepare=True).fetchone() == (timedelta(hours=1),)


def test_a_moved_clock_is_still_inlined_so_that_an_index_serves_it(conn: psycopg.Connection, clock: Clock) -> None:
    clock.advance(1.5)

    plan = conn.execute("explain (verbose, costs off) select 1 where kedge.clock() > '2020-01-01'").fetchall()

    assert not any("kedge" in line for (line,) in plan)
    assert any("now()" in line for (line,) in plan)


def _pytest(folder: Path, source: str) -> str:
    lines = source.splitlines()
    indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    (folder / "test_inner.py").write_text("\n".join(line[indent:] for line in lines))
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder)]
    command += ["-p", "tests.conftest", "-p", "no:cacheprovider", str(folder / "test_inner.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr
