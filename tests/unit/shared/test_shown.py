import pytest

from kedge.shown import MAX_SHOWN, MAX_TOLD, shown, told


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError


class Nested:
    def __repr__(self) -> str:
        return "two\nlines  and \x1b[31m red"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("", "''"),
        ("größe", "'größe'"),
        ("a\x00\ud800", "'a\\x00\\ud800'"),
        (None, "None"),
        ([1, 2], "[1, 2]"),
        (10**5000, "<int>"),
    ],
    ids=["empty", "letters", "controls", "none", "list", "digits"],
)
def test_short_values_are_shown_as_they_are_written(value: object, text: str) -> None:
    assert shown(value) == text


def test_a_long_value_is_cut_in_the_middle() -> None:
    text = shown("a" * 1_000_000 + "z")

    assert text.startswith("'aaa")
    assert text.endswith("aaz'")
    assert "..." in text


def test_any_value_is_shown_on_one_short_line() -> None:
    deep: list[object] = []
    for _ in range(200_000):
        deep = [deep]

    for value in (deep, Broken(), Nested(), dict.fromkeys(range(1000), "x" * 1000), object(), Broken):
        text = shown(value)
        assert len(text) <= MAX_SHOWN + 2
        assert "\n" not in text


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no such\ncard"), "ValueError: no such card"),
        (ValueError(), "ValueError"),
        (ValueError(Broken()), "ValueError"),
        (LookupError("x" * 10_000), "LookupError: " + "x" * (MAX_TOLD - 13) + "..."),
    ],
    ids=["lines", "empty", "broken", "long"],
)
def test_an_error_is_told_by_its_class_and_message(error: Exception, text: str) -> None:
    assert told(error) == text
