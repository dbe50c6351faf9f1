"""Every statement by which a client reads: runs, lists, steps, progress; and by which it asks to be told."""

# ruff: noqa: S608  # the texts are put together from constants; values are always parameters

from __future__ import annotations

from typing import Final

from kedge_client._statements import Statement

RESULTS: Final = Statement(
    "results",
    "select r.id, r.status, r.resource, r.reason, r.output, r.error from kedge.results_v1({ids}) r",
    {"ids": "uuid[]"},
    # The id as its bytes: those who wait are found by it, and need no UUID.
    ("bytea", "text", "text", "text", "bytea", "bytea"),
)

WATCH: Final = Statement(
    "watch", "select kedge.watch_v1({ids}, {channel})", {"ids": "uuid[]", "channel": "text"}, ("void",)
)

UNWATCH: Final = Statement(
    "unwatch", "select kedge.unwatch_v1({ids}, {channel})", {"ids": "uuid[]", "channel": "text"}, ("void",)
)

# Registers for all that happens to runs, until it is taken back or not renewed for two minutes.
OBSERVE: Final = Statement(
    "observe", "select kedge.observe_v1({ids}, {channel})", {"ids": "uuid[]", "channel": "text"}, ("void",)
)

UNOBSERVE: Final = Statement(
    "unobserve", "select kedge.unobserve_v1({ids}, {channel})", {"ids": "uuid[]", "channel": "text"}, ("void",)
)

_RUN_COLUMNS: Final = {
    "id": "uuid",
    "workflow": "text",
    "status": "text",
    "queue": "text",
    "priority": "int4",
    "resource": "text",
    "key": "text",
    "parent_id": "uuid",
    "attempt": "int4",
    "crashes": "int4",
    "epoch": "int4",
    "created_at": "timestamptz",
    "started_at": "timestamptz",
    "since": "timestamptz",
    "due_at": "timestamptz",
    "deadline_at": "timestamptz",
    "ended_at": "timestamptz",
    "timeout_s": "float8",
    "request": "text",
    "reason": "text",
    "meta": "bytea",
    "metadata": "bytea",
    "definition": "bytea",
    "tags": "text[]",
    "input": "bytea",
    "output": "bytea",
    "error": "bytea",
    "wait_kinds": "text[]",
    "wait_keys": "text[]",
    "wait_slots": "text[]",
    "wait_opened_ats": "timestamptz[]",
    "wait_due_ats": "timestamptz[]",
    "wait_attempts": "int4[]",
    "wait_states": "bytea[]",
    "unread_slots": "text[]",
    "unread_counts": "int4[]",
    "note_ats": "timestamptz[]",
    "notes": "text[]",
    "failure_attempts": "int4[]",
    "failure_ats": "timestamptz[]",
    "failure_took_ms": "int4[]",
    "failure_errors": "bytea[]",
}
_WITH_PAYLOADS: Final = ", ".join(f"g.{name}" for name in _RUN_COLUMNS)
# A page of 200 runs could hold 400 MiB of them.
_WITHOUT_PAYLOADS: Final = _WITH_PAYLOADS.replace("g.input, g.output,", "null, null,")

GET: Final = Statement(
    "get",
    f"select {_WITH_PAYLOADS} from kedge.get_runs_v1({{ids}}, {{resource}}, true) g",
    {"ids": "uuid[]", "resource": "text"},
    tuple(_RUN_COLUMNS.values()),
)

LAST: Final = Statement(
    "last",
    f"select {_WITH_PAYLOADS} from kedge.get_runs_v1(kedge.list_run_ids_v1("
    "{workflow}, null, {resource}, null, null, null, null, 1, null, false), null, true) g",
    {"workflow": "text", "resource": "text"},
    tuple(_RUN_COLUMNS.values()),
)

LIST: Final = Statement(
    "list",
    f"select {_WITHOUT_PAYLOADS} from kedge.get_runs_v1(kedge.list_run_ids_v1("
    "{workflow}, {statuses}, {resource}, {parent}, {tag}, {since}, {until}, {limit}, {after}, {backward}),"
    " null, false) g order by g.id desc",
    {
        "workflow": "text",
        "statuses": "text[]",
        "resource": "text",
        "parent": "uuid",
        "tag": "text",
        "since": "timestamptz",
        "until": "timestamptz",
        "limit": "int4",
        "after": "uuid",
        "backward": "bool",
    },
    tuple(_RUN_COLUMNS.values()),
)

COUNT: Final = Statement(
    "count",
    "select kedge.count_runs_v1({workflow}, {statuses}, {resource}, {tag}, {since}, {until})",
    {
        "workflow": "text",
        "statuses": "text[]",
        "resource": "text",
        "tag": "text",
        "since": "timestamptz",
        "until": "timestamptz",
    },
    ("int8",),
)

# Behind `after`; no more than `limit` rows, and than what holds so many bytes. Null: all.
STEPS: Final = Statement(
    "steps",
    "select s.seq, s.key, s.kind, s.at, s.took_ms, s.epoch, s.value, s.meta"
    " from kedge.steps_v1({run}, {resource}, {after}, {limit}, {bytes}) s order by s.seq",
    {"run": "uuid", "resource": "text", "after": "int4", "limit": "int4", "bytes": "int8"},
    ("int4", "text", "text", "timestamptz", "int4", "int4", "bytea", "bytea"),
)

WAITS: Final = Statement(
    "waits",
    "select w.kind, w.key, w.slot, w.opened_at, w.due_at, w.attempt, w.state from kedge.waits_v1({run}, {resource}) w",
    {"run": "uuid", "resource": "text"},
    ("text", "text", "text", "timestamptz", "timestamptz", "int4", "bytea"),
)

FAILURES: Final = Statement(
    "failures",
    "select f.kind, f.key, f.attempt, f.at, f.took_ms, f.error from kedge.failures_v1({run}, {resource}, {limit}) f",
    {"run": "uuid", "resource": "text", "limit": "int4"},
    ("text", "text", "int4", "timestamptz", "int4", "bytea"),
)

PROGRESS: Final = Statement(
    "progress",
    "select p.status, p.reason, p.since, p.is_said, p.at, p.done, p.total, p.percent, p.message, p.steps, p.declared,"
    " p.learned from kedge.progress_v1({run}, {resource}) p",
    {"run": "uuid", "resource": "text"},
    ("text", "text", "timestamptz", "bool", "timestamptz", "int8", "int8", "float8", "text", "int4", "int4", "int4"),
)

# Lines behind the first `lines`, then notes behind the first `notes`.
RUN_LOG: Final = Statement(
    "run_log",
    "select l.kind, l.at, l.level, l.message, l.fields"
    " from kedge.run_log_v1({run}, {resource}, {lines}, {notes}, {limit}) l",
    {"run": "uuid", "resource": "text", "lines": "int4", "notes": "int4", "limit": "int4"},
    ("text", "timestamptz", "int4", "text", "bytea"),
)
