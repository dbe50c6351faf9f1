"""
Bytes as releases have written them. They lie in databases: they must be read for ever, so no line here may change.

A new shape gets a new line. Lines of writers may go when no release writes them any more, lines of readers never.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, TypedDict
from uuid import UUID

import msgspec
import pytest

from kedge import DomainError, ErrorInfo, EventRef, Retry, WorkflowRef
from kedge.definitions import DefinitionTerms
from kedge.failures import decode_error, domain_error, encode_error
from kedge.hashes import fingerprint, input_hash
from kedge.ids import run_id_time
from kedge.options import StartOptions, resolve
from kedge.run_meta import RetryTerms, RunMeta
from kedge.run_state import CODES
from kedge.wire import decode, encode


class Line(msgspec.Struct, frozen=True):
    sku: str
    count: int


class Order(msgspec.Struct, frozen=True, tag=True):
    order_id: str
    lines: list[Line]
    note: str | None = None


@dataclass
class Parcel:
    weight: float


class Address(TypedDict):
    zip: int


class Color(Enum):
    RED = "red"


class CardDeclined(DomainError):
    code: str
    on: date


WRITTEN: list[tuple[Any, Any, bytes]] = [
    (None, None, b"\x01null"),
    (bool, True, b"\x01true"),
    (int, -(2**63), b"\x01-9223372036854775808"),
    (int, 10**30, b"\x011000000000000000000000000000000"),
    (float, 1.0, b"\x011.0"),
    (float, -0.0, b"\x01-0.0"),
    (float, 1e308, b"\x011e308"),
    (str, 'größe\0\u2028🚢"\\', b'\x01"gr\xc3\xb6\xc3\x9fe\\u0000\xe2\x80\xa8\xf0\x9f\x9a\xa2\\"\\\\"'),
    (bytes, b"\x00\xff", b'\x01"AP8="'),
    (list[int], [1, 2], b"\x01[1,2]"),
    (tuple[int, str], (1, "a"), b'\x01[1,"a"]'),
    (dict[str, int], {"b": 1, "a": 2}, b'\x01{"b":1,"a":2}'),
    (dict[int, str], {7: "a"}, b'\x01{"7":"a"}'),
    (Decimal, Decimal("0.10"), b'\x01"0.10"'),
    (UUID, UUID(int=7), b'\x01"00000000-0000-0000-0000-000000000007"'),
    (datetime, datetime(2026, 1, 2, 3, 4, 5, 600, tzinfo=UTC), b'\x01"2026-01-02T03:04:05.000600Z"'),
    (date, date(2026, 1, 2), b'\x01"2026-01-02"'),
    (timedelta, timedelta(days=1, seconds=2, microseconds=3), b'\x01"P1DT2.000003S"'),
    (Color, Color.RED, b'\x01"red"'),
    (Parcel, Parcel(1.5), b'\x01{"weight":1.5}'),
    (Address, {"zip": 20457}, b'\x01{"zip":20457}'),
    (
        Order,
        Order("1", [Line("a", 2)]),
        b'\x01{"type":"Order","order_id":"1","lines":[{"sku":"a","count":2}],"note":null}',
    ),
]


@pytest.mark.parametrize(("type_", "value", "stored"), WRITTEN, ids=range(len(WRITTEN)))
def test_payloads_are_written_and_read_as_ever(type_: Any, value: object, stored: bytes) -> None:
    assert encode(value, where="x") == stored
    assert decode(stored, type_, where="x") == value


READ: list[tuple[Any, Any, bytes]] = [
    (Order, Order("1", []), b'\x01{"type":"Order","order_id":"1","lines":[],"added_later":[1]}'),
    (list[int], [1, 2], b"\x02\x92\x01\x02"),
    (Parcel, Parcel(1.5), b"\x02\x81\xa6weight\xcb?\xf8\x00\x00\x00\x00\x00\x00"),
    (RunMeta, RunMeta(), b"\x01{}"),
    (RunMeta, RunMeta({"a": 1}), b'\x01{"metadata":{"a":1},"added_later":true}'),
    (ErrorInfo, ErrorInfo("a.B", "m"), b'\x01{"kind":"a.B","message":"m","added_later":1}'),
]


@pytest.mark.parametrize(("type_", "value", "stored"), READ, ids=range(len(READ)))
def test_payloads_of_other_releases_are_read(type_: Any, value: object, stored: bytes) -> None:
    assert decode(stored, type_, where="x") == value


METAS: list[tuple[dict[str, Any], bytes]] = [
    ({}, b""),
    ({"resource": "customer-7", "tags": ["a"], "delay": "1s"}, b""),
    ({"metadata": {"source": "shop"}}, b'\x01{"metadata":{"source":"shop"}}'),
    ({"timeout": None}, b'\x01{"timeout_s":null,"asked":["timeout"]}'),
    ({"queue": "fast", "priority": 3}, b'\x01{"asked":["priority","queue"]}'),
    (
        {"retry": Retry(3, jitter=False), "timeout": "90s"},
        (
            b'\x01{"timeout_s":90.0,"retry":{"max_attempts":3,"initial_s":1.0,"factor":2.0,"maximum_s":60.0,'
            b'"jitter":false},"asked":["retry","timeout"]}'
        ),
    ),
]


@pytest.mark.parametrize(("options", "stored"), METAS, ids=range(len(METAS)))
def test_the_meta_of_a_run_is_written_as_ever(options: dict[str, Any], stored: bytes) -> None:
    assert resolve(StartOptions(), options).meta == stored


def test_the_meta_of_a_run_is_read_as_ever() -> None:
    stored = METAS[-1][1]

    assert RunMeta.decode(stored) == RunMeta(
        {}, 90.0, RetryTerms(3, 1.0, 2.0, 60.0, jitter=False), ("retry", "timeout")
    )


DEFINITIONS: list[tuple[DefinitionTerms, bytes]] = [
    (DefinitionTerms(), b""),
    (DefinitionTerms(timeout_s=None), b'\x01{"timeout_s":null}'),
    (
        DefinitionTerms(timeout_s=90.0, retry=RetryTerms(3, 1.0, 2.0, 60.0, jitter=False)),
        (
            b'\x01{"timeout_s":90.0,"retry":{"max_attempts":3,"initial_s":1.0,"factor":2.0,"maximum_s":60.0,'
            b'"jitter":false}}'
        ),
    ),
]


@pytest.mark.parametrize(("terms", "stored"), DEFINITIONS, ids=range(len(DEFINITIONS)))
def test_the_options_of_a_definition_are_written_and_read_as_ever(terms: DefinitionTerms, stored: bytes) -> None:
    assert terms.encode() == stored
    assert DefinitionTerms.decode(stored) == terms


def test_the_meta_of_a_rerun_is_read_as_ever() -> None:
    origin = "0198c0de-0000-7000-8000-000000000000"
    alone = b'\x01{"origin":"' + origin.encode() + b'"}'
    behind = b'\x01{"metadata":{"a":1},"asked":["queue"],"origin":"' + origin.encode() + b'"}'

    assert RunMeta.decode(alone) == RunMeta(origin=origin)
    assert RunMeta.decode(behind) == RunMeta({"a": 1}, asked=("queue",), origin=origin)


STORED_ERROR = (
    b'\x01{"kind":"tests.contract.test_wire_golden.CardDeclined","message":"code=\'expired\'","key":"charge",'
    b'"attempt":2,"traceback":"  File \\"shop.py\\", line 1, in charge\\n","cause":{"kind":"builtins.OSError",'
    b'"message":"reset"},"data":{"code":"expired","on":"2026-01-02"}}'
)
ERROR = ErrorInfo(
    "tests.contract.test_wire_golden.CardDeclined",
    "code='expired'",
    "charge",
    2,
    '  File "shop.py", line 1, in charge\n',
    ErrorInfo("builtins.OSError", "reset"),
    {"code": "expired", "on": "2026-01-02"},
)


def test_errors_are_written_and_read_as_ever() -> None:
    assert encode_error(ERROR) == STORED_ERROR
    assert decode_error(STORED_ERROR) == ERROR


def test_a_stored_domain_error_is_rebuilt_as_ever() -> None:
    again = domain_error(decode_error(STORED_ERROR), (CardDeclined,))

    assert isinstance(again, CardDeclined)
    assert vars(again) == {"code": "expired", "on": date(2026, 1, 2)}


HASHES: list[tuple[Any, str]] = [
    (None, "941dffce4e4308ceb33e87326003257d"),
    ({"b": [1, 2.0], "a": {"d": None, "c": "x"}}, "107597ea99e00ea7ea9c907b2c9ed8d6"),
    ({"red", "green", "blue"}, "04164f9f55dbd5be1304c82a27ad5f1b"),
    (Order("1", [Line("a", 2)]), "04e326e8f7875180044790bbcecd0ec6"),
]


@pytest.mark.parametrize(("value", "stored"), HASHES, ids=range(len(HASHES)))
def test_the_hash_behind_a_key_is_as_ever(value: object, stored: str) -> None:
    assert input_hash(value).hex() == stored


FINGERPRINTS: list[tuple[Any, str]] = [
    (None, "5d49971e24b7c586"),
    (Any, "01e7b720ff566d53"),
    (Order, "b59ac5ea4e6267bd"),
    (Parcel | None, "638aeb54af27a08b"),
    (dict[str, set[Color]], "e8af6beb74cfadc3"),
]


@pytest.mark.parametrize(("type_", "stored"), FINGERPRINTS, ids=range(len(FINGERPRINTS)))
def test_a_types_fingerprint_is_as_ever(type_: Any, stored: str) -> None:
    # When msgspec describes types in another way, keys of runs in flight compare nothing for a while: say so.
    assert fingerprint(type_).hex() == stored


def test_requests_and_messages_carry_these_bytes() -> None:
    request = WorkflowRef("process", Order)(Order("1", []))
    message = EventRef("settled", Parcel)(Parcel(1.5))

    assert request.payload == b'\x01{"type":"Order","order_id":"1","lines":[],"note":null}'
    assert request.key_hash == fingerprint(Order) + input_hash(Order("1", []))
    assert message.payload == b'\x01{"weight":1.5}'


def test_the_letters_of_the_statuses_are_as_ever() -> None:
    assert CODES == {
        "pending": "p",
        "running": "r",
        "waiting": "w",
        "paused": "s",
        "completed": "c",
        "failed": "f",
        "cancelled": "x",
    }


def test_the_time_of_an_id_is_read_as_ever() -> None:
    assert run_id_time(UUID("019a0000-0000-7abc-8000-000000000000")) == datetime(
        2025, 10, 20, 5, 3, 11, 360000, tzinfo=UTC
    )
