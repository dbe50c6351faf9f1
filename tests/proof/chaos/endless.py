"""A load that goes on for as long as a test wants."""

from __future__ import annotations

import subprocess
from typing import Final

from tests.proof.kit.fleet import Fleet

_PROGRAM: Final = """
import os, subprocess, sys
while not os.path.exists(sys.argv[1]):
    subprocess.run([sys.executable, *sys.argv[2:]], check=True)
"""


class Clients:
    """One client after the other, each for a short while, so that the load can end at any moment without loose ends."""

    def __init__(self, crew: Fleet, *, rate: float, mix: str, results: float = 0.1) -> None:
        self._stop = crew.folder / "enough"
        load = ["-m", "tests.proof.kit.load", "--rate", str(rate), "--seconds", "4", "--mix", mix]
        load += ["--results", str(results)]
        self._process: subprocess.Popen[bytes] = crew.start(["-c", _PROGRAM, str(self._stop), *load])
        self._crew = crew

    def end(self) -> None:
        """Let the present one end its work; fails if one of them failed."""
        self._stop.touch()
        assert self._process.wait(180) == 0, self._crew.log(self._process)
