"""
A client under load: `python -m tests.proof.kit.load --rate 200 --seconds 60 --mix steps:4,event:1`.

Starts runs at a rate, sends the events that they wait for, may wait for results; every call stands in its journal. A
call whose outcome is unknown is repeated with its key until it is known, as an application would.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar
from uuid import uuid4

from kedge import InvalidRunStateError, OutcomeUnknownError, RunError, UnavailableError
from kedge_client import AsyncClient, AsyncRunHandle
from tests.proof.kit.journal import Journal
from tests.proof.kit.programs import FOLDER_VARIABLE, REFS, Work, go

T = TypeVar("T")
AGAIN_S: Final = 0.1


class Load:
    """One client and what it does."""

    def __init__(self, client: AsyncClient, journal: Journal, options: argparse.Namespace) -> None:
        self._client = client
        self._journal = journal
        self._options = options
        self._names = [name for name, weight in _mix(options.mix) for _ in range(weight)]

    async def run(self) -> None:
        """Start runs at the rate for so many seconds, then wait for what is under way."""
        begin = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in itertools.count():
                due = begin + number / self._options.rate
                if due > begin + self._options.seconds or number >= self._options.runs:
                    return
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                group.create_task(self._one(random.choice(self._names)))

    async def _one(self, name: str) -> None:
        key = uuid4().hex
        about = {"key": key, "workflow": name}
        request = REFS[name](Work(self._options.n, self._options.pause), key=key)
        handle = await self._settled("start", about, lambda: self._client.start(request))
        self._journal.write("start.ok", run=str(handle.id), **about)
        if name == "event":
            for n in range(self._options.n):
                await self._send(handle, n)
        if name == "patient":
            await self._cancel(handle)
        elif random.random() < self._options.pauses:
            await self._hold(handle)
        if random.random() < self._options.results:
            await self._result(handle)

    async def _send(self, handle: AsyncRunHandle[object], n: int) -> None:
        about = {"run": str(handle.id), "n": n, "lane": self._journal.who}
        await self._settled("send", about, lambda: handle.send(go(n, key=str(n))))
        self._journal.write("send.ok", **about)

    async def _cancel(self, handle: AsyncRunHandle[object]) -> None:
        about = {"run": str(handle.id)}
        await self._settled("cancel", about, lambda: handle.cancel(reason="the load's"))
        self._journal.write("cancel.ok", **about)

    async def _hold(self, handle: AsyncRunHandle[object]) -> None:
        about = {"run": str(handle.id)}
        for what, ask in (("pause", handle.pause), ("resume", handle.resume)):
            try:
                await self._settled(what, about, ask)
            except InvalidRunStateError:
                return  # it was faster
            self._journal.write(f"{what}.ok", **about)

    async def _result(self, handle: AsyncRunHandle[object]) -> None:
        while True:
            try:
                self._journal.write("result.ok", run=str(handle.id), value=await handle.result())
            except RunError as error:
                self._journal.write("result.failed", run=str(handle.id), error=repr(error))
            except UnavailableError:
                await asyncio.sleep(AGAIN_S)
                continue
            return

    async def _settled(self, what: str, about: Mapping[str, object], call: Callable[[], Awaitable[T]]) -> T:
        while True:
            self._journal.write(f"{what}.invoke", **about)
            try:
                return await call()
            except OutcomeUnknownError:
                self._journal.write(f"{what}.unknown", **about)
            except UnavailableError:
                self._journal.write(f"{what}.fail", **about)
            await asyncio.sleep(AGAIN_S)


def _mix(text: str) -> list[tuple[str, int]]:
    return [(name, int(weight or 1)) for name, _, weight in (part.partition(":") for part in text.split(","))]


async def main() -> None:
    """Read the arguments, be the client."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=float, default=50.0, help="starts a second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--runs", type=int, default=10**9, help="at most")
    parser.add_argument("--mix", default="steps:4,event:1", help="workflow:weight,...")
    parser.add_argument("--n", type=int, default=3, help="operations of a run")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds a body takes")
    parser.add_argument("--results", type=float, default=0.1, help="share of the runs whose result is waited for")
    parser.add_argument("--pauses", type=float, default=0.0, help="share of the runs that are paused and resumed")
    parser.add_argument("--listen", type=int, default=1, help="0: results are polled for")
    options = parser.parse_args()
    journal = Journal(Path(os.environ[FOLDER_VARIABLE]), f"client-{os.getpid()}")
    async with AsyncClient.connect(max_connections=8, listen=bool(options.listen)) as client:
        await Load(client, journal, options).run()


if __name__ == "__main__":
    asyncio.run(main())
