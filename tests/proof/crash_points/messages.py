"""What stands in the messages of a call: names for its statements, and where it breaks in two."""

from __future__ import annotations

import re
from typing import Final

_LABELS: Final = (
    ("set lease_until = clock_timestamp() + lease", "BEAT"),
    ("w.protocol <=", "LOOK"),
    ("solo_lane", "HAS_SOLO_RUNS"),
    ("with watchers as", "FORGET_WATCHERS"),
    ("w.run_id, w.key, w.attempt", "TIMES_UP"),
    ("m.run_id, m.id", "NEW_MAIL"),
    ("coalesce(r.request::text", "REQUESTS"),
    ("kedge.inbox)", "HAS_MAIL"),
)

CLAIM: Final = "begin hold_worker claim commit read_claimed read_waits read_mail"


def named(sql: str) -> str:
    """A short name for a statement."""
    text = " ".join(sql.split())
    for part, label in _LABELS:
        if part in text:
            return label
    if found := re.search(r'select(?: [\w, ]+ from)? "?kedge"?\.(\w+)\(', text):
        return found[1]
    verb = text.split(" ", 1)[0].lower()
    table = re.search(r'(?:into|from|update) (?:"?kedge"?\.)?(\w+)', text)
    return f"{verb} {table[1]}" if table else verb


def first(call: list[bytes], statements: int) -> list[bytes]:
    """So many statements of a call, without its Sync."""
    taken: list[bytes] = []
    left = statements
    for message in call:
        if left == 0:
            break
        taken.append(message)
        left -= message[:1] == b"E"
    return taken
