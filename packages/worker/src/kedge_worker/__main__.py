"""The command line: `kedge-worker run module:worker`, `kedge-worker migrate`, `kedge-worker roles`. Arguments only."""

from __future__ import annotations

import argparse
import asyncio
import difflib
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Final
from uuid import UUID

from kedge.errors import KedgeError, SchemaError, UsageError
from kedge.schema import check_schema_name
from kedge.schema.privileges import ROLES, role_name, roles_sql
from kedge_worker._child_process import Parent
from kedge_worker._errors import PostgresError, TroubleError, is_gone
from kedge_worker._migrator import full_sql, install_roles, migrate, pending
from kedge_worker._process import run_as_process
from kedge_worker._processes import Processes, read_processes
from kedge_worker._settings import database_url
from kedge_worker._solo import Target
from kedge_worker._worker import Worker

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 4
WRONG_SCHEMA: Final = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Exit codes: 0 done, 1 failed, 2 wrong usage, 4 database not reached, 5 schema missing, older or newer, 6 a handler
    has blocked the event loop for three leases. Of several processes the first that is not 0, when they were asked to
    end; 128 and a signal's number for one that was killed.
    """
    options = _parser().parse_args(arguments)
    # The worker reads its settings where it is made, which is in the module that `run` imports.
    if options.database_url:
        os.environ["KEDGE_DATABASE_URL"] = options.database_url
    if options.schema:
        os.environ["KEDGE_SCHEMA"] = options.schema
    try:
        processes = read_processes(options.processes) if options.command == "run" else 1
        _begin_log(is_shared=options.command in ("one", "solo") or processes > 1)
        match options.command:
            case "run" if processes > 1:
                return asyncio.run(Processes(options.target, processes).run())
            case "run":
                return _run(options.target)
            case "one":
                return _one(options.target)
            case "solo":
                return _solo(options.target, options.child_id)
            case "roles":
                return _roles(options.sql)
            case _:
                return _migrate(options.plan, options.sql)
    except SchemaError as error:
        return _say(error, WRONG_SCHEMA)
    except UsageError as error:
        return _say(error, USAGE)
    except (KedgeError, PostgresError) as error:
        if isinstance(error, TroubleError) and is_gone(error):
            return _say(f"the database is not reached: {error}", UNREACHABLE)
        return _say(error, FAILED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kedge-worker", description="Executes kedge workflows.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{run,migrate,roles}")
    run = commands.add_parser("run", help="run a worker until SIGTERM")
    run.add_argument("target", metavar="module:worker", help="where the Worker object is, such as shop.worker:worker")
    run.add_argument(
        "--processes",
        metavar="N",
        help="how many processes, for as many cores; each is a worker of its own, with its own row, lease, connections"
        " and concurrency. default: KEDGE_PROCESSES, else 1",
    )
    # What is started by the command itself: not for people, so without help.
    one = commands.add_parser("one")
    one.add_argument("target")
    solo = commands.add_parser("solo")
    solo.add_argument("target")
    solo.add_argument("child_id", type=UUID)
    migrate = commands.add_parser("migrate", help="bring the database's schema to this release")
    what = migrate.add_mutually_exclusive_group()
    what.add_argument("--plan", action="store_true", help="print what would be applied")
    what.add_argument("--sql", action="store_true", help="print the whole schema as SQL, without a database")
    roles = commands.add_parser("roles", help="install the roles of owner, clients, workers and admins")
    roles.add_argument("--sql", action="store_true", help="print them as SQL, without a database")
    for command in (run, one, solo, migrate, roles):
        command.add_argument("--database-url", help="default: KEDGE_DATABASE_URL, DATABASE_URL, libpq's environment")
        command.add_argument("--schema", help="default: KEDGE_SCHEMA, else kedge")
    return parser


def _begin_log(*, is_shared: bool) -> None:
    """Shared with other processes, a line says from which it is."""
    logging.basicConfig(
        level=os.environ.get("LOG_LEVEL", "INFO").upper(),
        format=f"%(asctime)s {'%(process)d ' if is_shared else ''}%(levelname)s %(name)s %(message)s",
    )


def _run(target: str) -> int:
    worker = _load(target)
    worker.target = Target(target, os.getcwd())

    async def work() -> int:
        await worker.run()
        return OK

    return run_as_process(work, lease_s=worker.settings.lease_s)


def _one(target: str) -> int:
    parent = Parent()
    worker = _load(target)
    worker.target = Target(target, os.getcwd())

    async def work() -> int:
        await worker.run_as_one(parent)
        return OK

    return run_as_process(work, lease_s=worker.settings.lease_s)


def _solo(target: str, child_id: UUID) -> int:
    parent = Parent()
    worker = _load(target)
    return run_as_process(lambda: worker.run_solo(child_id, parent), lease_s=worker.settings.lease_s)


def _migrate(plan: bool, sql: bool) -> int:  # noqa: FBT001  # two flags of the command line
    schema = os.environ.get("KEDGE_SCHEMA", "kedge")
    if sql:
        sys.stdout.write(full_sql(schema=schema))
    elif plan:
        for title, text in pending(database_url(None), schema=schema) or [("nothing to do", "")]:
            sys.stdout.write(f"-- {title}\n{text}\n")
    else:
        applied = migrate(database_url(None), schema=schema)
        sys.stdout.write("".join(f"applied {title}\n" for title in applied) or "nothing to do\n")
    return OK


def _roles(sql: bool) -> int:  # noqa: FBT001  # a flag of the command line
    schema = check_schema_name(os.environ.get("KEDGE_SCHEMA", "kedge"))
    if sql:
        sys.stdout.write(roles_sql(schema))
    else:
        install_roles(database_url(None), schema=schema)
        names = ", ".join(role_name(role, schema) for role in ROLES)
        sys.stdout.write(f"installed {names}\n")
    return OK


def _load(target: str) -> Worker:
    module_name, separator, name = target.partition(":")
    if not separator or not module_name or not name:
        raise UsageError(f"{target!r} is not module:worker, such as shop.worker:worker")
    sys.path.insert(0, os.getcwd())  # as python -m does
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise  # a missing import inside the user's module is the user's to see in full
        raise UsageError(f"there is no module {error.name!r} (looked in {os.getcwd()} and on sys.path)") from error
    found: object = getattr(module, name, None)
    if isinstance(found, Worker):
        return found
    workers = [key for key, value in vars(module).items() if isinstance(value, Worker)]
    close = difflib.get_close_matches(name, workers, n=1) or workers[:1]
    hint = f"; did you mean {module_name}:{close[0]}?" if close else f"; {module_name} holds no Worker"
    raise UsageError(f"{module_name}:{name} is not a Worker{hint}")


def _say(problem: object, code: int) -> int:
    sys.stderr.write(f"kedge-worker: {problem}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
