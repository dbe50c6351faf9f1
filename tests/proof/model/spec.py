"""
What the moves of the engine do, as one would say it: no SQL, no locks, one thing at a time.

A specification that executes. Time is in whole seconds from zero. Letters are sorted in order of their arrival; the
engine sorts a round of them kind by kind, which must make no difference to what becomes of a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import md5
from typing import Final, Literal, TypeAlias
from uuid import UUID

TERMINAL: Final = "cfx"
"""completed, failed, cancelled; a live run is p pending, r running, w waiting, s paused."""

SKIPPABLE: Final = "edpu"
"""Kinds of waits that a fast-forward ends: for an event, a time, a poll, a resume."""

NOBODY: Final = UUID(int=0)

Name: TypeAlias = tuple[str | None, str]
"""A key, or a singleton's, belongs to a tenant: those of two never meet."""

_ABOUT_CHILDREN: Final = ("dependents", "descendants")
"""Of a cancel's letter: not for the run itself, which has ended."""

MOST_CRASHES: Final = 5
"""The run fails: two take backs beside others, three alone."""


@dataclass(slots=True)
class Wait:
    kind: str
    slot: str | None = None
    due: int | None = None


@dataclass(slots=True)
class Mail:
    id: object
    slot: str
    seq: int
    is_bad: bool = False
    consumed: int | None = None


@dataclass(slots=True)
class Letter:
    seq: int
    run: UUID | None
    """None: a topic's."""
    id: object
    kind: str
    slot: str | None = None
    sender: UUID | None = None
    is_bad: bool = False


@dataclass(slots=True)
class Row:
    seq: int
    epoch: int
    kind: str
    key: str


@dataclass(slots=True)
class Run:
    id: UUID
    tenant: str | None = None
    key: str | None = None
    is_singleton: bool = False
    parent: UUID | None = None
    is_dependent: bool = False
    timeout: int | None = None
    status: str = "p"
    epoch: int = 0
    owner: UUID | None = None
    request: str | None = None
    due: int | None = None
    deadline: int | None = None
    attempt: int = 0
    crashes: int = 0
    is_solo: bool = False
    next_seq: int = 1
    has_dependents: bool = False
    rows: list[Row] = field(default_factory=list[Row])
    waits: dict[str, Wait] = field(default_factory=dict[str, Wait])
    mail: dict[object, Mail] = field(default_factory=dict[object, Mail])
    watchers: set[tuple[UUID, str]] = field(default_factory=set[tuple[UUID, str]])

    @property
    def name(self) -> Name:
        return self.tenant, self.key or ""

    @property
    def is_live(self) -> bool:
        return self.status not in TERMINAL

    @property
    def gets_on(self) -> bool:
        """Whether this epoch has kept something."""
        return bool(self.rows) and self.rows[-1].epoch == self.epoch

    def unread(self) -> list[Mail]:
        return sorted((m for m in self.mail.values() if m.consumed is None), key=lambda m: m.seq)

    def mail_for(self, key: str) -> Mail | None:
        """What the wait with this key is told: the first in order of arrival."""
        wait = self.waits[key]
        return next((m for m in self.unread() if m.slot == f"k:{key}" or m.slot == wait.slot), None)

    def wakes(self) -> bool:
        return any(self.mail_for(key) for key in self.waits)


@dataclass(slots=True)
class Worker:
    id: UUID
    is_lapsed: bool = False
    is_leaving: bool = False


@dataclass(slots=True)
class Grip:
    """What a worker believes: that it owns this run with this epoch."""

    worker: UUID
    run: UUID
    epoch: int
    next_seq: int


