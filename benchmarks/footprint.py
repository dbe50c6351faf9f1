"""What a service installs and imports to start runs: in a fresh environment, from this checkout."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from benchmarks.machine import ROOT

OWN: Final = ("packages/shared", "packages/client")
DRIVER: Final = "psycopg[binary]"
_IMPORTS: Final = 15
# Both are there already when the clock starts: they are what any client of Postgres with typed messages loads.
_TIMED: Final = """
import psycopg, msgspec, time
begun = time.perf_counter()
import kedge_client
print(time.perf_counter() - begun)
"""


def measure() -> dict[str, float | None]:
    """Milliseconds of the import, distributions beside our own, and megabytes; only the first where uv is missing."""
    uv = _uv()
    if uv is None:
        sys.stderr.write("uv is not here: only the import is measured, in this environment\n")
        return {"import": import_ms(sys.executable)}
    with tempfile.TemporaryDirectory(prefix="kedge-footprint-") as folder:
        python = f"{folder}/bin/python"
        _run(uv, "venv", "-q", "--python", sys.executable, folder)
        _run(uv, "pip", "install", "-q", "-p", python, "--compile-bytecode", *(str(ROOT / own) for own in OWN), DRIVER)
        packages = next(Path(folder).glob("lib/python*/site-packages"))
        installed = [file for file in packages.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
        return {
            "import": import_ms(python),
            "distributions": len(list(packages.glob("*.dist-info"))) - len(OWN),
            "installed": sum(file.stat().st_size for file in installed) / 1e6,
        }


def import_ms(python: str) -> float:
    """Median of several fresh interpreters."""
    said = [_run(python, "-I", "-c", _TIMED) for _ in range(_IMPORTS)]
    return 1000 * statistics.median(float(one) for one in said)


def _uv() -> str | None:
    own = ROOT / ".tools/bin/uv"
    return str(own) if own.exists() else shutil.which("uv")


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr.strip()[-1500:]}")
    return done.stdout
