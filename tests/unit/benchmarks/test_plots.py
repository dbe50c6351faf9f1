"""Plots are well-formed, to scale, and readable on light and dark pages."""

from xml.etree import ElementTree

import pytest

from benchmarks.plots import WIDTH, bars, curves, short

SVG = "{http://www.w3.org/2000/svg}"
GROUPS = {"one step": {"kedge": 10_000.0, "A & <B>": 100.0}, "ten steps": {"kedge": 1_000.0}}


def bars_of(svg: str) -> list[float]:
    rectangles = ElementTree.fromstring(svg).iter(f"{SVG}rect")
    return [float(one.get("width", "")) for one in rectangles if one.get("fill")]


def test_a_bar_is_as_long_as_its_number_has_digits() -> None:
    ten_thousand, hundred, thousand = bars_of(bars("Runs", "a second", GROUPS))

    assert hundred < thousand < ten_thousand
    # From 100 to 10,000 are two decades: the lowest stands at the edge, and is still to be seen.
    assert thousand == pytest.approx(ten_thousand / 2, abs=0.1)
    assert 0 < hundred < 5


def test_an_engine_has_one_colour_in_all_groups_and_others_have_another() -> None:
    rectangles = ElementTree.fromstring(bars("Runs", "a second", GROUPS)).iter(f"{SVG}rect")
    first, second, third = [one.get("fill") for one in rectangles if one.get("fill")]

    assert first == third
    assert first != second


def test_names_are_escaped_and_numbers_stand_beside_their_bars() -> None:
    texts = [one.text for one in ElementTree.fromstring(bars("Runs", "a second", GROUPS)).iter(f"{SVG}text")]

    assert "A & <B>" in texts
    assert {"10k", "100", "1k"} <= set(texts)


def test_a_flat_curve_is_flat_and_begins_at_zero() -> None:
    svg = curves("Drain", "finished runs", {"drain": [(0, 9_000), (250_000, 9_000), (500_000, 4_500)]})

    line = ElementTree.fromstring(svg).find(f"{SVG}polyline")
    assert line is not None
    (x0, y0), (x1, y1), (x2, y2) = [tuple(map(float, point.split(","))) for point in line.get("points", "").split()]
    assert y0 == y1
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.1)
    assert 0 < y0 < y2
    zero = max(float(one.get("y1", "")) for one in ElementTree.fromstring(svg).iter(f"{SVG}line"))
    assert zero - y2 == pytest.approx((zero - y0) / 2, abs=0.2)


@pytest.mark.parametrize("svg", [bars("Runs", "a second", GROUPS), curves("Drain", "runs", {"a": [(0, 1), (5, 3)]})])
def test_a_plot_has_colours_for_light_and_dark_pages_and_nothing_beyond_its_frame(svg: str) -> None:
    assert "prefers-color-scheme:dark" in svg
    root = ElementTree.fromstring(svg)
    height = float(root.get("height", ""))
    for one in root.iter(f"{SVG}text"):
        assert 0 <= float(one.get("x", "")) <= WIDTH
        assert 0 <= float(one.get("y", "")) <= height


@pytest.mark.parametrize(
    "svg", [bars("Runs", "a second", {}), curves("Drain", "runs", {}), curves("D", "r", {"a": []})]
)
def test_nothing_measured_is_an_empty_plot(svg: str) -> None:
    assert ElementTree.fromstring(svg).tag == f"{SVG}svg"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.123, "0.12"), (0.5, "0.5"), (4.56, "4.56"), (12.34, "12.3"), (830, "830"), (999.6, "1k"), (1234, "1.23k"),
        (12_000, "12k"), (500_000, "500k"), (1_500_000, "1.5M"), (0, "0"),
    ],
)  # fmt: skip
def test_a_number_is_as_short_as_people_write_it(value: float, said: str) -> None:
    assert short(value) == said
