"""
Decides when to claim and how much; the flusher sends it.

Claims go on while they come back full. A claim that comes back empty puts the worker to sleep: it registers as idle,
looks once more (whoever starts a run looks for a sleeper after its commit), and waits until somebody rings: a client,
or the watchman for what is due, and for what a lost doorbell has left.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from kedge_worker._claims import LOWEST, MAX_CANDIDATES, ClaimAnswer, ClaimRequest, Lane, Taken
from kedge_worker._errors import TroubleError
from kedge_worker._statements import CLAIM_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from kedge_worker._store import Store

_log: Final = logging.getLogger("kedge.worker")

_MAX_LANES: Final = 50
_FLOOR_AGE_S: Final = 1.0
# After a claim that brought something, the next start is likely to be near: look again that much later, without
# a sleeper's row, so that batches form by themselves and the doorbell stays silent under load.
_LINGER_S: Final = 0.001
# What a run in memory does with its mail, two flushes as a rule, goes before a claim that will find nothing.
_OWN_MAIL_S: Final = 0.004
MAX_CLAIM: Final = 500
_MANY_SLOTS: Final = 20


class Claimer:
    """`wanted` and `answered` are called by the flusher's task, `run` is a task of its own."""

    def __init__(
        self,
        store: Store,
        *,
        queues: Sequence[str],
        workflows: Sequence[str],
        free: Callable[[int], int],
        poke: Callable[[], None],
        timeouts: Mapping[str, float],
        slots: int,
    ) -> None:
        self._store = store
        self._queues = queues
        self._workflows = workflows
        self._lanes: list[Lane] = list(itertools.product(queues, workflows))
        self._timeouts = {lane: timeouts[lane[1]] for lane in self._lanes if lane[1] in timeouts}
        self._turn = 0
        # Half of the slots: while Postgres writes for one half, Python executes the other. Of a few slots that would
        # make small claims that are full, and behind each of these another one is asked for at once.
        self._cap = min(MAX_CLAIM, (slots + 1) // 2 if slots >= _MANY_SLOTS else slots)
        self._most = self._cap
        self._free = free
        self._poke = poke
        self._floors: dict[Lane, tuple[int, int]] = {}
        self._floors_at = 0.0
        self._spread = 1
        self._hungry = False
        self._asked = False
        self._bell = asyncio.Event()
        self._slot = asyncio.Event()
        self._answer: asyncio.Future[Taken] | None = None
        self._may_be_registered = False
        self.sleeps = False
        """Whether it waits for its bell, with free slots and with nothing to claim for all it knows."""
        self.stopped = False

    # ---- called by the flusher

    def wanted(self, ending: int) -> ClaimRequest | None:
        if not self._hungry or self._asked or self.stopped:
            return None
        limit = min(self._free(ending), self._most)
        if limit <= 0 or not self._lanes:
            return None
        self._asked = True
        lanes = self._lanes
        if len(lanes) > _MAX_LANES:
            lanes = [lanes[(self._turn + i) % len(lanes)] for i in range(_MAX_LANES)]
            self._turn = (self._turn + _MAX_LANES) % len(self._lanes)
        now = asyncio.get_running_loop().time()
        if now - self._floors_at > _FLOOR_AGE_S:
            self._floors.clear()
            self._floors_at = now
        floors = {lane: self._floors.get(lane, LOWEST) for lane in lanes}
        return ClaimRequest(limit, floors, self._timeouts, self._spread)

    def answered(self, answer: ClaimAnswer) -> None:
        self._asked = False
        if answer.was_contended:
            self._spread = min(2 * self._spread, MAX_CANDIDATES)
        elif not answer.is_full:
            self._spread = 1
        if not answer.is_full:
            self._floors.clear()
            self._hungry = False
        else:
            self._floors.update(answer.highest)
            self._most = min(self._most * 2, self._cap)
        self._most = min(self._most, fitting(answer))
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(Taken(len(answer.runs), answer.is_full))

    def unanswered(self) -> None:
        """The connection broke or the claim was refused: ask again."""
        self._asked = False

    def narrow(self) -> bool:
        """A claimed run cannot be read: go on one at a time for a while. Answers whether the claim was of one."""
        was_narrow = self._most == 1
        self._most = 1
        return was_narrow

    # ---- called by everybody

    def takes(self, queue: str, workflow: str) -> bool:
        """Whether this worker has room for runs of this lane."""
        return not self.stopped and (queue, workflow) in self._lanes and self._free(0) > 0

    @property
    def is_full(self) -> bool:
        """Whether runs may be waiting for a slot."""
        return self._free(0) <= 0

    def ring(self) -> None:
        """There is something to claim."""
        self._bell.set()
        if self.sleeps:
            # At once: the flusher need not wait until this one's task has had its turn.
            self._hungry = True
            self._poke()

    def ring_soon(self) -> None:
        """There is nothing to claim, but the ring for letters has taken the sleeper's row: look and register again."""
        asyncio.get_running_loop().call_later(_OWN_MAIL_S, self.ring)

    def slot_freed(self) -> None:
        self._slot.set()
        if self._hungry:
            self._poke()

    # ---- its own task

    async def look(self) -> Taken:
        """
        Claim when there is a free slot: from one share of the lanes after the other, and further where others hold what
        comes first, until something comes.
        """
        shares = -(-len(self._lanes) // _MAX_LANES)
        while True:
            answer = await self._look()
            shares -= not answer.is_full
            if answer.runs or shares <= 0:
                return answer

    async def run(self) -> None:
        while not self.stopped:
            self._bell.clear()
            try:
                answer = await self.look()
                if not answer.runs:
                    await self._sleep()
                    continue
                if self._may_be_registered and self.is_full:
                    # Whoever rings must find another one. A ring has taken the row, unless it rode in a transaction.
                    await self._store.wake_up()
                    self._may_be_registered = False
            except TroubleError as error:
                _log.warning("claimer: %s", error)
                await self._wait(random.uniform(0.2, 1))  # noqa: S311  # jitter
                continue
            if not answer.is_full:
                await self._wait(_LINGER_S)

    async def _look(self) -> Taken:
        while self._free(0) <= 0:
            self._slot.clear()
            await self._slot.wait()
        self._answer = asyncio.get_running_loop().create_future()
        self._hungry = True
        self._poke()
        try:
            return await self._answer
        finally:
            self._answer = None

    async def _sleep(self) -> None:
        """Return when somebody rings, or when there was something to claim on the second look."""
        self._may_be_registered = True
        await self._store.go_idle(self._queues, self._workflows)
        if (await self.look()).runs:
            return
        self.sleeps = True
        try:
            await self._bell.wait()
        finally:
            self.sleeps = False

    async def _wait(self, seconds: float) -> None:
        """Until the bell rings, but no longer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._bell.wait()


def fitting(answer: ClaimAnswer) -> int:
    """How many runs the next claim may take if they are like these, for its answer to be of a moderate size."""
    count = len(answer.runs)
    if answer.was_cut:
        return max(1, count)
    size = answer.input_bytes
    return max(1, CLAIM_BYTES * count // size) if size > CLAIM_BYTES // 2 else MAX_CLAIM
