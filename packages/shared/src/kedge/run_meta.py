"""What is kept beside a run's input: metadata and the policies that its ref or its request carry."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec import UNSET, UnsetType

from kedge.errors import KedgeError
from kedge.retry import Retry
from kedge.wire import JSON_CODEC, Buffer, decoder


class RetryTerms(msgspec.Struct, frozen=True):
    """A retry policy without its exception classes: these only the worker's code can name."""

    max_attempts: int | None
    initial_s: float
    factor: float
    maximum_s: float
    jitter: bool

    @classmethod
    def of(cls, retry: Retry) -> RetryTerms:
        """Take the numbers out of a policy."""
        initial_s, maximum_s = retry.initial.total_seconds(), retry.maximum.total_seconds()
        return cls(retry.max_attempts, initial_s, retry.factor, maximum_s, retry.jitter)

    def retry(self) -> Retry:
        """Make a policy of the numbers."""
        return Retry(
            self.max_attempts,
            initial=self.initial_s,
            factor=self.factor,
            maximum=self.maximum_s,
            jitter=self.jitter,
        )


class RunMeta(msgspec.Struct, frozen=True, omit_defaults=True):
    """The column `meta` of a run's input; fields are only ever added, at the end, with a default."""

    metadata: dict[str, Any] = {}
    timeout_s: float | UnsetType | None = UNSET
    """None: explicitly no timeout; unset: the worker's definition decides."""
    retry: RetryTerms | None = None
    asked: tuple[str, ...] = ()
    """Which of queue, priority, timeout and retry the request itself named; the others come from its ref."""
    origin: str | None = None
    """The id of the run whose memos it has taken over. rerun_run_v1 writes it, behind all that stands here."""

    def encode(self) -> bytes:
        """Turn it into bytes; none at all when there is nothing to say."""
        body = _encode(self)
        return b"" if body == b"{}" else JSON_CODEC + body

    @classmethod
    def decode(cls, data: Buffer) -> RunMeta:
        """
        Read it back; fields of newer releases are skipped.

        Raises:
            NotDecodableError: The bytes are damaged.
        """
        return _decode(data, where="meta of a run") if data else _EMPTY

    @classmethod
    def readable(cls, data: Buffer) -> RunMeta:
        """
        Read back what makes sense of it: all or nothing. Never fails.

        Whoever may call the functions of the database may write anything there, and one run that cannot be read must
        not hide the others of a list.
        """
        try:
            meta = cls.decode(data)
            if meta.retry is not None:
                meta.retry.retry()
            if meta.origin is not None:
                UUID(meta.origin)
            if isinstance(meta.timeout_s, float) and math.isfinite(meta.timeout_s):
                timedelta(seconds=meta.timeout_s)
        except (KedgeError, ValueError, OverflowError):
            return _EMPTY
        return meta


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = decoder(RunMeta)
_EMPTY: Final = RunMeta()
