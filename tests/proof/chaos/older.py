"""A database as the first release left it."""

from __future__ import annotations

import hashlib

import psycopg

from kedge import schema as kedge_schema
from kedge_worker._migrator import _prelude, _record


def older(url: str) -> None:
    """The tables of the first release, and functions that are not ours."""
    first = kedge_schema.migrations()[0]
    digest = hashlib.blake2b(first.sql.encode(), digest_size=16).hexdigest()
    parts = [
        _prelude("kedge"),
        kedge_schema.render(first.sql, "kedge"),
        _record(first.number, first.name, first.kind, digest, "kedge"),
        _record(0, "functions", "additive", "of an older release", "kedge"),
    ]
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("\n".join(parts).encode())
