from enum import StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedge.errors import InvalidNameError
from kedge.names import SOLO_LANE, check_key, check_name, check_optional_key, check_queue, check_step_id

# Harmless to bound parameters; each of them broke somebody's string building.
ODD_BUT_GOOD = [
    'a"b',
    "o'brien",
    "a$$b",
    "$cmd$",
    "x.job",
    "a\\b",
    "🚢",
    "\u202eabc",
    "Ԁaypal",
    "pg_catalog",
    "public",
    "%s",
    "%I",
    "{}",
    ":x",
    "--",
    ";drop schema x cascade",
    "a b",
    "\\u0000",
    "\ufeffx",
    "\ufffe",
    "e" + "\u0301" * 50,
    "x" * 200,
    "é" * 100,
]


@pytest.mark.parametrize("name", ODD_BUT_GOOD)
def test_names_that_only_look_dangerous_are_kept_as_they_are(name: str) -> None:
    assert check_name("workflow", name) == name


CONTROLS = [chr(c) for c in (*range(0x20), *range(0x7F, 0xA0))]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "is empty"),
        (" ", "begins or ends with a blank"),
        (" a", "begins or ends with a blank"),
        ("a ", "begins or ends with a blank"),
        ("\u00a0a", "begins or ends with a blank"),
        ("\ud800", "lone surrogate"),
        ("a\udfff", "lone surrogate"),
        ("a\u2028b", "line separator"),
        ("x" * 201, "has 201 bytes, the limit is 200"),
        ("é" * 101, "has 202 bytes, the limit is 200"),
        ("🚢" * 51, "has 204 bytes, the limit is 200"),
        ("x" * 2**20, "has 1,048,576 bytes"),
        (3, "is a int; give text"),
        (None, "is a NoneType"),
        (b"a", "is a bytes"),
        (["a"], "is a list"),
        *[(f"a{control}b", "control character") for control in CONTROLS],
    ],
)
def test_names_that_cannot_be_used_are_refused_with_the_reason(name: object, problem: str) -> None:
    with pytest.raises(InvalidNameError, match=problem) as caught:
        check_name("queue", name)

    assert caught.value.what == "queue"
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("sign", "~/#[]")
def test_a_step_id_may_not_contain_what_builds_keys(sign: str) -> None:
    assert check_name("tag", f"a{sign}b") == f"a{sign}b"

    with pytest.raises(InvalidNameError, match="has a meaning of its own"):
        check_step_id(f"a{sign}b")
    with pytest.raises(InvalidNameError, match="has a meaning of its own"):
        check_step_id(f"é{sign}b")


def test_a_key_may_have_255_bytes() -> None:
    assert check_key("key", "x" * 255) == "x" * 255

    with pytest.raises(InvalidNameError, match="has 256 bytes, the limit is 255"):
        check_key("key", "x" * 256)


def test_an_optional_key_may_be_none_but_not_empty() -> None:
    assert check_optional_key("key", None) is None

    with pytest.raises(InvalidNameError, match="is empty"):
        check_optional_key("key", "")


def test_a_name_of_an_enum_becomes_plain_text() -> None:
    class Queue(StrEnum):
        FAST = "fast"

    assert type(check_name("queue", Queue.FAST)) is str
    assert check_name("queue", Queue.FAST) == "fast"


@given(st.text(st.characters(), max_size=220))
def test_a_name_that_passes_can_be_stored_and_shown(name: str) -> None:
    try:
        checked = check_name("tag", name)
    except InvalidNameError:
        return

    assert checked == name == name.strip()
    assert 0 < len(name.encode()) <= 200
    assert "\x00" not in name


@pytest.mark.parametrize("name", [SOLO_LANE + "default", SOLO_LANE + SOLO_LANE + "x", ""])
def test_no_queue_is_called_as_a_lane_of_the_engine(name: str) -> None:
    with pytest.raises(InvalidNameError) as caught:
        check_queue(name)

    assert caught.value.what == "queue"


def test_a_queue_may_be_called_nearly_as_a_lane_of_the_engine() -> None:
    assert [check_queue(name) for name in ("!solo", "!solos", "solo x")] == ["!solo", "!solos", "solo x"]
