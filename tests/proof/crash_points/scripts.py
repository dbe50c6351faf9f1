"""
What client processes do; each is a function that gets the database's URL. All that can have a key has one, so the same
script in another process settles what became of the first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Final
from unittest.mock import patch

import psycopg

import tests.proof.crash_points.plays as plays
from kedge.errors import DatabaseError, OutcomeUnknownError, UnavailableError
from kedge_client import Client, _streams

CONFUSED: Final = 3
"""Exit code: something is not known to be done, and the script went no further."""


class _StopError(Exception):
    pass


@contextmanager
def said(what: str, **about: object) -> Generator[dict[str, Any]]:
    """Say before and after what one is about to do; what is put into the mapping is said with the success."""
    journal, answer = plays.journal(), dict[str, Any]()
    journal.write(f"{what}.invoke", **about)
    try:
        yield answer
    except UnavailableError as error:
        journal.write(f"{what}.fail", **about, error=str(error))
        raise _StopError from error
    except (OutcomeUnknownError, DatabaseError, psycopg.OperationalError) as error:
        journal.write(f"{what}.unknown", **about, error=f"{type(error).__name__}: {error}")
        raise _StopError from error
    journal.write(f"{what}.ok", **about, **answer)


def script(do: Callable[[Client, str], None]) -> Callable[[str], int]:
    """Make a script of what is done with a client and the URL; it answers its exit code."""

    def run(url: str) -> int:
        with Client.connect(url, listen=False) as client:
            try:
                do(client, url)
            except _StopError:
                return CONFUSED
        return 0

    return run


@script
def starts(client: Client, url: str) -> None:
    """Start: without a key, with one, many at once, a stream."""
    with said("start", key=None) as answer:
        answer["run"] = str(client.start(plays.steps()).id)
    with said("start", key="one") as answer:
        answer["run"] = str(client.start(plays.steps(key="one")).id)
    keys = ["left", "middle", "right"]
    with said("starts", keys=keys) as answer:
        answer["runs"] = [str(run.id) for run in client.start_many([plays.steps(key=key) for key in keys])]
    keys = ["streamed", "beside it", "behind it"]
    with said("starts", keys=keys) as answer, patch.object(_streams, "BATCH", 2):
        # Two chunks.
        answer["runs"] = [str(run.id) for run in client.start_stream(plays.steps(key=key) for key in keys)]


@script
def sends(client: Client, url: str) -> None:
    """Start, and send: with keys, and without."""
    with said("start", key="mail") as answer:
        run = client.start(plays.event(key="mail"))
        answer["run"] = str(run.id)
    for name in ("event", "other"):
        with said("send", key=name):
            run.send(plays.go(name, key=name))
    for number in range(2):
        value = f"{os.getpid()}.{number}"
        with said("send", key=None, value=value):
            run.send(plays.go(value))


@script
def controls(client: Client, url: str) -> None:
    """Start, pause, resume, cancel."""
    with said("start", key="held") as answer:
        run = client.start(plays.event(key="held"))
        answer["run"] = str(run.id)
    for verb in (run.pause, run.resume, run.cancel):
        with said(verb.__name__):
            verb()


@script
def transaction(client: Client, url: str) -> None:
    """Start and send in one's own transaction, with other rows."""
    with said("transaction"), psycopg.connect(url) as conn, conn.transaction():
        (there,) = conn.execute("select count(*) from effects where step = 'own'").fetchone() or (0,)
        if there:
            return
        run = client.start(plays.event(key="own"), conn=conn)
        # Whoever has the key has the row: a caller with the same key has waited for the first one's commit until here.
        conn.execute(
            "insert into effects (run, step, value) select %s, 'own', 'own'"
            " where not exists (select from effects where step = 'own')",
            (run.id,),
        )
        for name in ("event", "other"):
            run.send(plays.go(name, key=name), conn=conn)
