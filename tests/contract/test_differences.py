"""What docs/reference/differences.md says that tests state is stated by tests of these names."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "differences.md"
NAMED = re.compile(r"`(test_\w+)`")
DEFINED = re.compile(r"^\s*(?:async )?def (test_\w+)\(", re.MULTILINE)


def defined() -> set[str]:
    """The names of all tests."""
    files = [*ROOT.glob("tests/**/test_*.py"), *ROOT.glob("examples/**/test_*.py")]
    return {name for file in files for name in DEFINED.findall(file.read_text("utf-8"))}


def rows() -> list[str]:
    """The page's rows, without those that only make tables."""
    lines = PAGE.read_text("utf-8").splitlines()
    return [line for line in lines if line.startswith("| ") and not line.startswith("| | ")]


def test_each_test_that_the_page_names_exists() -> None:
    assert sorted(set(NAMED.findall(PAGE.read_text("utf-8"))) - defined()) == []


def test_what_works_names_a_test() -> None:
    unproven = [row for row in rows() if "| works" in row and not NAMED.search(row)]

    assert unproven == []


def test_every_row_says_what_and_how() -> None:
    assert [row for row in rows() if row.count(" | ") != 1 or not row.endswith(" |")] == []
