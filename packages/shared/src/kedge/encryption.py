"""
AES-256-GCM for payloads, by the package `cryptography`: `pip install 'kedge[encryption]'`.

Nobody imports this but who encrypts.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Final, cast

from kedge.codecs import KEY_ID, PayloadContext, key_header, split_header
from kedge.errors import DamagedPayloadError, InvalidOptionError, KeyMissingError
from kedge.shown import shown

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["AesGcmCodec", "new_key"]

KEY_BYTES: Final = 32
_SALT_BYTES: Final = 16
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_DIGEST_BYTES: Final = 16
_SALTS: Final = 1024
"""Whose ciphers are kept ready: one a process that has written lately."""
_MESSAGES: Final = 2**24
"""Under one salt: with random nonces 2**32 are safe."""


def new_key() -> bytes:
    """Make a key of 32 random bytes; keep it where your other secrets are."""
    return secrets.token_bytes(KEY_BYTES)


class AesGcmCodec:
    """
    Encrypts with one key, decrypts with all that it holds. Safe to share; a forked process may go on with it.

    To rotate: first give the new key to all clients and workers in `keys`, then name it as `current`; take the old one
    out when no run is left that was written with it.

    Args:
        keys: 32 bytes each, by an id of up to 64 letters, digits and `.`, `_`, `:`, `/`, `-`. Ids are no secrets.
        current: The id of the key that encrypts.
        strict: Whether payloads in clear are refused.
        digest_key: The id of the key by which inputs of keyed starts are compared; None: the current one. Keep it over
            a rotation for as long as a repeated start with another input is to be noticed.

    Raises:
        InvalidOptionError: A key has another length, an id cannot be one, or an id is missing in `keys`.
        ImportError: `cryptography` is not installed.
    """

    __slots__ = ("_cipher", "_digest_secret", "_header", "_keys", "_left", "_own", "_pid", "_strict", "current")

    def __init__(
        self, keys: Mapping[str, bytes], *, current: str, strict: bool = False, digest_key: str | None = None
    ) -> None:
        for key_id, key in cast("Mapping[object, object]", keys).items():
            if not isinstance(key_id, str) or not KEY_ID.fullmatch(key_id):
                raise InvalidOptionError(f"key id {shown(key_id)}: 1 to 64 letters, digits and . _ : / - make one")
            if not isinstance(key, bytes) or len(key) != KEY_BYTES:
                raise InvalidOptionError(f"key {key_id!r} is not {KEY_BYTES} bytes: new_key() makes one")
        for option, key_id in (("current", current), ("digest_key", digest_key or current)):
            if key_id not in keys:
                raise InvalidOptionError(f"{option}={shown(key_id)} is not among the keys")
        aes_gcm = _aes_gcm()
        held = self._keys = dict(keys)
        self.current: Final = current
        """The id of the key that encrypts."""
        self._strict = strict
        self._header = key_header(current)
        self._digest_secret = _derived(held[digest_key or current], b"digest", b"")

        @lru_cache(maxsize=_SALTS)
        def cipher(key_id: str, salt: bytes) -> AESGCM:
            return aes_gcm(_derived(held[key_id], b"aes-256-gcm", salt))

        self._cipher = cipher
        self._own: tuple[bytes, AESGCM] | None = None
        self._left = 0
        self._pid = 0

    @property
    def strict(self) -> bool:
        """Whether payloads in clear are refused."""
        return self._strict

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The ids of all keys that it holds."""
        return tuple(self._keys)

    def encode(self, payload: bytes, context: PayloadContext, /) -> bytes:
        """Encrypt with the current key."""
        own = self._own
        if own is None or self._left <= 0 or self._pid != os.getpid():
            own = self._salted()
        # Threads may count a few less: there is room for 256 times as many.
        self._left -= 1
        salt, cipher = own
        nonce = os.urandom(_NONCE_BYTES)
        head = self._header + salt
        return head + nonce + cipher.encrypt(nonce, payload, head + context.associated_data())

    def decode(self, data: bytes, context: PayloadContext, /) -> bytes:
        """
        Decrypt with the key that the payload names.

        Raises:
            KeyMissingError: It is not held.
            DamagedPayloadError: The payload was made for another context or changed, or this is another key of that id.
        """
        parts = split_header(data)
        if parts is None or len(parts[1]) < _SALT_BYTES + _NONCE_BYTES + _TAG_BYTES:
            raise DamagedPayloadError(str(context), "is cut off, or its header is damaged")
        key_id, body = parts
        if key_id not in self._keys:
            raise KeyMissingError(str(context), key_id)
        salt, nonce = body[:_SALT_BYTES], body[_SALT_BYTES : _SALT_BYTES + _NONCE_BYTES]
        bound = key_header(key_id) + salt + context.associated_data()
        try:
            return self._cipher(key_id, salt).decrypt(nonce, body[_SALT_BYTES + _NONCE_BYTES :], bound)
        except _invalid_tag():
            problem = f"was changed or moved, or its key {key_id!r} is another one here"
            raise DamagedPayloadError(str(context), problem) from None

    def digest(self, data: bytes, /) -> bytes:
        """Hash with a key that is derived from the digest's."""
        return hashlib.blake2b(data, key=self._digest_secret, digest_size=_DIGEST_BYTES).digest()

    def _salted(self) -> tuple[bytes, AESGCM]:
        """Begin a salt of this process's own."""
        salt = os.urandom(_SALT_BYTES)
        self._own = own = salt, self._cipher(self.current, salt)
        self._left, self._pid = _MESSAGES, os.getpid()
        return own

    def __repr__(self) -> str:
        strict = ", strict=True" if self._strict else ""
        return f"<AesGcmCodec keys={', '.join(self._keys)} current={self.current}{strict}>"

    def __reduce__(self) -> str | tuple[object, ...]:
        # Keys must not end up in a queue, a cache or a crash dump.
        raise TypeError("an AesGcmCodec is not pickled: it holds keys; make one in each process")


def _derived(key: bytes, purpose: bytes, salt: bytes) -> bytes:
    return hmac.digest(key, b"kedge " + purpose + b"\0" + salt, "sha256")


def _aes_gcm() -> type[AESGCM]:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # only here is it needed
    except ImportError as error:
        raise ImportError("AesGcmCodec needs the package cryptography: pip install 'kedge[encryption]'") from error
    return AESGCM


def _invalid_tag() -> type[Exception]:
    from cryptography.exceptions import InvalidTag  # as above

    return InvalidTag
