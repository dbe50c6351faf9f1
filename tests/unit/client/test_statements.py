"""One text in three forms, and values on their way through Postgres' binary format."""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedge_client import _letter_statements, _read_statements, _statements
from kedge_client._binary import DECODERS, ENCODERS
from kedge_client._statements import Statement

ALL = [
    value
    for module in (_statements, _letter_statements, _read_statements)
    for value in vars(module).values()
    if isinstance(value, Statement)
]
TRIVIAL = Statement("t", "select kedge.f({b}, {a}, {b})", {"a": "int4", "b": "text"}, ("text", "int4"))


def test_a_statement_is_written_for_each_driver() -> None:
    assert TRIVIAL.numbered("kedge") == 'select "kedge".f(cast($2 as text), cast($1 as int4), cast($2 as text))'
    assert TRIVIAL.libpq("kedge") == TRIVIAL.numbered("kedge").encode()
    assert TRIVIAL.pyformat("x") == 'select "x".f(cast(%(b)s as text), cast(%(a)s as int4), cast(%(b)s as text))'
    assert TRIVIAL.named("kedge") == 'select "kedge".f(cast(:b as text), cast(:a as int4), cast(:b as text))'


def test_names_of_statements_are_unique() -> None:
    assert len({statement.name for statement in ALL}) == len(ALL) > 10


@pytest.mark.parametrize("statement", ALL, ids=[statement.name.decode() for statement in ALL])
def test_every_parameter_is_used_and_every_type_known(statement: Statement) -> None:
    text = statement.text
    assert all(f"{{{name}}}" in text for name in statement.parameters)
    assert len(statement.formats) == len(statement.parameters)
    assert "%" not in text
    assert ":" not in text


def test_values_are_encoded_in_the_order_of_the_parameters() -> None:
    assert TRIVIAL.encode([7, "x"]) == [b"\0\0\0\7", b"x"]
    assert TRIVIAL.encode([None, None]) == [None, None]
    assert [(place, read(data)) for (place, read), data in zip(TRIVIAL.columns, [b"x", b"\0\0\0\7"], strict=True)] == [
        (0, "x"),
        (1, 7),
    ]
    with pytest.raises(ValueError, match="zip"):
        TRIVIAL.encode([7])


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_moment_comes_back_to_the_microsecond(moment: datetime) -> None:
    assert DECODERS["timestamptz"](ENCODERS["timestamptz"](moment)) == moment


def test_a_moment_is_the_same_in_every_zone() -> None:
    zone = timezone(timedelta(hours=5, minutes=45))
    moment = datetime(2026, 3, 1, 2, 3, 4, 567, tzinfo=UTC)

    assert ENCODERS["timestamptz"](moment.astimezone(zone)) == ENCODERS["timestamptz"](moment)


@given(st.lists(st.text(st.characters(codec="utf-8"))))
def test_texts_come_back(texts: list[str]) -> None:
    assert DECODERS["text[]"](ENCODERS["text[]"](texts)) == texts


@given(st.uuids())
def test_an_id_comes_back(value: UUID) -> None:
    assert DECODERS["uuid"](ENCODERS["uuid"](value)) == value


def test_an_array_may_hold_nulls() -> None:
    encoded = ENCODERS["bytea[]"]([b"a", None])

    assert encoded == struct.pack("!iiIii", 1, 1, 17, 2, 1) + b"\0\0\0\1a" + b"\xff\xff\xff\xff"


@pytest.mark.parametrize("kind", ["uuid[]", "text[]", "bytea[]"])
def test_an_empty_array_has_no_dimension(kind: str) -> None:
    assert ENCODERS[kind]([])[:4] == b"\0\0\0\0"
