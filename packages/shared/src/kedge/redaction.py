"""
Takes secrets out of texts that are kept or logged: an exception's message is whatever some library put into it.

What looks like a secret goes: credentials in URLs, Authorization headers, `password=...` and its like, PEM blocks, JSON
web tokens; and what is known to be one, such as the password of kedge's own connection. Better one word too many than
one secret too few: an error text is for people, and what code needs stands in payloads.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, TypeAlias, cast
from urllib.parse import quote

Redactor: TypeAlias = Callable[[str], str]

HIDDEN: Final = "***"

MIN_SECRET: Final = 4
"""Characters. What is shorter would be found everywhere."""

_MAX_SECRETS: Final = 1000
_STANDS_ALONE: Final = 12
"""What is shorter counts as a secret only between signs that are part of no word: else "post" would tear "postgres"."""

# Each is linear in the text's length, whatever the text: an attacker may have written it.
_PATTERNS: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (re.compile(r"-----BEGIN [A-Z0-9 ]{1,60}-----.*?(?:-----END [A-Z0-9 ]{1,60}-----|\Z)", re.DOTALL), HIDDEN),
    # libpq, too, reads userinfo up to the last @ before a slash.
    (re.compile(r"://[^\s/]*@"), f"://{HIDDEN}@"),
    (
        re.compile(
            r"(authorization['\"]?\s{0,5}(?:=>|[:=,])\s{0,5})"
            r"(?:[bBuU]?\"(?:[^\"\\]|\\.)*\"|[bBuU]?'(?:[^'\\]|\\.)*'|[^\r\n]+)",
            re.IGNORECASE,
        ),
        rf"\1{HIDDEN}",
    ),
    (
        re.compile(
            r"((?:password|passwd|passphrase|pwd|secret|token(?!s\b)|api[_-]?key|access[_-]?key|private[_-]?key"
            r"|credential|cookie)[\w-]{0,30}['\"]?\s{0,5}(?:=>|[:=])\s{0,5})"
            r"(?:[bBuU]?\"(?:[^\"\\]|\\.)*\"|[bBuU]?'(?:[^'\\]|\\.)*'|[^\s,;&)\]}]+)",
            re.IGNORECASE,
        ),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"(?<![\w-])(bearer\s{1,5})[\w.~+/=-]{12,}", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"(?<![\w-])eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?"), HIDDEN),
)

_secrets: dict[str, None] = {}
_known: re.Pattern[str] | None = None
_redactors: list[Redactor] = []


def add_redactor(redactor: Redactor, /) -> None:
    """
    Let one more function look at every error text before it is cut to size and kept.

    Args:
        redactor: Gets up to 16 KiB of text behind kedge's own rules and answers it without secrets. If it raises, the
            whole text is dropped. Of the whole process, for as long as it lives.
    """
    if redactor not in _redactors:
        _redactors.append(redactor)


def remove_redactor(redactor: Redactor, /) -> None:
    """Forget a function again; nothing happens when it is not known."""
    if redactor in _redactors:
        _redactors.remove(redactor)


def hide(*secrets: str | None) -> None:
    """
    Take these out of every text from now on, also where they are written as in a URL.

    Args:
        secrets: Shorter ones than four characters are passed over, for they would be found everywhere.
    """
    global _known
    for secret in secrets:
        if secret and len(secret) >= MIN_SECRET:
            _secrets.update(dict.fromkeys((secret, quote(secret, safe=""), repr(secret)[1:-1])))
    while len(_secrets) > _MAX_SECRETS:
        del _secrets[next(iter(_secrets))]
    # Longest first: one secret may be the beginning of another.
    found = sorted(_secrets, key=len, reverse=True)
    _known = re.compile("|".join(map(_as_pattern, found))) if found else None


def redact(text: str) -> str:
    """Answer the text without what is, or looks like, a secret. Never fails."""
    if _known is not None:
        text = _known.sub(HIDDEN, text)
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    for redactor in _redactors:
        try:
            answer = cast("object", redactor(text))
            text = str.__str__(answer) if isinstance(answer, str) else ""
        except Exception as error:  # noqa: BLE001  # the application's own code
            return f"<dropped, for a redactor raised {type(error).__qualname__}>"
    return text


def _as_pattern(secret: str) -> str:
    escaped = re.escape(secret)
    return escaped if len(secret) >= _STANDS_ALONE else rf"(?<!\w){escaped}(?!\w)"
