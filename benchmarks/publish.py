"""
Puts what `make bench`, `make bench-growth` and `make bench-peers` last found into docs/explanation/performance.md.

    .venv/bin/python -m benchmarks.publish

The numbers stand between two marks of the page, the plots beside it. A command that was not run keeps what it had.
"""

from __future__ import annotations

import json
import statistics
import sys
from typing import Any, Final

from benchmarks import growth, plots, run, snapshot
from benchmarks.figures import FOLDER, MISSED, REACHED
from benchmarks.machine import ROOT, Machine
from benchmarks.peers import results
from tests.proof.kit.publish import fill

PAGE: Final = ROOT / "docs/explanation/performance.md"
PLOTS: Final = ROOT / "docs/explanation/plots"
BEGIN: Final = "<!-- figures: written by benchmarks/publish.py -->"
END: Final = "<!-- end of figures -->"
FILES: Final = {run.COMMAND: "bench.json", growth.COMMAND: "growth.json", results.COMMAND: "peers.json"}

THROUGHPUT: Final = {
    "one step, runs/s": "one step, runs/s",
    "ten steps, steps/s": "ten steps, steps/s",
    "starts/s, 1 awaited": "starts/s, one awaited",
    "starts/s, 50 awaited": "starts/s, 50 concurrent",
    "starts/s, bulk": "starts/s, bulk",
}
LATENCY: Final = {
    "start to result, idle, p50, ms": "start to result, idle, p50",
    "event to result, p50, ms": "event to result, p50",
    "100 steps at once, p50, ms": "100 parallel steps, p50",
}

Found = dict[str, Any]


def goals_table(found: Found) -> str:
    """What one command found, each number beside its goal, as Markdown."""
    rows = [
        f"| {one['name']} | {one['shown']} | {one['unit']} | {one['goal'] or ''} | {_verdict(one)} |"
        for one in found["figures"]
    ]
    return _part(found, "| what | median (range) | unit | goal | |\n|---|---|---|---|---|", rows)


def peers_table(found: Found) -> str:
    """All engines side by side, and the settings of each."""
    lines = found["measured"]
    engines = results.engines_of(lines)
    rows = [
        f"| {title} | {' | '.join(results.cell(by_engine.get(engine, [])) for engine in engines)} |"
        for title, by_engine in results.table(lines).items()
    ]
    head = f"| what | {' | '.join(engines)} |\n|---|{'---|' * len(engines)}"
    settings = "\n".join(f"- {engine}: {found['engines'][engine]}" for engine in engines)
    return f"{_part(found, head, rows)}\n\n{settings}"


def drawn(command: str, found: Found) -> dict[str, str]:
    """File name -> SVG, of what one command found."""
    if command == results.COMMAND:
        table = results.table(found["measured"])
        return {
            "peers-throughput.svg": plots.bars("Throughput, more is better", "a second", _medians(table, THROUGHPUT)),
            "peers-latency.svg": plots.bars("Latency, less is better", "ms", _medians(table, LATENCY)),
        }
    series: dict[str, list[plots.Point]] = found["series"]
    pictures = {
        "growth-drain.svg": ("Drain beside finished runs, runs/s", "finished runs", {growth.DRAIN_CURVE}),
        "growth-latency.svg": ("Start to result beside finished runs, ms", "finished runs", {growth.LATENCY_CURVE}),
        "snapshot.svg": (
            "Drain while a snapshot is held, runs/s",
            "minutes",
            {snapshot.UNDISTURBED_CURVE, snapshot.SNAPSHOT_CURVE},
        ),
    }
    return {
        file: plots.curves(title, along, {name: series[name] for name in series if name in names})
        for file, (title, along, names) in pictures.items()
        if names <= series.keys()
    }


def main() -> None:
    """Fill the page, and draw the plots, from the files that are there."""
    tables: dict[str, str] = {}
    for command, name in FILES.items():
        file = FOLDER / name
        if not file.exists():
            sys.stderr.write(f"{command} has left no {file}\n")
            continue
        found: Found = json.loads(file.read_text("utf-8"))
        pictures = drawn(command, found)
        for picture, svg in pictures.items():
            PLOTS.mkdir(exist_ok=True)
            (PLOTS / picture).write_text(svg, "utf-8")
        shown = "".join(f"\n\n![{picture.removesuffix('.svg')}](plots/{picture})" for picture in pictures)
        tables[command] = (peers_table(found) if command == results.COMMAND else goals_table(found)) + shown
    if not tables:
        return  # what the page says of that stays
    page = PAGE.read_text("utf-8")
    PAGE.write_text(fill(page, BEGIN, END, list(FILES), tables), "utf-8")


def _part(found: Found, head: str, rows: list[str]) -> str:
    machine = Machine(commit=found["commit"], **found["machine"])
    return "\n".join([f"`{found['command']}`, on {machine}", "", head, *rows])


def _verdict(one: Found) -> str:
    return "" if one["reached"] is None else REACHED if one["reached"] else f"**{MISSED.lower()}**"


def _medians(table: dict[str, dict[str, list[float]]], titles: dict[str, str]) -> dict[str, dict[str, float]]:
    return {
        shown: {engine: statistics.median(values) for engine, values in table[title].items()}
        for title, shown in titles.items()
        if title in table
    }


if __name__ == "__main__":
    main()
