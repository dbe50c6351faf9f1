"""
One checker for all processes' tests: what clients, workers and bodies said, against what the tables hold.

It is asked when all is quiet. A run that is still live is a violation: it is stuck (I10), or the test has not waited.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import psycopg

from tests.proof.kit.journal import Line, read_journals

_JOURNAL: Final = """
    select run_id::text, seq, kind::text, reverse(split_part(reverse(key), '/', 1)), value, at
      from kedge.journal where seq > 0 and kind in ('s', 't', 'e', 'c', 'p', 'f') order by run_id, seq
"""
_RUNS: Final = """
    select id::text, workflow, coalesce(resource, ''), key, kedge.status_name(state), epoch, crashes, attempt,
           null::bytea
      from kedge.runs
    union all
    select id::text, workflow, coalesce(resource, ''), key, kedge.status_name(status), epoch, crashes, attempt, output
      from kedge.finished
"""
_FAILED: Final = "select run_id::text, key, count(*) from kedge.failures where kind = 's' group by 1, 2"
LATE: Final = -1
"""What a program says it was told when an event did not come in time."""


@dataclass
class Run:
    """One run as the tables have it."""

    id: str
    workflow: str
    resource: str
    key: str | None
    status: str
    epoch: int
    crashes: int
    attempt: int
    output: bytes | None
    outcomes: list[tuple[str, str, Any]] = field(default_factory=list[tuple[str, str, Any]])
    """Kind, step and value of each, in the journal's order."""


@dataclass
class Report:
    """`violations` is empty when all promises hold."""

    violations: list[str] = field(default_factory=list[str])
    counts: Counter[str] = field(default_factory=Counter[str])

    def __str__(self) -> str:
        shown = self.violations[:40] + ([f"... {len(self.violations)} in all"] if len(self.violations) > 40 else [])
        return "\n".join([*shown, str(dict(self.counts))])


def check(url: str, folder: Path, *, tail_lost: bool = False, live: Iterable[str] = ()) -> Report:
    """
    Compare journals, tables and effects.

    Args:
        url: The database, with nothing under way any more.
        folder: Of the journals.
        tail_lost: A failover to an asynchronous standby may have lost the last acknowledged starts and events; they
            are counted as `lost`, and nothing else is forgiven.
        live: Statuses that a live run may have, such as "waiting".
    """
    with psycopg.connect(url, autocommit=True) as conn:
        tables = _Tables(conn)
        broken = conn.execute("select * from kedge.check_invariants(history => true)").fetchall()
    report = Report()
    report.violations += [f"check_invariants: {row}" for row in broken]
    _Checker(tables, read_journals(folder), report, tail_lost=tail_lost, live=set(live)).check()
    return report


class _Tables:
    def __init__(self, conn: psycopg.Connection) -> None:
        self.runs = {row[0]: Run(*row) for row in conn.execute(_RUNS)}
        self.failed = {(run, key): int(n) for run, key, n in conn.execute(_FAILED)}
        self.keys = {
            (str(resource), str(key)): str(run)
            for resource, key, run in conn.execute("select resource, key, run_id from kedge.run_keys")
        }
        self.effects: list[tuple[str, str, str]] = []
        if conn.execute("select to_regclass('effects')").fetchone() != (None,):
            self.effects = conn.execute("select run::text, step, value from effects").fetchall()
        for run, _, kind, step, value, _ in conn.execute(_JOURNAL):
            if run in self.runs:
                self.runs[run].outcomes.append((kind, step, LATE if kind == "f" else decoded(value)))


