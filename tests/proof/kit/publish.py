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
    """One lane's figures, as Markdown."""
    rows = [
        f"| {one['name']} | {shown(one['value'], one['unit'])} | {goal(one)} | `{one['test']}` |" for one in figures
    ]
    head = f"`{COMMANDS[lane]}`\n\n| figure | measured | goal | test |\n|---|---|---|---|"
    return "\n".join([head, *rows])


def shown(value: float, unit: str) -> str:
    """Read as people write it."""
    return f"{value:,.{0 if float(value).is_integer() else 2}f}{f' {unit}' if unit else ''}"


def goal(one: dict[str, Any]) -> str:
    """What was to be reached, and whether it was."""
    if one["goal"] is None:
        return ""
    return shown(one["goal"], one["unit"]) + ("" if one["reached"] else ", **not reached**")


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
