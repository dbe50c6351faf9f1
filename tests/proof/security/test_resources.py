"""A client that is scoped to a resource sees and does the same whether others are there or not."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any, Final, TypeAlias
from uuid import UUID

import psycopg
import pytest

from kedge import EventRef, OnConflict, Singleton, WorkflowRef
from kedge.errors import KedgeError
from kedge.ids import new_run_id
from kedge_client import Client
from tests import ends
from tests.proof.kit.lanes import thinned

order = WorkflowRef("order", str, str)
go = EventRef("go", str)
ACTIONS: Final = 30
_ID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
VERBS: Final = (
    "start",
    "start",
    "start_key",
    "start_key",
    "start_many",
    "start_many_keys",
    "singleton",
    "singleton",
    "send",
    "cancel",
    "pause",
    "resume",
    "retry",
    "fast_forward",
    "rerun",
    "get",
    "steps",
    "progress",
    "result",
    "list",
    "count",
    "last",
    "end",
    "sort",
)


POLICIES: Final[tuple[Singleton, ...]] = ("raise", "return", "cancel_old")
CONFLICTS: Final[tuple[OnConflict, ...]] = ("return", "return_any_input", "raise")
Plant: TypeAlias = Callable[[psycopg.Connection[Any]], None]


class Tenant:
    """
    Somebody who only has a client of his own resource; remembers what he was told, with his runs by number.

    Without a resource he is an application's own part, whose client sees all and starts runs of nobody.
    """

    def __init__(self, url: str, resource: str | None) -> None:
        self._root = Client.connect(url)
        self.client = self._root if resource is None else self._root.scoped(resource)
        self.runs: list[UUID] = []
        self.told: list[str] = []

    def close(self) -> None:
        self._root.close()

    def act(self, conn: psycopg.Connection[Any], verb: str, pick: int, strangers: list[UUID]) -> None:
        """Do one thing, with the same names and keys that others have; now and then to a run of somebody else."""
        mine = self.runs[pick % len(self.runs)] if self.runs else new_run_id()
        try:
            answer = self._do(conn, verb, mine, pick)
        except KedgeError as error:
            answer = f"{type(error).__name__}: {error}"
        self.told.append(self._plain(f"{verb}: {answer}"))
        for stranger in strangers:
            self._may_not_touch(stranger, verb)

    def _do(self, conn: psycopg.Connection[Any], verb: str, run: UUID, pick: int) -> object:
        client = self.client
        key = f"k{pick % 2}"  # the same two for everybody
        match verb:
            case "start":
                return self._note(client.start(order("x", tags=["t"])).id)
            case "start_key":
                made = client.start(order("xy"[pick // 8], key=key, on_conflict=CONFLICTS[pick % 3]))
                return self._note(made.id), made.created
            case "start_many":
                return [self._note(made.id) for made in client.start_many([order("m") for _ in range(2)])]
            case "start_many_keys":
                requests = [order("x", key="k1"), order("x", key="k0"), order("s", key=key, singleton="return")]
                return [(self._note(made.id), made.created) for made in client.start_many(requests)]
            case "singleton":
                made = client.start(order("s", key=key, singleton=POLICIES[pick % 3]))
                return self._note(made.id), made.created, made.status()
            case "send":
                return client.handle(order, run).send(go("a", key=key))
            case "cancel" | "pause" | "resume" | "retry":
                return getattr(client, verb)(run)
            case "fast_forward":
                return client.fast_forward(run, "x")
            case "rerun":
                return self._note(client.rerun_from(run, "step").id)
            case "get":
                view = client.get(run)
                return (view.status, view.key, view.resource, view.tags, len(view.letters))
            case "steps":
                return [(step.key, step.kind) for step in client.steps(run)]
            case "progress":
                return client.progress(run).percent
            case "result":
                return client.result(order, run, timeout=0)
            case "list":
                return [view.id for view in client.list_runs(tag="t").items]
            case "count":
                return client.count_runs(workflow=order)
            case "last":
                newest = client.last(order)
                return newest and newest.id
            case "end":
                if conn.execute("select from kedge.runs where id = %s", (run,)).fetchone() is None:
                    return "not live"
                ends.fail(conn, run, ValueError("x"))
                return None
            case _:
                return conn.execute("select sorted >= 0 from kedge.sort_inbox(500)").fetchone()

    def _may_not_touch(self, stranger: UUID, verb: str) -> None:
        """Not yours and not there are one answer."""
        answers: list[str] = []
        for run in (stranger, new_run_id()):
            try:
                answer = str(self._read_or_write(verb, run))
            except KedgeError as error:
                answer = f"{type(error).__name__}: {error}"
            answers.append(answer.replace(str(run), "RUN"))
        assert answers[0] == answers[1], verb

    def _read_or_write(self, verb: str, run: UUID) -> object:
        client = self.client
        match verb:
            case "send":
                return client.handle(order, run).send(go("a"))
            case "cancel" | "pause" | "resume" | "retry" | "get" | "steps" | "progress":
                return getattr(client, verb)(run)
            case "fast_forward":
                return client.fast_forward(run, "x")
            case "rerun":
                return client.rerun_from(run, "step").id
            case "result":
                return client.result(order, run, timeout=0)
            case _:
                return None

    def _note(self, run: UUID) -> UUID:
        if run not in self.runs:
            self.runs.append(run)
        return run

    def _plain(self, text: str) -> str:
        """With numbers for one's own runs, and nothing for ids that are new each time."""
        known = {str(run): f"run{number}" for number, run in enumerate(self.runs)}
        return _ID.sub(lambda found: known.get(found[0], "ID"), text)


