"""
A bulk start of any length: what goes in one transaction, and what stands when something goes wrong. Pure, shared by the
twins.

An error comes in its place: the requests before it are stored and were handed out, it and those behind it are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Generic, TypeVar

from kedge.errors import (
    DatabaseError,
    DomainError,
    InvalidOptionError,
    KedgeError,
    OutcomeUnknownError,
    RunExistsError,
)
from kedge_client._calls import ManyStarts
from kedge_client._requests import BATCH, AnyRequest, Start, new_start, scoped_request
from kedge_client._settings import ClientSettings

T = TypeVar("T")

CHUNK_BYTES: Final = 1024 * 1024
"""Inputs and metadata of one transaction, as they are encoded, before they are encrypted."""


class StartStream:
    """Which requests have been read and are not sent, which were sent and are not stored, and how many are."""

    def __init__(self, resource: str | None, settings: ClientSettings) -> None:
        self._resource = resource
        self._settings = settings
        self._gathered: list[AnyRequest] = []
        self._bytes = 0
        self._surplus: AnyRequest | None = None
        self._starts: list[Start] = []
        self._at_once = BATCH
        self._stored = 0
        self._is_over = False
        self._failure: Exception | None = None

    @property
    def wants_more(self) -> bool:
        """Whether to read another request before the next chunk is sent."""
        is_full = (
            self._surplus is not None or len(self._gathered) == BATCH or self._bytes >= CHUNK_BYTES or self._starts
        )
        return not (is_full or self._is_over)

    def add(self, request: AnyRequest) -> None:
        """
        Take a request.

        Raises:
            InvalidOptionError: No request, or one of another resource.
        """
        request = scoped_request(request, self._resource)
        size = len(request.payload) + len(request.options.meta)
        if self._gathered and self._bytes + size > CHUNK_BYTES:
            self._surplus = request
        else:
            self._gathered.append(request)
            self._bytes += size

    def end(self, error: Exception | None = None) -> None:
        """There are no more requests; or this error came in the place of one, and is raised when that is reached."""
        self._is_over = True
        self._failure = error
        # Other people's errors come as they are; a DomainError is its fields.
        if isinstance(error, KedgeError) and not isinstance(error, DomainError):
            self._refuse(error, self._stored + len(self._starts) + len(self._gathered))

    def next_chunk(self) -> ManyStarts | None:
        """
        Return what to store next; None: everything is.

        Raises:
            Exception: That with which the requests have ended, when all before it are stored.
        """
        if not self._starts:
            self._make_starts()
        if self._starts:
            return ManyStarts(self._starts[: self._at_once], wake=self._settings.wake)
        if self._failure is not None:
            raise self._failure
        return None

    def stored(self, chunk: ManyStarts) -> None:
        """Take note that a chunk is stored."""
        del self._starts[: len(chunk.starts)]
        self._stored += len(chunk.starts)

    def goes_on(self, chunk: ManyStarts, error: KedgeError) -> bool:
        """
        Take note that a chunk was not stored.

        A chunk is all or none, so that one bad request in it keeps good ones out. Those before it are tried again,
        by halves: however many are bad, the first of them is found soon.

        Returns:
            Whether there is something to store before this error is raised.
        """
        starts = chunk.starts
        if isinstance(error, RunExistsError):
            place = next(place for place, start in enumerate(starts) if start.run_id == error.run_id)
            if place:
                del self._starts[place:]
                self._at_once = (place + 1) // 2
                self._gathered = []
                self._is_over = True
                self._failure = error
            self._refuse(error, self._stored + place)
            return place > 0
        # These may be about one request, and do not say which.
        if isinstance(error, InvalidOptionError) or type(error) is DatabaseError:
            if len(starts) > 1:
                self._at_once = len(starts) // 2
                return True
            self._refuse(error, self._stored)
        else:
            error.request_place = self._stored
            behind = "the others are not"
            if isinstance(error, OutcomeUnknownError):
                behind = f"of the next {len(starts):,} all are or none, the others are not"
            error.add_note(f"start_stream: the first {self._stored:,} requests are started, {behind}")
            if self._failure is not None:
                error.add_note(f"start_stream: behind them comes a {type(self._failure).__name__}, which is not raised")
        return False

    def _make_starts(self) -> None:
        # Ids are made when they are needed: their time must not be an hour old when they arrive.
        gathered, surplus = self._gathered, self._surplus
        self._gathered, self._bytes, self._surplus = [], 0, None
        self._at_once = BATCH
        for request in gathered:
            try:
                self._starts.append(new_start(request, self._resource, self._settings.codec))
            except Exception as error:  # noqa: BLE001  # a codec may be anybody's; raised when its place is reached
                self.end(error)
                return
        if surplus is not None:
            self.add(surplus)

    def _refuse(self, error: KedgeError, place: int) -> None:
        error.request_place = place
        error.add_note(f"start_stream: it is request {place:,}, counted from 0; those before it are started")


class Ready(Generic[T]):
    """Lets what need not be awaited be walked like what must."""

    def __init__(self, iterator: Iterator[T]) -> None:
        self._iterator = iterator

    def __aiter__(self) -> Ready[T]:
        return self

    async def __anext__(self) -> T:
        for item in self._iterator:
            return item
        raise StopAsyncIteration
