"""What workers say of the workflows that they have handlers for: for runs whose request and ref say nothing."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from kedge.run_meta import RetryTerms
from kedge.wire import JSON_CODEC, Buffer, decoder


class DefinitionTerms(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    The column `options` of a definition; fields are only ever added, at the end, with a default.

    How many steps it declares stands in a column of its own, since the database reckons with it.
    """

    timeout_s: float | UnsetType | None = UNSET
    """Of a run, from when it is due to its end. None: explicitly no timeout."""
    retry: RetryTerms | None = None
    """Of a run; None: the definition says nothing."""

    def encode(self) -> bytes:
        """Turn it into bytes; none at all when there is nothing to say."""
        body = _encode(self)
        return b"" if body == b"{}" else JSON_CODEC + body

    @classmethod
    def decode(cls, data: Buffer) -> DefinitionTerms:
        """
        Read it back; fields of newer releases are skipped.

        Raises:
            NotDecodableError: The bytes are damaged.
        """
        return _decode(data, where="options of a definition") if data else _EMPTY


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = decoder(DefinitionTerms)
_EMPTY: Final = DefinitionTerms()
