"""
The border to the database where payloads are encrypted: a claim is opened before its handler begins, and what is queued
is sealed before it is gathered. In between everything is clear. Source: docs/decisions/0014-payload-encryption.md.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol
from uuid import UUID

from msgspec.structs import replace

from kedge.codecs import lacks_codec
from kedge.errors import DamagedPayloadError, NotDecodableError
from kedge.run_meta import RunMeta
from kedge.sealing import (
    VALUES,
    arguments_place,
    error_place,
    event_place,
    fast_forward_place,
    input_place,
    lineage,
    output_place,
    poll_place,
    seal,
    seal_hash,
    seal_line,
    unseal,
    value_place,
)
from kedge.wire import SEALED_CODEC, decoder
from kedge_worker._outcomes import End, Move, RetryLater, RowKind
from kedge_worker._runs import ClaimedRun, Journal, LiveRun, Mail, MemoRow, StoredWait
from kedge_worker._side_writes import KEEP_FAILURES, OPEN_WAITS, SEND_LETTERS, START_CHILDREN, WRITE_LOG, SideWrite
from kedge_worker._signals import ClosedError

if TYPE_CHECKING:
    from kedge.codecs import PayloadCodec, PayloadContext
    from kedge.start_terms import StartTerms

_log: Final = logging.getLogger("kedge.worker")

_KEY_SLOT: Final = "k:"
_FAILED: Final = ("f", "x")
_decode_text: Final = decoder(str)


def read_run(seals: Seals | None, run: ClaimedRun) -> tuple[ClaimedRun, str | None]:
    """Decrypt what a claim has brought; with a reason if this worker cannot execute the run."""
    if seals is None:
        return run, _unreadable(run)
    try:
        return seals.open_run(run), None
    except Exception as error:  # noqa: BLE001  # whatever stands in the database, and whatever codec it is
        return run, _told_unreadable(error)


def read_mail(
    seals: Seals | None, run_id: UUID, mail: Sequence[Mail], state_of: Callable[[str], bytes | None]
) -> tuple[Sequence[Mail], str | None]:
    """The same for what comes to a run in memory: nothing of it if a part cannot be read."""
    if seals is None:
        reason = _unreadable_mail(mail)
        return (mail, None) if reason is None else ((), reason)
    try:
        return seals.open_mail(run_id, mail, state_of), None
    except Exception as error:  # noqa: BLE001  # as above
        return (), _told_unreadable(error)


def _unreadable(run: ClaimedRun) -> str | None:
    """Say why a worker that has no codec cannot execute this run; None: nothing of it is encrypted."""
    sealed = SEALED_CODEC
    if run.input[:1] == sealed:
        return str(lacks_codec(run.input, "the input"))
    for row in run.memo:
        if row.value[:1] == sealed or row.meta[:1] == sealed:
            data = row.value if row.value[:1] == sealed else row.meta
            return str(lacks_codec(data, f"the outcome {row.key!r}"))
    for wait in run.waits:
        if wait.state[:1] == sealed:
            return str(lacks_codec(wait.state, f"the state of poll {wait.key!r}"))
    return _unreadable_mail(run.mail)


def _unreadable_mail(mail: Iterable[Mail]) -> str | None:
    for one in mail:
        payload = bytes(one.payload)
        # In front of a child's end stands its status.
        sealed = payload[1:] if payload[:1] in (b"c", b"f") else payload
        if sealed[:1] == SEALED_CODEC:
            return str(lacks_codec(sealed, "mail"))
    return None


def _told_unreadable(error: Exception) -> str:
    if isinstance(error, NotDecodableError):
        return str(error)
    if isinstance(error, CodecFailedError):
        return f"its payloads cannot be decrypted: {error}"
    return _told_of_bug(error)


def _told_of_bug(error: Exception) -> str:
    """Say that kedge itself has failed: no key helps."""
    # Without the error's words, in which something of a payload may stand.
    _log.error("a bug in kedge, %s at\n%s", type(error).__qualname__, "".join(traceback.format_tb(error.__traceback__)))
    return f"its payloads cannot be read or written, by a bug in kedge: {type(error).__qualname__}"


class CodecFailedError(Exception):
    """Somebody's codec has raised what it should not. Says only of which kind: anything may stand in its words."""


