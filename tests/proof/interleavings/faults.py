"""Planted faults: functions of the engine with one guard taken out. Some order of some pair must show each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kedge.schema import render
from tests.proof.interleavings.breakpoints import Function, instrumented, sources


class NoSuchTextError(Exception):
    """The engine's source has changed: the fault must be planted anew."""


@dataclass(frozen=True, slots=True)
class Fault:
    """In a function, one text in the place of another."""

    name: str
    function: str
    guard: str
    instead: str
    pair: str
    """Whose orders show it."""

    def planted(self) -> str:
        """CREATE OR REPLACE of the faulty function, with its stops."""
        sound = sources()[self.function]
        if sound.body.count(self.guard) != 1:
            raise NoSuchTextError(f"{self.function} has {sound.body.count(self.guard)} times {self.guard!r}")
        body = sound.body.replace(self.guard, self.instead)
        return render(instrumented(Function(sound.name, sound.source.replace(sound.body, body), body)), "kedge")

    def mended(self) -> str:
        """CREATE OR REPLACE of the function as it is."""
        return render(instrumented(sources()[self.function]), "kedge")

    def __str__(self) -> str:
        return self.name


FAULTS: Final = (
    Fault(
        "park looks without having the lock",
        "park_runs",
        "offset 0 for update) r);",
        "offset 0) r);",
        "courier with event / park",
    ),
    Fault(
        "courier does not lock the runs of its letters",
        "pick_letters",
        "for update skip locked);",
        ");",
        "courier with event / park",
    ),
    Fault(
        "courier waits for locked runs",
        "pick_letters",
        "for update skip locked);",
        "for update);",
        "courier with cancel / a lock on its run",
    ),
    Fault(
        "skipped is taken for gone",
        "pick_letters",
        "v_held := v_held || array(select r.id from kedge.runs r where r.id = any (v_missing));",
        "v_held := v_held;",
        "courier with cancel / a lock on its run",
    ),
    Fault(
        "park forgets a request",
        "park_runs",
        "v_ended := kedge.end_requested(p_worker, p_ids, p_epochs, p_last);",
        "v_ended := 0;",
        "courier with cancel / park",
    ),
    Fault(
        "a flush holds no worker",
        "hold_worker",
        "for key share",
        "",
        "take back / claim of the worker itself",
    ),
    Fault(
        "a take back frees what is not read under the worker's lock",
        "take_back",
        "order by w.lease_until limit 1 for update skip locked;",
        "order by w.lease_until limit 1;",
        "take back / claim of the worker itself",
    ),
    Fault(
        "an end is copied before its row is locked",
        "end_runs",
        "offset 0 for update) r",
        "offset 0) r",
        "courier with cancel / failure",
    ),
    Fault(
        "starts of a singleton do not wait for each other",
        "start_run",
        "perform pg_advisory_xact_lock(kedge.singleton_lock(p_workflow, p_resource, p_key));",
        "",
        "start / start of a singleton, raise, read committed",
    ),
    Fault(
        "retry of a singleton takes no lock",
        "retry_run",
        "if not pg_try_advisory_xact_lock(kedge.singleton_lock(v_run.workflow, v_run.resource, v_run.key)) then",
        "if false then",
        "start of a singleton / courier with the retry of a failed one, raise, read committed",
    ),
    Fault(
        "a cascade forgets what is started later",
        "sort_cancels",
        "and i.slot = 'cascade' offset 0) i",
        "and false offset 0) i",
        "flush that starts a child and parks / courier with cascade",
    ),
    Fault(
        "a child's start does not hold its parent",
        "hold_parent",
        "for key share",
        "",
        "start of a keyed child / take back of its parent, which is cancelled with cascade, then courier",
    ),
    Fault(
        "a repeated start is not known by its input",
        "start_run",
        "p_input, coalesce(p_meta, '')) on conflict do nothing;",
        "p_input, coalesce(p_meta, '')) on conflict (run_id, seq) do update set took_ms = 0;",
        "start repeated / end of the run, read committed",
    ),
)