def life(url: str, seed: int, *, beside: bool, plant: Plant | None = None) -> list[str]:
    """What tenant A is told in the course of so many actions, with others beside him or without."""
    mine, theirs = random.Random(seed), random.Random(seed + 1)
    a, *others = tenants = [Tenant(url, resource) for resource in ("tenant-a", "tenant-b", None)]
    try:
        with psycopg.connect(url, autocommit=True) as conn:
            if plant is not None:
                plant(conn)
            for _ in range(ACTIONS):
                if beside:
                    for _ in range(theirs.randrange(4)):
                        other = theirs.choice(others)
                        other.act(conn, theirs.choice(VERBS[:-2]), theirs.randrange(10), [])
                strangers = [run for other in others for run in other.runs[-1:]]
                a.act(conn, mine.choice(VERBS), mine.randrange(10), strangers)
                assert {view.resource for view in a.client.list_runs().items} <= {"tenant-a"}
    finally:
        for tenant in tenants:
            tenant.close()
    return a.told


def lives(databases: Any, seed: int, plant: Plant | None = None) -> tuple[list[str], list[str]]:
    """Both: alone, and with others beside him."""
    alone, together = databases.create(), databases.create()
    try:
        return life(alone, seed, beside=False, plant=plant), life(together, seed, beside=True, plant=plant)
    finally:
        databases.drop(alone)
        databases.drop(together)


@pytest.mark.parametrize("seed", thinned(range(100), of=50))
@pytest.mark.breaks_invariants  # of a run that nobody's worker owns an end is written by hand
def test_what_a_tenant_is_told_is_the_same_with_others_beside_him(databases: Any, seed: int) -> None:
    alone, together = lives(databases, seed)

    assert alone == together


def without(function: str, resource: str) -> Plant:
    """Take the resource out of one of the engine's functions, as if it had been forgotten there."""

    def plant(conn: psycopg.Connection[Any]) -> None:
        ((text,),) = conn.execute("select pg_get_functiondef(%s::regproc)", (function,)).fetchall()
        assert resource in text
        conn.execute(text.replace(resource, "''").encode())

    return plant


@pytest.mark.parametrize(
    "fault",
    [
        without("kedge.start_run", "coalesce(p_resource, '')"),
        without("kedge.singleton_runs", "coalesce(r.resource, '')"),
    ],
    ids=["keys", "singletons"],
)
def test_others_are_noticed_as_soon_as_a_resource_is_forgotten(databases: Any, fault: Plant) -> None:
    def is_noticed(seed: int) -> bool:
        try:
            alone, together = lives(databases, seed, fault)
        except AssertionError:  # another's run was handed out, and so can be touched
            return True
        return alone != together

    # The first does it as things are; the others, should the verbs change.
    assert any(map(is_noticed, range(1, 9)))


def test_a_key_that_another_tenant_uses_too_is_free(database_url: str) -> None:
    with Client.connect(database_url) as root:
        theirs = root.scoped("tenant-b").start(order("x", key="invoice-1"))
        nobodys = root.start(order("x", key="invoice-1"))

        mine = root.scoped("tenant-a").start(order("y", key="invoice-1"))
        assert (theirs.created, nobodys.created, mine.created) == (True, True, True)
        assert root.start(order("y", key="invoice-1", resource="tenant-a")).id == mine.id


def test_an_active_singleton_of_another_tenant_stops_nobody_and_is_not_touched(database_url: str) -> None:
    with Client.connect(database_url) as root:
        theirs = root.scoped("tenant-b").start(order("x", key="k", singleton="raise"))

        mine = root.scoped("tenant-a").start(order("x", key="k", singleton="cancel_old"))
        assert (mine.created, mine.status(), theirs.status()) == (True, "pending", "pending")
        assert theirs.view().request is None


def test_who_starts_with_a_key_waits_for_no_other_tenants_open_transaction(database_url: str) -> None:
    with (
        Client.connect(database_url, timeout="5s") as root,
        psycopg.connect(database_url) as theirs,
    ):
        root.scoped("tenant-b").start(order("x", key="k"), conn=theirs)
        root.scoped("tenant-b").start(order("x", key="k", singleton="raise"), conn=theirs)

        a = root.scoped("tenant-a")
        mine = [a.start(order("x", key="k")), a.start(order("x", key="k", singleton="raise"))]
        assert all(run.created for run in mine)
        theirs.commit()