class _Checker:
    def __init__(self, tables: _Tables, lines: list[Line], report: Report, *, tail_lost: bool, live: set[str]) -> None:
        self._tables = tables
        self._report = report
        self._tail_lost = tail_lost
        self._live = live
        self._by = defaultdict[str, list[Line]](list)
        for line in lines:
            self._by[line["what"]].append(line)

    def check(self) -> None:
        self._starts()
        self._ends()
        self._results()
        self._effects()
        self._bodies()
        self._replays()
        self._events()
        counts = self._report.counts
        counts["runs"] = len(self._tables.runs)
        counts["outcomes"] = sum(len(run.outcomes) for run in self._tables.runs.values())
        counts["effects"] = len(self._tables.effects)
        counts["lives"] = len(self._by["life"])
        counts["faults"] = len(self._by["fault"])
        counts["crashes"] = sum(run.crashes for run in self._tables.runs.values())
        for what in ("start", "send", "cancel"):
            for end in ("invoke", "ok", "fail", "unknown"):
                counts[f"{what}.{end}"] = len(self._by[f"{what}.{end}"])

    def _broken(self, promise: str, what: str) -> None:
        self._report.violations.append(f"{promise}: {what}")

    def _lost(self, promise: str, what: str) -> None:
        if self._tail_lost:
            self._report.counts["lost"] += 1
        else:
            self._broken(promise, what)

    def _starts(self) -> None:
        """I1, I2: each acknowledged start is there; a key has one run, and every run was asked for."""
        invoked = {line["key"] for line in self._by["start.invoke"] if line.get("key")}
        for line in self._by["start.ok"]:
            run, key = line["run"], line.get("key")
            holder = self._tables.keys.get((line.get("resource") or "", str(key)))
            if run not in self._tables.runs:
                self._lost("I1", f"start of {run} (key {key}) was acknowledged, and there is no such run")
            elif key is not None and holder != run:
                self._broken("I2", f"key {key} was answered with {run}, and belongs to {holder}")
        keys = Counter((run.resource, run.key) for run in self._tables.runs.values() if run.key is not None)
        for (_, key), number in keys.items():
            if number > 1:
                self._broken("I2", f"key {key} has {number} runs")
            if invoked and key not in invoked:
                self._broken("I2", f"nobody asked for a run with key {key}")

    def _ends(self) -> None:
        """I1, I10, I13: every run came to its end, none failed, none is charged with attempts."""
        cancelled: set[str] = {line["run"] for line in self._by["cancel.invoke"]}
        for run in self._tables.runs.values():
            self._report.counts[run.status] += 1
            is_asked_for = run.status == "cancelled" and run.id in cancelled
            if run.status not in {"completed", *self._live} and not is_asked_for:
                self._broken("I10", f"run {run.id} ({run.workflow}) is {run.status}, epoch {run.epoch}")
            if run.attempt:
                self._broken("I13", f"run {run.id} is charged with {run.attempt} attempts")

    def _results(self) -> None:
        """I11, I20: what a client was told is what stands there."""
        for line in self._by["result.ok"]:
            run = self._tables.runs.get(line["run"])
            if run is None:
                self._lost("I11", f"run {line['run']} had a result, and is gone")
            elif run.status != "completed" or run.output is None or decoded(run.output) != line["value"]:
                self._broken(
                    "I11", f"a client got {line['value']!r} of {run.id}, which is {run.status}: {run.output!r}"
                )

    def _effects(self) -> None:
        """I5: effects are the outcomes of transactional steps, one for one."""
        kept = Counter(
            (r.id, step, value) for r in self._tables.runs.values() for kind, step, value in r.outcomes if kind == "t"
        )
        done = Counter(self._tables.effects)
        for what in (done - kept).elements():
            self._broken("I5", f"effect {what} is in no journal, or twice in the table")
        for what in (kept - done).elements():
            self._broken("I5", f"outcome {what} is in the journal without its effect")

    def _bodies(self) -> None:
        """
        I6: a body runs once, plus once for each failed attempt, plus at most once for each life that was cut; that of a
        transactional step also once for each fault of the server, which undoes its transaction within a life.
        """
        ended = {line["life"] for line in self._by["life.end"]}
        cut = Counter(line["run"] for line in self._by["life"] if line["life"] not in ended)
        # Of the lives that came to their end, all but one died before that was stored.
        cut += Counter({run: n - 1 for run, n in Counter(line["run"] for line in self._by["life.end"]).items()})
        bodies = Counter((line["run"], line["step"]) for line in self._by["body"])
        self._report.counts["bodies"] = bodies.total()
        undone = sum(line.get("about") == "server" for line in self._by["fault"])
        transactions = {(r.id, step) for r in self._tables.runs.values() for kind, step, _ in r.outcomes if kind == "t"}
        for (run, step), number in bodies.items():
            expected = 1 + self._tables.failed.get((run, step), 0)
            self._report.counts["extra_bodies"] += max(0, number - expected)
            if (run, step) in transactions:
                expected += undone
            if number > expected + cut[run]:
                self._broken(
                    "I6", f"step {step} of {run} ran {number} times: {expected} expected, {cut[run]} lives cut"
                )
        if not self._by["fault"] and self._report.counts["extra_bodies"]:
            self._broken("I6", f"{self._report.counts['extra_bodies']} extra bodies without any fault")

    def _replays(self) -> None:
        """I4, I7, I9: each life is told what is kept, in its order; the one that ended the run is told all of it."""
        ended = {line["life"] for line in self._by["life.end"]}
        told_all: dict[str, bool] = {}
        for (run_id, life), told in self._lives():
            run = self._tables.runs.get(run_id)
            if run is None:
                self._lost("I7", f"run {run_id} was executed, and is gone")
                continue
            kept = [(step, value) for _, step, value in run.outcomes]
            same = next(
                (i for i, (a, b) in enumerate(zip(told, kept, strict=False)) if a != b), min(len(told), len(kept))
            )
            # What is told may be used before it is durable: the last words of a life that was cut may be lost. The next
            # life does those steps anew, and its waits are told of the same events: their order was durable before.
            own = [(step, value) for kind, step, value in run.outcomes if kind != "e"]
            events = {step: (value, LATE) for kind, step, value in run.outcomes if kind == "e"}
            if any(pair in own or pair[1] not in events.get(pair[0], (pair[1],)) for pair in told[same:]):
                self._broken("I7", f"life {life} of {run_id} was told {told}, kept is {kept}")
            # Which of them has ended the run cannot be seen: one that was frozen says its last words after all others.
            if run.status == "completed" and life in ended:
                told_all[run_id] = told_all.get(run_id, False) or told == kept
        for run_id in (run_id for run_id, was_told in told_all.items() if not was_told):
            self._broken("I7", f"no life that came to the end of {run_id} was told all that is kept of it")

    def _lives(self) -> Iterator[tuple[tuple[str, str], list[tuple[str, Any]]]]:
        lives: dict[tuple[str, str], list[tuple[str, Any]]] = {}
        for line in self._by["life"]:
            lives[line["run"], line["life"]] = []
        for line in self._by["told"]:
            lives[line["run"], line["life"]].append((line["step"], line["value"]))
        yield from lives.items()

    def _events(self) -> None:
        """I8: what was sent is told once, in the order of its sender; what was not sent is not told."""
        asked = {(line["run"], line["n"]) for line in self._by["send.invoke"]}
        sent = defaultdict[str, list[Line]](list)
        for line in self._by["send.ok"]:
            sent[line["run"]].append(line)
        for run in self._tables.runs.values():
            taken = [value for kind, _, value in run.outcomes if kind == "e"]
            if len(set(taken)) < len(taken):
                self._broken("I8", f"run {run.id} took an event twice: {taken}")
            for n in taken:
                if (run.id, n) not in asked:
                    self._broken("I8", f"run {run.id} took event {n}, which nobody sent")
            lanes = defaultdict[str, list[int]](list)
            for line in sent[run.id]:
                known = lanes[line.get("lane", "")]
                if line["n"] in taken and line["n"] not in known:
                    known.append(line["n"])
            for lane, order in lanes.items():
                if [n for n in taken if n in order] != order:
                    self._broken("I8", f"run {run.id} took {taken}, sender {lane!r} sent {order}")
            if run.status == "completed" and run.workflow == "event":
                for n in sorted({line["n"] for line in sent[run.id]} - set(taken)):
                    self._lost("I8", f"event {n} of run {run.id} was acknowledged, and never told")


def decoded(payload: bytes) -> Any:
    """A payload of the default codec as plain JSON."""
    return msgspec.json.decode(payload[1:]) if payload else None
