"""
The main job on real input; `make demo` runs it.

Posts the orders of orders.jsonl over HTTP to the API service while three workers process them, kills a busy worker
twice on the way, and says what came of it. Ends with 1 unless every accepted order has exactly one receipt, every
charge was made exactly once, the killed workers' runs were taken back, and `kedge.check_invariants()` finds nothing.
"""

import argparse
import asyncio
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

import httpx
import psycopg
from psycopg import sql

from examples.orders.stage.audit import Audit, read_books
from examples.orders.stage.customers import Line, Sales, post_all, read_lines
from examples.orders.stage.mishaps import Mishap, kill_a_busy_worker
from examples.orders.stage.screen import Screen, open_screen
from examples.orders.stage.services import ServiceDiedError, Services, environment, running_services
from kedge_worker.testing import PostgresError, PostgresServer, postgres_server

TABLES: Final = Path(__file__).with_name("tables.sql")
WORKERS: Final = 3
CUSTOMERS: Final = 40
KILLS: Final = 2
FEWEST_ORDERS: Final = 100
MOST_ORDERS: Final = 2_000
DEADLINE_S: Final = 120
LOOK_S: Final = 0.05
PROBLEMS_SHOWN: Final = 10


class NoDatabaseError(Exception):
    """The server that the environment names gives the demo no database of its own."""

    def __str__(self) -> str:
        return (
            "the demo works in a database of its own, and the role of the given URL may not create one: "
            "give it CREATEDB, or unset KEDGE_DATABASE_URL and DATABASE_URL, and the demo starts a server"
        )


class UnansweredError(Exception):
    """Not all orders were answered in time."""

    def __init__(self, orders: int) -> None:
        super().__init__(orders)
        self.orders = orders

    def __str__(self) -> str:
        return f"{self.orders:,} orders were not answered within {DEADLINE_S} s"


def main() -> int:
    """Set the stage, play, clear up; return the exit code."""
    lines = read_lines(number_of_orders())
    # A polite kill clears up as Ctrl-C does, and Ctrl-C does so even where a shell has switched it off.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    code = 1
    try:
        with open_screen() as screen, postgres_server() as server, database_of_our_own(server) as url:
            screen.say(f"PostgreSQL {server.version} ({server.source})")
            code = play(screen, url, lines)
    except* (PostgresError, NoDatabaseError, ServiceDiedError, UnansweredError, subprocess.CalledProcessError) as group:
        for error in group.exceptions:
            print(f"demo: {error}", file=sys.stderr)
    except* KeyboardInterrupt:
        code = 128 + signal.SIGINT
    return code


def play(screen: Screen, database_url: str, lines: Sequence[Line]) -> int:
    """Let the customers post all lines while workers are killed, and print what came of it."""
    set_up(database_url)
    screen.say("migrated by `kedge-worker migrate`; the application's own tables made")
    with running_services(database_url, workers=WORKERS) as services:
        screen.say(
            f"API service on {services.api_url}, {WORKERS} workers; {CUSTOMERS} customers post {len(lines):,} orders"
        )
        sales = Sales(len(lines))
        began = time.perf_counter()
        mishaps = asyncio.run(sell(screen, services, database_url, lines, sales))
        seconds = time.perf_counter() - began
        audit = Audit(sales.ended, mishaps, read_books(database_url), kills=KILLS, seconds=seconds)

    return verdict(screen, audit)


def verdict(screen: Screen, audit: Audit) -> int:
    """Print the table and what does not add up; return the exit code."""
    screen.print_table(audit.table())
    problems = list(audit.problems())
    for problem in problems[:PROBLEMS_SHOWN]:
        screen.say(f"WRONG: {problem}")
    if problems:
        screen.say(f"{len(problems)} things do not add up")
        return 1
    screen.say("every accepted order has one receipt, every charge was made once, check_invariants() is empty")
    return 0


async def sell(
    screen: Screen, services: Services, database_url: str, lines: Sequence[Line], sales: Sales
) -> list[Mishap]:
    """Post all lines, with an eye on the services."""
    mishaps: list[Mishap] = []
    try:
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
            overseer = group.create_task(oversee(screen, services, database_url, sales, mishaps))
            await post_all(services.api_url, lines, sales, customers=CUSTOMERS)
            overseer.cancel()
    except* httpx.HTTPError:
        services.check()  # names the better reason, if there is one
        raise
    except* TimeoutError:
        raise UnansweredError(sales.total - len(sales.ended)) from None
    screen.show(sales)
    return mishaps


async def oversee(screen: Screen, services: Services, database_url: str, sales: Sales, mishaps: list[Mishap]) -> None:
    """Show how far the customers are, see that no service ends by itself, and kill workers at equal distances."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as conn:
        while True:
            services.check()
            screen.show(sales)
            if len(mishaps) < KILLS and sales.begun >= sales.total * (len(mishaps) + 1) // (KILLS + 1):
                mishaps.append(await kill_a_busy_worker(conn, services.workers))
                last = mishaps[-1]
                screen.say(f"kill -9 {last.victim}, which had {len(last.orphans)} runs in hand; started it again")
            await asyncio.sleep(LOOK_S)


def set_up(database_url: str) -> None:
    """Apply kedge's schema as a deploy does, then the application's own tables as its migrations would."""
    command = [sys.executable, "-m", "kedge_worker", "migrate"]
    subprocess.run(command, env=environment(database_url), check=True, stdout=subprocess.DEVNULL)
    with psycopg.connect(database_url) as conn:
        conn.execute(TABLES.read_bytes())


@contextmanager
def database_of_our_own(server: PostgresServer) -> Generator[str]:
    """
    Create a database for this demo, and drop it in the end.

    Raises:
        NoDatabaseError: The role may not create one.
    """
    name = f"kedge_demo_{secrets.token_hex(4)}"
    with psycopg.connect(server.url, autocommit=True) as conn:
        try:
            conn.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        except psycopg.errors.InsufficientPrivilege as error:
            raise NoDatabaseError from error
        try:
            yield server.database_url(name)
        finally:
            conn.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def interrupt(number: int, frame: FrameType | None) -> None:
    """Do as if somebody had pressed Ctrl-C."""
    del number, frame
    signal.raise_signal(signal.SIGINT)


def number_of_orders() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.orders.demo", description="Plays the orders example.")
    parser.add_argument("--orders", type=int, default=MOST_ORDERS, metavar="N", help="post only the first N orders")
    orders: int = parser.parse_args().orders
    # With fewer than this there is no third of the way at which workers are busy.
    if not FEWEST_ORDERS <= orders <= MOST_ORDERS:
        parser.error(f"--orders must be {FEWEST_ORDERS} to {MOST_ORDERS:,}")
    return orders


if __name__ == "__main__":
    sys.exit(main())
