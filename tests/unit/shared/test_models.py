"""Models that bring their own validation: any class with pydantic's methods, and pydantic itself where it is there."""

from datetime import UTC, datetime
from typing import Any

import pytest

from kedge import WorkflowRef
from kedge.errors import InvalidInputError, NotDecodableError, NotEncodableError
from kedge.hashes import fingerprint
from kedge.wire import decode, encode


class Celsius:
    """The least that makes a model."""

    def __init__(self, degrees: float) -> None:
        self.degrees = degrees

    @classmethod
    def model_validate(cls, value: object) -> "Celsius":
        match value:
            case {"degrees": int() | float() as degrees}:
                return cls(degrees)
            case _:
                raise ValueError("degrees must be a number")

    def model_dump(self, **options: Any) -> dict[str, Any]:
        assert options == {"mode": "json", "by_alias": True, "round_trip": True}
        return {"degrees": self.degrees}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Celsius) and other.degrees == self.degrees

    def __hash__(self) -> int:
        return hash(self.degrees)


class Broken(Celsius):
    def model_dump(self, **_: Any) -> dict[str, Any]:
        raise LookupError("no dump today")


def test_a_model_goes_through_its_own_methods() -> None:
    payload = encode({"now": [Celsius(21)]}, where="x")

    assert payload == b'\x01{"now":[{"degrees":21}]}'
    assert decode(payload, dict[str, list[Celsius]], where="x") == {"now": [Celsius(21)]}


def test_a_models_own_refusal_is_told_with_its_place() -> None:
    with pytest.raises(NotDecodableError) as caught:
        decode(b'\x01[{"degrees":1},{"degrees":"warm"}]', list[Celsius], where="x")

    assert (caught.value.problem, caught.value.path) == ("degrees must be a number", "$[1]")


def test_a_number_that_json_cannot_hold_is_found_in_a_model() -> None:
    with pytest.raises(NotEncodableError, match="is nan") as caught:
        encode([Celsius(float("nan"))], where="x")

    assert caught.value.path == "$[0].degrees"


def test_a_model_that_cannot_be_dumped_is_refused() -> None:
    with pytest.raises(NotEncodableError, match="LookupError: no dump today"):
        encode({"now": Broken(1)}, where="x")


def test_a_model_without_a_schema_can_be_a_refs_type() -> None:
    ref = WorkflowRef("measure", Celsius, list[Celsius])

    assert ref(Celsius(3)).input == Celsius(3)
    assert ref.decode_output(ref.encode_output([Celsius(4)])) == [Celsius(4)]
    assert len(ref.fingerprint) == 8


LOOSE: Any = WorkflowRef


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    # By hand, not by class statements: pydantic is no dependency, so type checkers may not know it.
    pydantic: Any = pytest.importorskip("pydantic")
    line: Any = pydantic.create_model("Line", sku=(str, ...), count=(int, pydantic.Field(gt=0, alias="Count")))
    order = pydantic.create_model(
        "Order",
        lines=(list.__class_getitem__(line), ...),
        weight=(float, 1.0),
        at=(datetime, ...),
        note=(str | None, None),
    )
    return {"Order": order, "Line": line}


def test_a_pydantic_model_comes_back_equal(models: dict[str, Any]) -> None:
    order = models["Order"](lines=[{"sku": "a", "Count": 2}], at=datetime(2026, 1, 1, tzinfo=UTC))
    ref = LOOSE("ship", models["Order"], models["Order"])

    request = ref(order)

    assert request.input == order
    assert ref.decode_output(ref.encode_output(order)) == order
    assert len(request.key_hash) == 24


def test_what_pydantic_converts_is_kept_converted(models: dict[str, Any]) -> None:
    ref = LOOSE("ship", models["Order"])

    request = ref({"lines": [{"sku": "a", "Count": "2"}], "at": "2026-01-01T00:00:00Z", "unknown": 1})

    assert request.payload == (
        b'\x01{"lines":[{"sku":"a","Count":2}],"weight":1.0,"at":"2026-01-01T00:00:00Z","note":null}'
    )


@pytest.mark.parametrize(
    ("count", "problem"), [("many", "valid integer"), (0, "greater than 0"), (None, "valid integer")]
)
def test_what_pydantic_refuses_is_told_by_the_field(models: dict[str, Any], count: object, problem: str) -> None:
    ref = LOOSE("ship", models["Order"])

    with pytest.raises(InvalidInputError, match=problem) as caught:
        ref({"lines": [{"sku": "a", "Count": count}], "at": "2026-01-01T00:00:00Z"})

    assert caught.value.path == "$.lines[0].Count"
    assert "\n" not in str(caught.value)


def test_pydantics_nan_is_refused_like_any_other(models: dict[str, Any]) -> None:
    order = models["Order"](lines=[], at=datetime(2026, 1, 1, tzinfo=UTC), weight=float("nan"))

    with pytest.raises(NotEncodableError, match="is nan") as caught:
        encode({"order": order}, where="x")

    assert caught.value.path == "$.order.weight"


def test_a_pydantic_model_of_another_shape_has_another_fingerprint(models: dict[str, Any]) -> None:
    assert fingerprint(models["Order"]) != fingerprint(models["Line"])
    assert fingerprint(models["Order"]) == fingerprint(models["Order"])
