"""The protocol's state: what is committed, what transactions have in hand, what workers believe, what may come."""

from __future__ import annotations

from enum import Enum, auto
from typing import Any, Final, NamedTuple, TypeAlias

Label: TypeAlias = str

NOBODY: Final = -1
OLD: Final = 4
"""Plus the worker: its old transaction, as the holder of a lock."""

COURIER: Final = 8
TAKER: Final = 9


class Broken(Enum):
    """A precaution that is missing."""

    FLUSH_HAS_NO_FENCE = auto()
    FLUSH_HAS_NO_EPOCH = auto()
    FLUSH_HAS_NO_OWNER = auto()
    FLUSH_DOES_NOT_HOLD_ITS_WORKER = auto()
    CLAIM_DOES_NOT_HOLD_ITS_WORKER = auto()
    CLAIM_DOES_NOT_LOOK_BEHIND_ITS_LOCK = auto()
    CLAIM_KEEPS_THE_EPOCH = auto()
    PARK_LOCKS_AND_LOOKS_IN_ONE_STATEMENT = auto()
    PARK_LOOKS_BEFORE_IT_LOCKS = auto()
    PARK_FORGETS_REQUESTS = auto()
    COURIER_DECIDES_IN_THE_LOCKING_STATEMENT = auto()
    COURIER_TAKES_SKIPPED_FOR_GONE = auto()
    CANCEL_OVERWRITES_COMPLETED = auto()
    TIMEOUT_IS_DECIDED_BY_THE_SWEEPER = auto()
    EVENT_IS_CONSUMED_BEFORE_ITS_ROW = auto()
    CONSUMED_MAIL_IS_DELETED = auto()
    REPEAT_TAKES_A_NEW_SEQ = auto()
    TAKE_BACK_GOES_BY_ID = auto()
    TAKE_BACK_DROPS_ITS_WORKER_AT_ONCE = auto()
    TAKE_BACK_KEEPS_THE_EPOCH = auto()
    BEAT_REVIVES = auto()
    NEW_CONNECTION_DOES_NOT_END_THE_OLD_ONE = auto()
    CHILD_STARTS_WITHOUT_ITS_ROW = auto()
    END_TELLS_BEHIND_ITS_COMMIT = auto()


class Row(NamedTuple):
    key: str
    value: str
    epoch: int


class Mail(NamedTuple):
    id: str
    is_read: bool


class Run(NamedTuple):
    status: str = "p"  # - not started, p r w as everywhere, c x ended
    epoch: int = 0
    owner: int = NOBODY
    request: str = ""
    rows: tuple[Row, ...] = ()
    waits: tuple[str, ...] = ()
    mail: tuple[Mail, ...] = ()
    lock: int = NOBODY


class Batch(NamedTuple):
    """What one flush carries for its run."""

    row: tuple[str, str] = ("", "")
    opens: str = ""
    closes: str = ""
    reads: str = ""
    starts: bool = False
    move: str = ""  # park, end c, end f, release


class Worker(NamedTuple):
    """One life of a process: its row, then what it has in memory and in hand."""

    stands: bool = True
    has_lapsed: bool = False
    holds: int = 0  # KEY SHARE, by how many of its own transactions
    is_locked: bool = False  # FOR UPDATE, by the taker
    lives: bool = True
    phase: str = "idle"
    run: int = 0
    epoch: int = 0
    known: int = 0  # rows that the handler was told of
    mail: tuple[str, ...] = ()  # unread, as far as it knows
    batch: Batch = Batch()
    passed: bool = False  # the fence of the rows
    decided: str = ""  # what becomes of the run


class Courier(NamedTuple):
    phase: str = ""
    letters: tuple[tuple[str, int], ...] = ()
    runs: tuple[int, ...] = ()
    waits: tuple[tuple[str, ...], ...] = ()  # as an early snapshot showed them


class Taker(NamedTuple):
    phase: str = ""
    worker: int = NOBODY
    runs: tuple[int, ...] = ()
    has_more: bool = False


class Old(NamedTuple):
    """A transaction whose client has turned away from it, or a handler that writes on though its run was given up."""

    phase: str = ""
    worker: int = NOBODY
    run: int = 0
    epoch: int = 0
    known: int = 0
    batch: Batch = Batch()
    passed: bool = False
    decided: str = ""


class Budget(NamedTuple):
    """What may still happen."""

    events: int = 2
    resends: int = 0
    cancels: int = 1
    ticks: int = 1
    stalls: int = 1
    crashes: int = 1
    losses: int = 1
    leftovers: int = 0


class State(NamedTuple):
    runs: tuple[Run, ...]
    workers: tuple[Worker, ...]
    budget: Budget
    inbox: tuple[tuple[str, int], ...] = ()
    courier: Courier = Courier()
    taker: Taker = Taker()
    old: Old = Old()
    is_due: bool = False
    sent: int = 0
    told: tuple[tuple[tuple[str, str], ...], ...] = ((), ())
    """What handlers were told, of each run; another life must not be told otherwise."""
    unwritten: tuple[str, ...] = ()
    """Events whose row was to follow (a broken form)."""
    wrong: str = ""


def first_state(budget: Budget, *, workers: int = 2, is_family: bool = False) -> State:
    return State((Run(), Run("-")) if is_family else (Run(),), (Worker(),) * workers, budget)


def renamed(state: State) -> State:
    """The same with the names of the two workers exchanged, if that brings them into order."""
    a, b = state.workers
    if a <= b:
        return state
    return state._replace(
        runs=tuple(r._replace(owner=_OTHER.get(r.owner, r.owner), lock=_OTHER.get(r.lock, r.lock)) for r in state.runs),
        workers=(b, a),
        taker=state.taker._replace(worker=_OTHER.get(state.taker.worker, NOBODY)),
        old=state.old._replace(worker=_OTHER.get(state.old.worker, NOBODY)),
    )


_OTHER: Final = {0: 1, 1: 0, OLD: OLD + 1, OLD + 1: OLD}


def is_for(letter: str, key: str) -> bool:
    """Whether the wait with this key takes it."""
    return key == "k" if letter.startswith("k:") else key in {"w1", "w2"}


def with_run(s: State, n: int, **what: Any) -> State:
    runs = list(s.runs)
    runs[n] = runs[n]._replace(**what)
    return s._replace(runs=tuple(runs))


def with_worker(s: State, w: int, **what: Any) -> State:
    workers = list(s.workers)
    workers[w] = workers[w]._replace(**what)
    return s._replace(workers=tuple(workers))
