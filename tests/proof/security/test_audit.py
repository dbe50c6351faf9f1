"""What is locked is listed whole, and an audit that could not ask anybody is no clean audit."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).parents[3]
TOOLS: Final = ROOT / ".audit" / "bin"
LOCKED: Final = re.compile(r"^([a-z0-9-]+)(?:\[[^\]]*\])?==(\S+)", re.MULTILINE)


@pytest.fixture(scope="module")
def tools() -> Path:
    if not (TOOLS / "pip-audit").exists():
        pytest.skip("NOT RUN: the audit's tools are missing; `make audit` installs them from the package index")
    return TOOLS


@pytest.mark.full
@pytest.mark.parametrize("locked", ["worker", "api"])
def test_the_bill_of_materials_lists_what_is_locked_with_hashes(tools: Path, locked: str, tmp_path: Path) -> None:
    requirements = ROOT / "requirements" / f"{locked}.txt"

    subprocess.run(
        [tools / "cyclonedx-py", "requirements", requirements, "--of", "JSON", "-o", tmp_path / "sbom"], check=True
    )

    components: list[dict[str, Any]] = json.loads((tmp_path / "sbom").read_text())["components"]
    listed = {(one["name"], one["version"]) for one in components}
    assert listed == set(LOCKED.findall(requirements.read_text()))
    assert all(_hashes(one) for one in components)


@pytest.mark.full
def test_an_audit_that_reaches_nobody_fails_and_says_so(tools: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("NOT RUN: there is no make; install it with apt-get install make")
    nowhere = "http://127.0.0.1:9"
    hidden = dict.fromkeys(("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"), nowhere)

    ended = subprocess.run(
        ["make", "audit", "AUDITED=uv"],
        cwd=ROOT,
        env={**os.environ, **hidden},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode != 0
    assert "COULD NOT BE ASKED" in ended.stdout
    assert "no known faults" not in ended.stdout


def test_the_audits_own_tools_are_locked_by_hashes() -> None:
    locked = (ROOT / "requirements" / "audit.txt").read_text()

    packages = LOCKED.findall(locked)
    assert {"pip-audit", "cyclonedx-bom"} <= {name for name, _ in packages}
    assert locked.count("--hash=sha256:") >= len(packages)


def _hashes(component: dict[str, Any]) -> list[Any]:
    return [one for reference in component["externalReferences"] for one in reference.get("hashes", [])]
