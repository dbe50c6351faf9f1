"""
Puts the figures of the last `make proof`, `make chaos` and `make soak` into docs/reference/guarantees.md.

    .venv/bin/python -m tests.proof.kit.publish
"""

from __future__ import annotations

import json
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


def main() -> None:
    """Replace the part between the two marks; a lane that was not run keeps what it had."""
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    old, _, after = rest.partition(END)
    kept = {part.split("`", 2)[1]: part for part in old.strip().split("\n\n\n") if part.startswith("`")}
    for lane, command in COMMANDS.items():
        file = FIGURES / f"{lane}.json"
        if file.exists():
            kept[command] = table(lane, json.loads(file.read_text("utf-8")))
    parts = "\n\n\n".join(kept[command] for command in COMMANDS.values() if command in kept)
    PAGE.write_text(f"{before}{BEGIN}\n\n{parts}\n\n{END}{after}", "utf-8")


if __name__ == "__main__":
    main()
