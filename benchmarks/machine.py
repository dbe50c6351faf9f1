"""Where and of what something was measured: enough to compare, and nothing that names a machine."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import psutil

ROOT: Final = Path(__file__).parents[1]
_MODEL: Final = "model name"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """No name of a host, no path."""

    commit: str
    """Short; with a plus where something was not committed."""
    cpu: str
    cores: int
    memory_gib: int
    postgres: str
    settings: str
    python: str
    commit_ms: float
    """What one small durable commit cost before the measurement."""

    def as_json(self) -> dict[str, Any]:
        """The commit, and the machine below it."""
        values = asdict(self)
        return {"commit": values.pop("commit"), "machine": values}

    def __str__(self) -> str:
        return (
            f"{self.cores} cores of {self.cpu}, {self.memory_gib} GiB; PostgreSQL {self.postgres} ({self.settings});"
            f" Python {self.python}; one small commit: {self.commit_ms:.2f} ms; kedge at {self.commit}"
        )


def this_machine(*, postgres: str, settings: str, commit_ms: float) -> Machine:
    """The machine that client, worker and server share."""
    return Machine(
        commit=this_commit(),
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gib=round(psutil.virtual_memory().total / 2**30),
        postgres=postgres,
        settings=settings,
        python=platform.python_version(),
        commit_ms=round(commit_ms, 3),
    )


def this_commit() -> str:
    """What is checked out; what measurements leave behind does not count as a change."""
    commit = _git("rev-parse", "--short=10", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/*.jsonl", ":!docs")
    return commit + ("+" if changed else "") if commit else "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith(_MODEL)]
    return models[0] if models else platform.machine()
