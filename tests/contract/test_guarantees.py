"""What the page of promises names as proof is there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "docs/reference/guarantees.md", ROOT / "tests/proof/README.md")
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def test_every_test_that_is_named_as_proof_is_there() -> None:
    named = {found for page in PAGES for found in NAMED.findall(page.read_text("utf-8"))}
    missing = [f"{file}::{test}" for file, test in sorted(named) if not is_there(ROOT / file, test)]

    assert len(named) > 20
    assert missing == []


def test_every_promise_names_its_proof() -> None:
    sections = re.split(r"^### ", PAGES[0].read_text("utf-8").partition("## The tests are tested")[0], flags=re.M)[1:]

    assert [section.partition("\n")[0] for section in sections if "\nProof:" not in section] == []


def is_there(file: Path, test: str) -> bool:
    """Whether the file has tests, or this one."""
    if not file.exists():
        return False
    nodes = ast.walk(ast.parse(file.read_text("utf-8")))
    names = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    return test in names if test else any(name.startswith("test_") for name in names)
