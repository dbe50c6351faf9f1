"""The database side of kedge as text: numbered tables, versioned api functions, engine functions. Applies nothing."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib.resources import files
from typing import Final, Literal

import msgspec

from kedge.errors import InvalidOptionError
from kedge.schema.privileges import privileges_sql
from kedge.shown import shown

SCHEMA_VERSION: Final = 3
"""The number of the newest file in ``tables/``."""

_SCHEMA_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,40}")
_QUALIFIER: Final = re.compile(r"\bkedge\.")

# Views and functions may stand on each other only in this order.
_FIRST: Final = ("engine/clock.sql", "engine/names.sql", "engine/views.sql", "engine/notify.sql", "api/ring_v1.sql")
_LAST: Final = ("engine/check_invariants.sql",)


class Migration(msgspec.Struct, frozen=True):
    """One numbered file of ``tables/``: forward only; its first line says whether running code survives it."""

    number: int
    name: str
    kind: Literal["additive", "breaking"]
    sql: str


def check_schema_name(schema: str) -> str:
    """Return the name, or refuse it: the schema is the one identifier that comes from configuration."""
    if type(schema) is not str or not _SCHEMA_NAME.fullmatch(schema):
        raise InvalidOptionError(
            f"schema name {shown(schema)} is refused: use [a-z_][a-z0-9_]{{0,40}}, such as 'kedge'"
        )
    return schema


def render(sql: str, schema: str) -> str:
    """Put the schema's quoted name wherever the text qualifies by ``kedge.``."""
    return _QUALIFIER.sub(f'"{check_schema_name(schema)}".', sql)


@cache
def migrations() -> tuple[Migration, ...]:
    """All table migrations, in the order in which they must be applied."""
    found: list[Migration] = []
    for file in sorted(files("kedge.schema").joinpath("tables").iterdir(), key=lambda f: f.name):
        number, _, name = file.name.removesuffix(".sql").partition("_")
        text = file.read_text("utf-8")
        kind = text.split("\n", 1)[0].removeprefix("-- ")
        if kind not in ("additive", "breaking"):
            raise ValueError(f"{file.name}: the first line must be '-- additive' or '-- breaking', it is {kind!r}")
        found.append(Migration(int(number), name, "breaking" if kind == "breaking" else "additive", text))
    return tuple(found)


@cache
def functions() -> tuple[tuple[str, str], ...]:
    """Every function and view as (file name, text), in an order in which they can be created."""
    root = files("kedge.schema")
    names = [
        f"{folder}/{name}"
        for folder in ("engine", "api")
        for name in sorted(f.name for f in root.joinpath(folder).iterdir())
    ]
    middle = [n for n in names if n not in _FIRST + _LAST]
    return tuple((n, root.joinpath(n).read_text("utf-8")) for n in (*_FIRST, *middle, *_LAST))


@cache
def functions_hash() -> str:
    """Identifies the functions and who may call them: a database that has others gets all of them again."""
    digest = hashlib.blake2b(digest_size=16)
    for name, text in functions():
        digest.update(name.encode() + b"\0" + text.encode() + b"\0")
    digest.update(privileges_sql("kedge").encode())
    return digest.hexdigest()