class _Called:
    """A codec whose own errors are known as such."""

    def __init__(self, codec: PayloadCodec) -> None:
        self._codec = codec
        self.strict = codec.strict

    def encode(self, payload: bytes, context: PayloadContext, /) -> bytes:
        try:
            return self._codec.encode(payload, context)
        except Exception as error:
            raise CodecFailedError(type(error).__qualname__) from error

    def decode(self, data: bytes, context: PayloadContext, /) -> bytes:
        try:
            return self._codec.decode(data, context)
        except NotDecodableError:
            raise
        except Exception as error:
            raise CodecFailedError(type(error).__qualname__) from error

    def digest(self, data: bytes, /) -> bytes:
        try:
            return self._codec.digest(data)
        except Exception as error:
            raise CodecFailedError(type(error).__qualname__) from error


class Seals:
    """What is bound to what, for each thing that a worker reads and writes."""

    def __init__(self, codec: PayloadCodec) -> None:
        self._codec: PayloadCodec = _Called(codec)

    # ---- in

    def open_run(self, run: ClaimedRun) -> ClaimedRun:
        """
        Decrypt all that a claim has brought.

        Raises:
            NotDecodableError: A key is missing, or something of it is damaged.
        """
        codec = self._codec
        is_rerun = RunMeta.readable(run.meta).origin is not None
        values = (row.value for row in run.memo if row.kind in VALUES)
        home = lineage(run.id, (run.input, *values) if is_rerun else (), is_rerun=is_rerun)
        return replace(
            run,
            home=home,
            input=unseal(codec, run.input, input_place(home, run.workflow)),
            memo=tuple(self._open_row(run.id, home, row) for row in run.memo),
            waits=tuple(self._open_wait(run.id, wait) for wait in run.waits),
            mail=self.open_mail(run.id, run.mail, {wait.key: wait.state for wait in run.waits}.get),
        )

    def _open_row(self, run_id: UUID, home: UUID, row: MemoRow) -> MemoRow:
        value, meta = row.value, row.meta
        if row.kind in VALUES:
            value = unseal(self._codec, value, value_place(home, row.kind, row.key, row.seq))
        elif row.kind == "f":
            value = unseal(self._codec, value, error_place(run_id, row.key))
        if meta[:1] == SEALED_CODEC:
            place = arguments_place(run_id if row.kind in _FAILED else home, row.key, row.seq)
            meta = unseal(self._codec, meta, place)
        return row if value is row.value and meta is row.meta else replace(row, value=value, meta=meta)

    def _open_wait(self, run_id: UUID, wait: StoredWait) -> StoredWait:
        if wait.kind != "p":
            return wait
        return replace(wait, state=unseal(self._codec, wait.state, poll_place(run_id, wait.key, wait.attempt)))

    def open_mail(
        self, run_id: UUID, mail: Iterable[Mail], state_of: Callable[[str], bytes | None]
    ) -> tuple[Mail, ...]:
        """
        Decrypt mail. An end for which nobody waits yet is left out: it is unread still, and comes again.

        Args:
            run_id: Whose mail.
            mail: As it stands in the database.
            state_of: Answers what is stored of an open wait, by its key; of a child's that names the child.

        Raises:
            NotDecodableError: A key is missing, or something of it is damaged.
        """
        opened = (self._open_one(run_id, one, state_of) for one in mail)
        return tuple(one for one in opened if one is not None)

    def _open_one(self, run_id: UUID, mail: Mail, state_of: Callable[[str], bytes | None]) -> Mail | None:
        slot, payload = mail.slot, mail.payload
        if not slot.startswith(_KEY_SLOT):
            place = event_place(None if slot.startswith("t:") else run_id, slot, mail.id)
            return replace(mail, payload=unseal(self._codec, payload, place))
        status = bytes(payload[:1])
        if status not in (b"c", b"f", b"x"):
            return replace(mail, payload=unseal(self._codec, payload, fast_forward_place(run_id, mail.id)))
        if status == b"x":
            return mail
        state = state_of(slot.removeprefix(_KEY_SLOT))
        if not state:
            return None
        try:
            child = UUID(_decode_text(state, where="a child's id"))
        except ValueError as error:
            raise DamagedPayloadError(f"wait {slot.removeprefix(_KEY_SLOT)!r}", "names no child") from error
        place = output_place(child) if status == b"c" else error_place(child)
        return replace(mail, payload=status + unseal(self._codec, payload[1:], place))

    # ---- out

    def row(self, run: LiveRun, seq: int, kind: str, key: str, value: bytes, meta: bytes) -> tuple[bytes, bytes]:
        """Encrypt what a journal row says."""
        run_id, home = run.claimed.id, run.claimed.home or run.claimed.id
        if kind in VALUES:
            value = seal(self._codec, value, value_place(home, kind, key, seq))
        elif kind == "f":
            value = seal(self._codec, value, error_place(run_id, key))
        # Hashes of arguments can be guessed, and those of a small value in no time.
        if b'"inputs"' in meta:
            meta = seal(self._codec, meta, arguments_place(run_id if kind in _FAILED else home, key, seq))
        return value, meta

    def move(self, run: LiveRun, move: Move) -> Move:
        """Encrypt what a run ends with, or its attempt."""
        run_id = run.claimed.id
        if isinstance(move, End):
            output = None if move.output is None else seal(self._codec, move.output, output_place(run_id))
            error = None if move.error is None else seal(self._codec, move.error, error_place(run_id))
            return replace(move, output=output, error=error)
        if isinstance(move, RetryLater):
            return replace(move, error=seal(self._codec, move.error, error_place(run_id)))
        return move

    def side(self, run: LiveRun, side: SideWrite, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Encrypt what is written beside the journal."""
        codec, run_id = self._codec, run.claimed.id
        if side is START_CHILDREN:
            seq, key, child, workflow, queue, priority, payload, *rest = values
            sealed = seal(codec, payload, input_place(UUID(bytes=child), workflow))
            return (seq, key, child, workflow, queue, priority, sealed, *rest)
        if side is OPEN_WAITS:
            *front, state = values
            key, kind, attempt = values[0], values[1], values[6]
            return (*front, seal(codec, state, poll_place(run_id, key, attempt))) if kind == "p" else values
        if side is SEND_LETTERS:
            kind, to, letter, slot, payload, sender, event_id = values
            if payload is None:
                return values
            place = event_place(None if kind == "t" else UUID(bytes=to), slot, UUID(bytes=event_id or letter))
            return kind, to, letter, slot, seal(codec, payload, place), sender, event_id
        if side is KEEP_FAILURES:
            *front, key, error = values
            return (*front, key, seal(codec, error, error_place(run_id, key)))
        if side is WRITE_LOG:
            number, level, message, fields = values
            return number, level, "", seal_line(codec, run_id, message, fields)
        return values

    def start(self, child_id: UUID, terms: StartTerms) -> StartTerms:
        """Encrypt the input of a child that starts alone."""
        key_hash = None if terms.key_hash is None else seal_hash(self._codec, terms.key_hash)
        place = input_place(child_id, terms.workflow)
        return terms._replace(input=seal(self._codec, terms.input, place), key_hash=key_hash)


class Owner(Protocol):
    """The executor, as far as a sealed journal needs it."""

    def put_off(self, run_id: UUID, reason: str) -> None: ...
    def put_off_at_end(self, run: LiveRun, reason: str) -> None: ...


class SealedJournal:
    """
    A `Journal` in front of another one: what goes in is clear, what comes out is sealed.

    Args:
        journal: Gathers.
        seals: Encrypt.
        owner: Puts off the runs for which the codec has failed; nothing is ever written in clear.
    """

    def __init__(self, journal: Journal, seals: Seals, owner: Callable[[], Owner]) -> None:
        self._journal = journal
        self._seals = seals
        self._owner = owner

    def keep(self, run: LiveRun, kind: RowKind, key: str, value: bytes, *, took_ms: int = 0, meta: bytes = b"") -> int:
        try:
            value, meta = self._seals.row(run, run.next_seq, kind, key, value, meta)
        except Exception as error:  # noqa: BLE001  # somebody's codec
            raise self._refused(run, error) from None
        return self._journal.keep(run, kind, key, value, took_ms=took_ms, meta=meta)

    def add(self, run: LiveRun, side: SideWrite, *values: Any, size: int = 100) -> None:
        try:
            values = self._seals.side(run, side, values)
        except Exception as error:  # noqa: BLE001  # as above
            raise self._refused(run, error) from None
        self._journal.add(run, side, *values, size=size)

    async def durable(self, run: LiveRun) -> None:
        await self._journal.durable(run)

    def move(self, run: LiveRun, move: Move) -> None:
        try:
            move = self._seals.move(run, move)
        except Exception as error:  # noqa: BLE001  # as above
            self._owner().put_off_at_end(run, _told(run, error))
        else:
            self._journal.move(run, move)

    def _refused(self, run: LiveRun, error: Exception) -> ClosedError:
        self._owner().put_off(run.claimed.id, _told(run, error))
        return ClosedError()


def _told(run: LiveRun, error: Exception) -> str:
    is_codecs = isinstance(error, CodecFailedError)
    reason = f"its payloads cannot be encrypted: {error}" if is_codecs else _told_of_bug(error)
    _log.error("run %s: %s", run.claimed.id, reason)
    return reason
