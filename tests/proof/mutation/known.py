"""Mutants that no test finds, with the reason why that is well: they change what a statement costs, or nothing."""

from __future__ import annotations

from typing import Final

HELD_ELSEWHERE: Final = frozenset(
    {
        "KEEP",
        "OPEN_WAITS",
        "CLOSE_WAITS",
        "CONSUME_MAIL",
        "SEND_LETTERS",
        "KEEP_FAILURES",
        "SET_PROGRESS",
        "SET_METADATA",
    }
)
"""Statements whose guards `test_fences` takes out one by one."""

_BOUNDS: Final = "the bounds of the partial index: they say nothing that the slot does not say"
_SECOND: Final = "each claim has an epoch of its own: who has that is the owner, and it is asked for beside this"
_FLAG: Final = "a flag that is set already is not written again; it would say the same"
_FIRST: Final = "only locks a row that the update below, which looks again, leaves alone"

HARMLESS: Final[dict[str, dict[str, str]]] = {
    "engine/leave.sql": {"r.state = 'r'": "only a running run has an owner, says the table's CHECK"},
    "engine/sort_controls.sql": {
        "m.consumed_seq is null": "mail for one wait is read when the wait is closed, in the same flush",
    },
    "engine/expand_letters.sql": {"w.slot >= 't:'": _BOUNDS, "w.slot < 't;'": _BOUNDS},
    "api/send_v1.sql": {"w.slot >= 't:'": _BOUNDS, "w.slot < 't;'": _BOUNDS},
    "engine/release_runs.sql": {"r.epoch = x.epoch": _FIRST},
    "engine/park_runs.sql": {"r.worker_id is not distinct from p_worker": _SECOND},
    "engine/sort_inbox.sql": {"not r.has_watchers": _FLAG, "not r.is_observed": _FLAG},
    "engine/sort_cancels.sql": {"not r.has_watchers": _FLAG},
    "engine/start_children.sql": {"not r.has_dependents": _FLAG},
    "engine/wake_runs.sql": {
        "not r.has_waits": _FLAG,
        "r.state <> 'r'": "of a running run the flag is made anew when it leaves, and nobody reads it before",
    },
    "engine/take_back.sql": {"r.state = 'p'": "a lane that is rung for nothing costs its sleeper a look"},
    "MIND_DEPENDENT": {"not has_dependents": _FLAG},
    "engine/expire_runs.sql": {
        "r.deadline_at < 'infinity'": "the bound of the partial index: infinity is never behind the clock",
    },
    "engine/free_runs.sql": {
        "r.id = p_ids[1]": "there is one id only: with more of them it raises just before",
        "r.worker_id is not distinct from p_worker": _SECOND,
    },
    "engine/retry_later.sql": {
        "m.slot >= 'k:'": "mail of events and topics is not consumed by a row that failed or was interrupted",
        "m.slot < 'k;'": "as the bound below",
        "r.worker_id is not distinct from p_worker": _SECOND,
    },
}
