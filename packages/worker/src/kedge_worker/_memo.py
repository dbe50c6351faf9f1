"""What the journal holds of a run from its earlier lives, and what of it has not been handed out yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from kedge.wire import JSON_CODEC, Buffer, decoder
from kedge_worker._runs import MemoRow


class RowMeta(msgspec.Struct, frozen=True, omit_defaults=True):
    """The column `meta` of an outcome; nearly always empty. Fields are only ever added, at the end, with a default."""

    operation: str = "s"
    """Of a failure or an interruption: what it was, by the kind that its success would have had."""
    nows: dict[str, int] = {}
    """What the run was told of the time before this outcome: microseconds since 1970 by the key of the one before."""
    inputs: tuple[bytes, ...] = ()
    """
    What is to be compared on replay. Of a step: hashes of its arguments; empty, of one that cannot be hashed. Of a
    child's start: its workflow; 8 bytes of its input's type and 8 of the input.
    """

    def encode(self) -> bytes:
        """Turn it into bytes; none at all when there is nothing to say."""
        body = _encode_meta(self)
        return b"" if body == b"{}" else JSON_CODEC + body

    @classmethod
    def decode(cls, data: Buffer) -> RowMeta:
        """
        Read it back.

        Raises:
            NotDecodableError: The bytes are damaged.
        """
        return _decode_meta(data, where="meta of an outcome") if data else _NOTHING


_encode_meta: Final = msgspec.json.Encoder().encode
_decode_meta: Final = decoder(RowMeta)
_NOTHING: Final = RowMeta()


class Memo:
    """
    The kept outcomes by key, and the order in which they once reached the handler.

    An outcome is outstanding until it was handed out, or skipped: when nobody can ask for it any more before somebody
    else goes on.
    """

    __slots__ = ("_by_key", "_ended", "_interrupting", "_place", "_rows", "_skipped", "patches")

    def __init__(self, rows: Sequence[MemoRow], ended: Callable[[], None] | None = None) -> None:
        self._rows = rows
        # Of two rows with one key the later one counts: an interrupted transaction may have been committed before.
        self._by_key = {row.key: row for row in rows if row.kind != "k"}
        self.patches = frozenset(row.key for row in rows if row.kind == "k")
        """The changes of the code that this run has been told to have: no outcomes, and in nobody's way."""
        self._place = 0
        self._skipped = 0
        self._interrupting: set[int] = set()
        self._ended = ended
        """Called once, when the last outcome is handed out."""

    def __bool__(self) -> bool:
        return bool(self._by_key)

    def get(self, key: str) -> MemoRow | None:
        """Answer the kept outcome; it stays outstanding."""
        return self._by_key.get(key)

    def hand_out(self, row: MemoRow) -> None:
        """The handler has it, or does not want it any more."""
        self._by_key.pop(row.key, None)
        self._interrupting.discard(row.seq)
        if not self._by_key and self._ended is not None:
            ended, self._ended, self._rows = self._ended, None, ()
            ended()

    def expect_interruption(self, row: MemoRow) -> None:
        """The operation is there and waits for the handler's code to interrupt it again: nothing may overtake that."""
        self._interrupting.add(row.seq)

    def lowest(self) -> int | None:
        """The lowest outstanding seq."""
        rows, by_key = self._rows, self._by_key
        while self._place < len(rows):
            row = rows[self._place]
            if row.seq > self._skipped and by_key.get(row.key) is row:
                return row.seq
            self._place += 1
        return None

    def awaits_interruption(self, seq: int) -> bool:
        return seq in self._interrupting

    def skip(self, seq: int) -> None:
        """Wait no longer for this one and what is below. Who asks later gets it all the same."""
        self._skipped = max(self._skipped, seq)
