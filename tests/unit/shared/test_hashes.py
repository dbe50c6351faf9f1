import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedge.hashes import FINGERPRINT_BYTES, HASH_BYTES, fingerprint, input_hash
from kedge.wire import decode, encode

KEYED = st.dictionaries(st.text(max_size=5), st.integers() | st.lists(st.integers()), min_size=2)


@given(KEYED, st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter(value: dict[str, Any], random: Any) -> None:
    items = list(value.items())
    random.shuffle(items)

    assert input_hash(dict(items)) == input_hash(value)


@given(st.sets(st.text()))
def test_the_order_of_a_sets_members_does_not_matter(value: set[str]) -> None:
    stored = encode(value, where="x")

    assert input_hash(value) == input_hash(decode(stored, set[str], where="x"))
    assert input_hash(value) == input_hash(sorted(value))


@pytest.mark.parametrize(
    ("one", "other"),
    [([1, 2], [2, 1]), ({"a": 1}, {"a": 2}), ({"a": None}, {}), (1, "1"), (1, 1.0), ("", None), ([], {})],
)
def test_other_values_have_other_hashes(one: object, other: object) -> None:
    assert input_hash(one) != input_hash(other)


def test_hashes_have_their_size() -> None:
    assert (len(input_hash(1)), len(fingerprint(int))) == (HASH_BYTES, FINGERPRINT_BYTES) == (16, 8)


def order_with(**changes: Any) -> type[msgspec.Struct]:
    fields: dict[str, Any] = {
        "order_id": (str,),
        "cents": (int, 0),
        "tags": (set[str], msgspec.field(default_factory=set)),
    }
    fields.update(changes)
    return msgspec.defstruct("Order", [(name, *typed) for name, typed in fields.items()], kw_only=True)


def test_a_type_that_is_made_again_has_the_same_fingerprint() -> None:
    assert fingerprint(order_with()) == fingerprint(order_with())


@pytest.mark.parametrize(
    "changes",
    [
        {"cents": (float, 0)},
        {"cents": (int, 1)},
        {"cents": (int,)},
        {"cents": (Annotated[int, msgspec.Meta(ge=0)], 0)},
        {"note": (str | None, None)},
    ],
)
def test_a_type_whose_values_may_look_different_has_another_fingerprint(changes: dict[str, Any]) -> None:
    assert fingerprint(order_with(**changes)) != fingerprint(order_with())


def test_texts_for_people_do_not_make_another_type() -> None:
    described = Annotated[int, msgspec.Meta(description="in cents", title="Amount", examples=[1, 2])]

    assert fingerprint(described) == fingerprint(int)


def test_fields_that_are_called_like_texts_count() -> None:
    assert fingerprint(order_with(title=(str,))) != fingerprint(order_with())
    assert fingerprint(order_with(title=(str,))) != fingerprint(order_with(title=(int,)))


@dataclass
class Unordered:
    colors: frozenset[str] = frozenset({"red", "green", "blue", "black", "white"})
    sizes: list[int] = field(default_factory=list[int])


@pytest.mark.parametrize(
    "type_",
    [None, Any, object, dict[str, object], int | None, Literal["b", "a"], Unordered, list[Unordered], Callable, 3],
)
def test_every_type_has_a_fingerprint(type_: Any) -> None:
    assert len(fingerprint(type_)) == FINGERPRINT_BYTES


def test_processes_agree_on_fingerprints_and_hashes() -> None:
    program = (
        "from tests.unit.shared.test_hashes import Unordered, order_with;"
        "from kedge.hashes import fingerprint, input_hash;"
        "print(fingerprint(Unordered).hex(), fingerprint(order_with()).hex(), input_hash(Unordered()).hex())"
    )

    # Another seed means another order of every set of texts.
    answers = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }

    assert len(answers) == 1
