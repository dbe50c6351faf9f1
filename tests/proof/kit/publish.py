"""
Puts the figures of the last `make proof`, `make chaos` and `make soak` into docs/reference/guarantees.md.

    .venv/bin/python -m tests.proof.kit.publish
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.proof.kit.plugin import COMMANDS, FIGURES

PAGE: Final = Path(__file__).parents[3] / "docs/reference/guarantees.md"
BEGIN: Final = "<!-- figures: written by tests/proof/kit/publish.py -->"
END: Final = "<!-- end of figures -->"


def table(lane: str, figures: list[dict[str, Any]]) -> str:
    """One lane's figures, as Markdown: one line for all cases of a test."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in figures:
        function, bracket, _ = str(one["test"]).partition("[")
        # The cases of chaos are named in their figures, and are few; those of the full lane are thousands.
        groups.setdefault((function if bracket and lane == "full" else str(one["test"]), one["name"]), []).append(one)
    rows = [f"| {name} | {measured(group)} | {goal(group)} | `{test}` |" for (test, name), group in groups.items()]
    commits = ", ".join(dict.fromkeys(str(one["commit"]) for one in figures))
    head = f"`{COMMANDS[lane]}`, at {commits}\n\n| figure | measured | goal | test |\n|---|---|---|---|"
    return "\n".join([head, *rows])


def measured(group: list[dict[str, Any]]) -> str:
    """What is counted is added up over the cases of a test; of what has a unit the range is told."""
    values, unit = [one["value"] for one in group], group[0]["unit"]
    if len(values) == 1:
        return shown(values[0], unit)
    total = shown(sum(values), unit) if not unit else f"{shown(min(values), '')} to {shown(max(values), unit)}"
    return f"{total} in {len(values)} cases"


def shown(value: float, unit: str) -> str:
    """Read as people write it."""
    return f"{value:,.{0 if float(value).is_integer() else 2}f}{f' {unit}' if unit else ''}"


def goal(group: list[dict[str, Any]]) -> str:
    """What was to be reached, and whether it was in each case."""
    if group[0]["goal"] is None:
        return ""
    missed = sum(not one["reached"] for one in group)
    if len(group) == 1:
        return shown(group[0]["goal"], group[0]["unit"]) + (", **not reached**" if missed else "")
    return f"**not reached in {missed}**" if missed else "reached in all"


def fill(page: str, begin: str, end: str, commands: Sequence[str], tables: Mapping[str, str]) -> str:
    """
    Replace what stands between two marks of a page by tables, in the order of the commands that have printed them.

    A table opens with its command between backticks; a command without a new one keeps what it had.
    """
    before, _, rest = page.partition(begin)
    old, _, after = rest.partition(end)
    kept = {part.split("`", 2)[1]: part for part in old.strip().split("\n\n\n") if part.startswith("`")}
    kept |= tables
    parts = "\n\n\n".join(kept[command] for command in commands if command in kept)
    return f"{before}{begin}\n\n{parts}\n\n{end}{after}"


def main() -> None:
    """Take the figures of each lane that was run."""
    tables: dict[str, str] = {}
    for lane, command in COMMANDS.items():
        file = FIGURES / f"{lane}.json"
        if file.exists():
            tables[command] = table(lane, json.loads(file.read_text("utf-8")))
    page = PAGE.read_text("utf-8")
    PAGE.write_text(fill(page, BEGIN, END, list(COMMANDS.values()), tables), "utf-8")


if __name__ == "__main__":
    main()
