"""What stands in the database, and what should by the specification, in the same form."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from tests.proof.model.spec import Model
from tests.proof.model.system import SOLO, View

UNIT: Final = 100
"""Seconds: all times of the tests are multiples, so that the real time an example takes does not matter."""


def _is_answer(slot: str) -> bool:
    """Mail for one wait. What comes behind the opening of a gate is nobody's, and may come or not."""
    return slot.startswith("k:") and slot != "k:"


def in_units(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds) // UNIT


def actual(view: View) -> dict[str, Any]:
    """What the database says."""
    runs: dict[str, Any] = {}
    for id_, state, epoch, owner, request, attempt, crashes, queue, next_seq, due, deadline in view["runs"]:
        runs[id_] = (
            state, epoch, owner, request, attempt, crashes, queue == SOLO,
            next_seq if state != "r" else None, in_units(due) if state == "w" else None, in_units(deadline),
        )  # fmt: skip
    for id_, status, epoch, attempt, crashes, queue in view["ended"]:
        runs[id_] = (status, epoch, attempt, crashes, queue == SOLO)
    told = [(run, slot, seq, id_) for run, slot, seq, id_ in view["mail"] if runs[run][0] not in "cx"]
    return {
        "runs": runs,
        "rows": [tuple(row) for row in view["rows"]],
        "waits": [tuple(wait) for wait in view["waits"]],
        "events": [(run, id_, seq) for run, slot, seq, id_ in told if not slot.startswith("k:")],
        "answers": sorted((run, slot, id_, seq or 0) for run, slot, seq, id_ in told if _is_answer(slot)),
        "watchers": [tuple(watcher) for watcher in view["watchers"]],
        "workers": [id_ for (id_,) in view["workers"]],
        "inbox": sorted((run, kind) for run, kind in view["inbox"]),
    }


def expected(model: Model) -> dict[str, Any]:
    """The same by the specification."""
    runs: dict[str, Any] = {}
    for run in model.runs.values():
        runs[str(run.id)] = (
            run.status, run.epoch, run.owner and str(run.owner), run.request, run.attempt, run.crashes, run.is_solo,
            run.next_seq if run.status != "r" else None, in_units(run.due) if run.status == "w" else None,
            in_units(run.deadline),
        ) if run.is_live else (run.status, run.epoch, run.attempt, run.crashes, run.is_solo)  # fmt: skip
    everyone = sorted(model.runs.values(), key=lambda r: r.id)
    told = [(r, m) for r in everyone if r.status not in "cx" for m in sorted(r.mail.values(), key=lambda m: m.seq)]
    return {
        "runs": runs,
        "rows": [(str(r.id), row.seq, row.epoch, row.kind, row.key) for r in everyone for row in r.rows],
        "waits": [(str(r.id), key, r.waits[key].kind) for r in everyone for key in sorted(r.waits)],
        "events": [(str(r.id), str(m.id), m.consumed) for r, m in told if not m.slot.startswith("k:")],
        "answers": sorted((str(r.id), m.slot, str(m.id), m.consumed or 0) for r, m in told if _is_answer(m.slot)),
        "watchers": [(str(r.id), str(who), key) for r in everyone for who, key in sorted(r.watchers)],
        "workers": sorted(map(str, model.workers)),
        "inbox": sorted((str(i.run or UUID(int=0)), i.kind) for i in model.inbox),
    }
