"""Bars and curves as SVG, drawn with plain strings; readable on light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

WIDTH: Final = 760
COLOURS: Final = ("#2f81f7", "#d9822b", "#3fa45b", "#b45cc9", "#c94f4f", "#8a8f98")
_STYLE: Final = """<style>
text{font:12px system-ui,sans-serif;fill:#24292f} .h{font-weight:600;font-size:14px} .q{fill:#57606a}
.b{fill:#ffffff} .g{stroke:#d0d7de}
@media (prefers-color-scheme:dark){text{fill:#e6edf3} .q{fill:#9da7b3} .b{fill:#0d1117} .g{stroke:#30363d}}
</style>"""
_LABEL: Final = 150
_BAR: Final = 15
_RIGHT: Final = 90
_TOP: Final = 34

Point = tuple[float, float]


def bars(title: str, unit: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    """Horizontal bars on a logarithmic scale: one group a workload, one bar an engine."""
    values = [value for group in groups.values() for value in group.values() if value > 0]
    low = 10.0 ** math.floor(math.log10(min(values, default=1)))
    high = 10.0 ** math.ceil(math.log10(max(values, default=10)) + 1e-9)
    engines = list(dict.fromkeys(name for group in groups.values() for name in group))
    span = WIDTH - _LABEL - _RIGHT
    decades = max(math.log10(high / low), 1)
    parts: list[str] = []
    y = _TOP
    for workload, group in groups.items():
        parts.append(_text(12, y + 16, workload, "h"))
        y += 24
        for engine, value in group.items():
            length = span * max(math.log10(max(value, low) / low) / decades, 0.004)
            colour = COLOURS[engines.index(engine) % len(COLOURS)]
            parts.append(_text(_LABEL - 8, y + 11, engine, anchor="end"))
            parts.append(f'<rect x="{_LABEL}" y="{y}" width="{length:.1f}" height="{_BAR - 3}" fill="{colour}"/>')
            parts.append(_text(_LABEL + length + 6, y + 11, short(value), "q"))
            y += _BAR
        y += 8
    grid: list[str] = []
    for decade in range(round(decades) + 1):
        x = _LABEL + span * decade / decades
        grid.append(f'<line class="g" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{y}"/>')
        grid.append(_text(x, y + 16, short(low * 10**decade), "q", "middle"))
    return _svg(f"{title}, {unit}, logarithmic", y + 28, [*grid, *parts])


def curves(title: str, along: str, series: Mapping[str, Sequence[Point]]) -> str:
    """Lines over a linear scale that begins at zero, so that flat looks flat."""
    height, left, right, bottom = 300, 70, 20, 56
    points = [point for line in series.values() for point in line]
    most_x = max((x for x, _ in points), default=1) or 1
    step = _round_step(max((y for _, y in points), default=1) or 1)
    most_y = step * math.ceil(max((y for _, y in points), default=1) / step)

    def place(x: float, y: float) -> Point:
        return (
            left + (WIDTH - left - right) * x / most_x,
            height - bottom - (height - bottom - _TOP) * y / most_y,
        )

    parts: list[str] = []
    for number in range(round(most_y / step) + 1):
        _, y = place(0, number * step)
        parts.append(f'<line class="g" x1="{left}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 8, y + 4, short(number * step), "q", "end"))
    for number in range(5):
        x, _ = place(most_x * number / 4, 0)
        parts.append(_text(x, height - bottom + 18, short(most_x * number / 4), "q", "middle"))
    for number, (name, line) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.extend(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in (place(*point) for point in line)
        )
        x = left + number * 230
        parts.append(f'<rect x="{x}" y="{height - 18}" width="12" height="4" fill="{colour}"/>')
        parts.append(_text(x + 18, height - 12, name))
    parts.append(_text(WIDTH - right, height - 12, along, "q", "end"))
    return _svg(title, height, parts)


def short(value: float) -> str:
    """Write three digits at most, as people do: 0.12, 4.5, 830, 12k, 1.5M."""
    for size, sign in ((1e6, "M"), (1e3, "k")):
        if value >= size * 0.9995:
            return f"{_three_digits(value / size)}{sign}"
    return _three_digits(value)


def _three_digits(value: float) -> str:
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _round_step(most: float) -> float:
    """Four or five lines at a round distance."""
    size = 10.0 ** math.floor(math.log10(most))
    return next(step for step in (size / 5, size / 4, size / 2, size, 2 * size) if most / step <= 5)


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, height: int, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        f' role="img"><title>{escape(title)}</title>'
    )
    body = [f'<rect class="b" width="{WIDTH}" height="{height}"/>', _text(12, 22, title, "h"), *parts]
    return "\n".join([head, _STYLE, *body, "</svg>"]) + "\n"