class Model:
    def __init__(self) -> None:
        self.now = 0
        self.runs: dict[UUID, Run] = {}
        self.workers: dict[UUID, Worker] = {}
        self.inbox: list[Letter] = []
        self.keys: dict[Name, UUID] = {}
        self.newest: dict[Name, UUID] = {}
        """Of a singleton."""
        self._seq = 0

    # ---- clients ----------------------------------------------------------------------------------------------------

    def start(
        self,
        id_: UUID,
        *,
        tenant: str | None,
        key: str | None = None,
        singleton: Literal["raise", "return", "cancel_old"] | None = None,
        delay: int = 0,
        timeout: int | None = None,
    ) -> tuple[UUID | None, bool, str | None]:
        """The run, whether it was created, the conflict."""
        active: list[Run] = []
        name = (tenant, key or "")
        if singleton is not None:
            active = self.active(name)
            if active and singleton != "cancel_old":
                return active[0].id, False, None if singleton == "return" else "active"
            self.newest[name] = id_
        elif key is not None:
            if name in self.keys:
                return self.keys[name], False, None
            self.keys[name] = id_
        run = Run(id_, tenant, key, singleton is not None, timeout=timeout)
        run.due = self.now + delay if delay else None
        run.status = "w" if delay or active else "p"
        if timeout is not None:
            run.deadline = self.now + delay + timeout
        if active:
            run.waits[""] = Wait("g", None, run.due)
            run.due = None
        self.runs[id_] = run
        for other in active:
            self._post(other.id, ("watch", id_, other.id), "w", "k:", sender=id_)
        if active:
            self._post(active[0].id, ("replace", id_), "x")
        return id_, True, None

    def active(self, name: Name) -> list[Run]:
        """Of a singleton: the live runs, the newest first."""
        live = [r for r in self.runs.values() if r.is_live and r.is_singleton and r.name == name]
        live.sort(key=lambda r: r.id, reverse=True)
        return sorted(live, key=lambda r: r.id != self.newest.get(name))

    def may_control(self, kind: str, run: Run, wait: str | None = None) -> bool:
        """Whether a letter is taken: refused is only what is certain."""
        letters = [i for i in self.inbox if i.run == run.id and i.kind != "w"]
        has_ended = run.status in "cx" or (run.status == "f" and not any(i.kind == "r" for i in letters))
        match kind:
            case "r":
                return run.status == "f" or (not has_ended and bool(letters))
            case "u":
                has_pause = any(w.kind == "u" for w in run.waits.values())
                return not has_ended and (run.status == "s" or run.request == "s" or bool(letters) or has_pause)
            case "g":
                return any(w.kind in SKIPPABLE and wait in {None, key} for key, w in run.waits.items())
            case _:
                return not has_ended

    def post(self, run: UUID | None, id_: object, kind: str, slot: str | None = None) -> None:
        self._post(run, id_, kind, slot)

    def _post(
        self,
        run: UUID | None,
        id_: object,
        kind: str,
        slot: str | None = None,
        *,
        sender: UUID | None = None,
        is_bad: bool = False,
    ) -> None:
        if not any(i.run == run and i.id == id_ for i in self.inbox):
            self._seq += 1
            self.inbox.append(Letter(self._seq, run, id_, kind, slot, sender, is_bad))

    # ---- the courier ------------------------------------------------------------------------------------------------

    def sort(self, limit: int) -> None:
        """Whom a letter to many means is decided first; retries and watches come last."""
        batch = list(self._batch(limit))
        for letter in batch:
            self._expand(letter)
        for letter in [i for i in batch if i.kind not in "rw"]:
            self._sort(letter)
        for kind in "rw":
            for letter in [i for i in batch if i.kind == kind]:
                self._sort(letter)
        self.inbox = [i for i in self.inbox if i not in batch]
        self.inbox.sort(key=lambda i: i.seq)

    def _batch(self, limit: int) -> Iterator[Letter]:
        """Nothing of a run behind its retry: that is meant for the run that lives again."""
        held: set[UUID | None] = set()
        for letter in self.inbox:
            if letter.run not in held and limit:
                limit -= 1
                yield letter
                if letter.kind == "r":
                    held.add(letter.run)

    def _expand(self, letter: Letter) -> None:
        if letter.kind == "t":
            for run in self.runs.values():
                if any(w.slot == letter.slot for w in run.waits.values()):
                    self.inbox.append(Letter(letter.seq, run.id, letter.id, "e", letter.slot))
        elif letter.kind == "x" and letter.slot in {"cascade", *_ABOUT_CHILDREN}:
            parent = self.runs[letter.run] if letter.run else None
            for run in [r for r in self.runs.values() if r.is_live and r.parent == letter.run]:
                if letter.slot == "dependents" and run.is_dependent:
                    self._post(run.id, (letter.id, run.id), "x")
                if letter.slot == "descendants" or (letter.slot == "cascade" and parent is not None and parent.is_live):
                    self._post(run.id, (letter.id, run.id), "x", "cascade")

    def _sort(self, letter: Letter) -> None:
        run = self.runs.get(letter.run) if letter.run else None
        if run is None:
            return
        match letter.kind:
            case "e" | "c":
                is_gate = letter.kind == "c" and letter.slot == "k:" and run.is_live and "" in run.waits
                is_topic = (letter.slot or "").startswith("t:")
                is_heard = not is_topic or any(w.slot == letter.slot for w in run.waits.values())
                if (run.is_live or run.status == "f") and is_heard and not is_gate:
                    self._mail(run, letter, letter.slot or "")
                if is_gate and not self._gate_is_closed(run):
                    self._open_gate(run)
            case "s" if run.is_live:
                if run.status == "r":
                    run.request = run.request or "s"
                elif run.status != "s":
                    run.due = self.now if run.status == "p" else run.due
                    run.status = "s"
            case "u" if run.status == "s":
                has_something = (run.due is not None and run.due <= self.now) or run.wakes()
                if has_something or (run.due is None and not run.waits):
                    run.status, run.due = "p", None
                else:
                    run.status = "w"
            case "u" if run.request == "s":
                run.request = None
            case "u" | "g" if run.is_live:
                kinds = "u" if letter.kind == "u" else SKIPPABLE
                told = {m.slot for m in run.unread()}
                for key, wait in run.waits.items():
                    if wait.kind in kinds and letter.slot in {None, f"k:{key}"} and f"k:{key}" not in told:
                        self._mail(run, letter, f"k:{key}")
                        break
            case "x" if run.is_live and letter.slot not in _ABOUT_CHILDREN:
                if run.status == "r":
                    run.request = "x"
                    # It may start children until it has ended: its end will tell.
                    run.watchers |= {(NOBODY, "descendants")} if letter.slot == "cascade" else set()
                else:
                    self._end(run, "x")
            case "r" if run.status == "f":
                self._retry(run)
            case "w":
                assert letter.sender is not None
                key = (letter.slot or "")[2:]
                if run.is_live:
                    run.watchers.add((letter.sender, key))
                else:
                    self._tell(run, letter.sender, key)
            case _:
                pass

    def _mail(self, run: Run, letter: Letter, slot: str) -> None:
        if letter.id not in run.mail:
            run.mail[letter.id] = Mail(letter.id, slot, letter.seq, letter.is_bad)
            if run.status == "w" and run.wakes():
                run.status, run.due = "p", None

    def _gate_is_closed(self, run: Run) -> bool:
        if any((run.id, "") in other.watchers for other in self.runs.values()):
            return True
        return any(
            i.kind == "w" and i.sender == run.id and i.run is not None and self.runs[i.run].is_live for i in self.inbox
        )

    def _open_gate(self, run: Run) -> None:
        gate = run.waits.pop("")
        is_early = gate.due is not None and gate.due > self.now
        if run.status == "s" or is_early:
            run.due = gate.due
        else:
            run.status, run.due = "p", None

    def _retry(self, run: Run) -> None:
        if run.is_singleton:
            if self.active(run.name):
                return
            self.newest[run.name] = run.id
        self._set_aside(run)
        run.status, run.due, run.request = "p", None, None
        run.epoch += 1
        run.crashes = 2 if run.is_solo else 0
        run.deadline = None if run.timeout is None else self.now + run.timeout
        run.has_dependents = False

    # ---- the holder of the lease ------------------------------------------------------------------------------------

    def holds(self, grip: Grip) -> Run | None:
        """The fence: the run, if this worker owns it with this epoch."""
        run = self.runs[grip.run]
        return run if run.status == "r" and (run.owner, run.epoch) == (grip.worker, grip.epoch) else None

    def ready(self, *, solo: bool = False) -> list[Run]:
        """Whom a claim may take: never a run with an unsorted cancel or pause."""
        stopped = {i.run for i in self.inbox if i.kind in "xs"}
        return [
            r
            for r in self.runs.values()
            if (r.status == "p" or (r.status == "w" and r.due is not None and r.due <= self.now))
            and r.is_solo == solo
            and r.id not in stopped
        ]

    def claim(self, run: Run, worker: UUID) -> Grip:
        run.status, run.owner, run.due = "r", worker, None
        run.epoch += 1
        return Grip(worker, run.id, run.epoch, run.next_seq)

    def keep(self, grip: Grip, kind: str, key: str) -> None:
        if run := self.holds(grip):
            run.rows.append(Row(grip.next_seq, grip.epoch, kind, key))
        grip.next_seq += 1

    def open_wait(self, grip: Grip, key: str, wait: Wait) -> None:
        if run := self.holds(grip):
            run.waits[key] = wait

    def close_wait(self, grip: Grip, key: str, kind: str, mail: Mail | None) -> None:
        """One outcome of a wait: mail or time, and a row that holds it."""
        if run := self.holds(grip):
            del run.waits[key]
            if mail is not None:
                mail.consumed = grip.next_seq
        self.keep(grip, kind, key)

    def start_child(self, grip: Grip, child: UUID, key: str, *, dependent: bool) -> None:
        run = self.holds(grip)
        self.keep(grip, "n", key)
        if run is not None:
            new = Run(child, run.tenant, parent=run.id, is_dependent=dependent)
            new.watchers.add((run.id, key))
            self.runs[child] = new
            run.has_dependents = run.has_dependents or dependent
            run.waits[key] = Wait("c")

    def watch(self, grip: Grip, child: UUID, key: str, id_: object) -> None:
        if run := self.holds(grip):
            run.waits[key] = Wait("c")
            self._post(child, id_, "w", f"k:{key}", sender=run.id)

    def send(self, grip: Grip, recipient: UUID, id_: object, slot: str, key: str) -> None:
        """An event from run to run: stored once, sent once."""
        self.keep(grip, "m", key)
        self.send_letter(grip, recipient, id_, slot)

    def send_letter(self, grip: Grip, recipient: UUID, id_: object, slot: str) -> None:
        if self.holds(grip):
            self._post(recipient, id_, "e", slot)

    def _leave_running(self, grip: Grip) -> Run | None:
        """What every move out of running begins with: the fence, then what somebody has asked for."""
        run = self.holds(grip)
        if run is None:
            return None
        run.next_seq = max(run.next_seq, grip.next_seq)
        if run.request in {"x", "d"}:
            self._end(run, "f")
            return None
        run.owner = None
        return run

    def park(self, grip: Grip) -> None:
        if run := self._leave_running(grip):
            goes_on = not run.waits or run.wakes()
            due = min((w.due for w in run.waits.values() if w.due is not None), default=None)
            if run.request == "s":
                run.status, run.due = "s", due if run.waits else self.now
            else:
                run.status, run.due = ("p", None) if goes_on else ("w", due)
            run.request, run.crashes, run.is_solo = None, 0, False

    def retry_later(self, grip: Grip, delay: int) -> None:
        if run := self._leave_running(grip):
            self._set_aside(run)
            run.waits.clear()
            run.due = self.now + delay if run.request == "s" or delay else None
            run.status = "s" if run.request == "s" else "w" if delay else "p"
            run.request, run.crashes, run.is_solo = None, 0, False
            run.attempt += 1

    def release(self, grip: Grip, delay: int) -> None:
        if run := self._leave_running(grip):
            run.due = self.now + delay if delay else self.now if run.request == "s" else None
            run.status = "s" if run.request == "s" else "w" if delay else "p"
            run.request = None
            if run.crashes and run.gets_on:
                run.crashes, run.is_solo = 0, False

    def end(self, grip: Grip, status: str) -> None:
        if run := self.holds(grip):
            run.next_seq = max(run.next_seq, grip.next_seq)
            self._end(run, status)

    def _set_aside(self, run: Run) -> None:
        """A failed attempt's failures and interruptions leave the journal, and what told of them may come again."""
        gone = {row.seq for row in run.rows if row.kind in "fx"}
        run.rows = [row for row in run.rows if row.seq not in gone]
        run.mail = {i: m for i, m in run.mail.items() if not (m.consumed in gone and m.slot.startswith("k:"))}

    def _end(self, run: Run, status: str) -> None:
        """The one exit door: a failure with a cancel request ends cancelled."""
        run.status = "x" if status == "f" and run.request == "x" else status
        run.request, run.owner, run.due = None, None, None
        run.waits.clear()
        for watcher, key in sorted(run.watchers):
            if watcher == NOBODY:
                self._post(run.id, ("descendants", run.id, run.epoch), "x", "descendants")
            else:
                self._tell(run, watcher, key)
        run.watchers.clear()
        if run.has_dependents:
            self._post(run.id, ("dependents", run.id, run.epoch), "x", "dependents")
        if run.is_singleton and self.newest.get(run.name) == run.id:
            del self.newest[run.name]

    def _tell(self, run: Run, watcher: UUID, key: str) -> None:
        # The same letter whoever writes it, so that nobody is told twice.
        digest = md5(f"{run.id}:{run.epoch}:{key}".encode(), usedforsecurity=False).hexdigest()
        id_ = UUID(f"{digest[:12]}8{digest[13:]}")
        self._post(watcher, id_, "c", f"k:{key}", is_bad=run.status != "c")

    # ---- the sweeper ------------------------------------------------------------------------------------------------

    def expire(self) -> None:
        for run in list(self.runs.values()):
            if run.is_live and run.deadline is not None and run.deadline <= self.now:
                if run.status != "r":
                    self._end(run, "f")
                elif run.request in {None, "s"}:
                    run.request = "d"

    def take_back(self, worker: UUID) -> None:
        for run in [r for r in self.runs.values() if r.owner == worker]:
            self.free(run, charged=not self.workers[worker].is_leaving)
        del self.workers[worker]

    def free(self, run: Run, *, charged: bool) -> None:
        """Out of the hand of a worker that died; in the solo lane nothing is beside it, and only there it fails."""
        before = run.crashes
        if run.gets_on:
            run.crashes, run.is_solo = 0, False
        elif charged:
            run.crashes = max(before, 2) + 1 if run.is_solo else min(before + 1, 2)
            run.is_solo = run.is_solo or before >= 1
        if run.request in {"x", "d"} or (charged and run.is_solo and run.crashes >= MOST_CRASHES):
            self._end(run, "f")
            return
        run.status, run.due = ("s", self.now) if run.request == "s" else ("p", None)
        run.request, run.owner = None, None
        run.epoch += 1
        run.next_seq = max(run.next_seq, run.rows[-1].seq + 1 if run.rows else 1)

    def leave(self, worker: UUID) -> None:
        if any(r.owner == worker for r in self.runs.values()):
            self.workers[worker].is_leaving = True
        else:
            del self.workers[worker]
