"""
Every example of docs/how-to, copied out of its page and run as it stands.

A page is one module: its Python blocks, in their order, with `await` at the top level as in `python -m asyncio`, and
DATABASE_URL naming a fresh database. A page whose blocks are tests is a test file, run by pytest, with the page's one
TOML block as its pyproject.toml.
"""

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from types import CodeType, ModuleType

import pytest

from kedge_worker.testing import PostgresServer

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "how-to").glob("*.md"))
FENCE = re.compile(r"^```(\S*)[^\S\n]*(.*)\n((?s:.*?))^```$", re.MULTILINE)


def module_of(page: Path) -> str:
    """The page's Python, with every line where it stands in the page, so that tracebacks point there."""
    text = page.read_text("utf-8")
    lines = [""] * (text.count("\n") + 1)
    for fence in FENCE.finditer(text):
        if fence[1] == "python":
            first = text.count("\n", 0, fence.start(3))
            for number, line in enumerate(fence[3].splitlines(), start=first):
                lines[number] = line
    return "\n".join(lines)


def is_test_file(source: str) -> bool:
    return re.search(r"^(async )?def test_", source, re.MULTILINE) is not None


SNIPPETS = [page for page in PAGES if not is_test_file(module_of(page))]
TEST_FILES = [page for page in PAGES if is_test_file(module_of(page))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_python_block_is_executed(page: Path) -> None:
    fences = [(fence[1], fence[2]) for fence in FENCE.finditer(page.read_text("utf-8"))]

    assert ("python", "") in fences
    # A mark, a `py` or a `python3` would let a block go unexecuted.
    assert [fence for fence in fences if fence[0].startswith("py") and fence != ("python", "")] == []


@pytest.mark.parametrize("page", SNIPPETS, ids=lambda page: page.stem)
async def test_a_page_does_what_it_says(page: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("KEDGE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DATABASE_URL", database_url)
    module = ModuleType(f"howto_{page.stem.replace('-', '_')}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    code: CodeType = compile(module_of(page), page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)

    answer = eval(code, module.__dict__)  # the page is ours
    if inspect.isawaitable(answer):
        await answer


@pytest.mark.parametrize("page", TEST_FILES, ids=lambda page: page.stem)
def test_the_tests_of_a_page_pass(page: Path, tmp_path: Path, postgres: PostgresServer) -> None:
    file = tmp_path / f"test_{page.stem.replace('-', '_')}.py"
    file.write_text(module_of(page), "utf-8")
    (settings,) = [fence[3] for fence in FENCE.finditer(page.read_text("utf-8")) if fence[1] == "toml"]
    (tmp_path / "pyproject.toml").write_text(settings, "utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KEDGE_", "PYTEST_"))}

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file],
        cwd=tmp_path,
        env={**kept, "KEDGE_DATABASE_URL": postgres.url},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )

    assert done.returncode == 0, done.stdout + done.stderr
