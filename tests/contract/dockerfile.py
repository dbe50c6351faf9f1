"""Carries out a Dockerfile's instructions below a folder: what can be known of an image without a container engine."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]

# What the base image and root would do here. Everything else is carried out, or refused.
_LEFT_OUT = ("pip install --no-cache-dir --require-hashes -r requirements/uv.txt", "useradd ")
_OURS = re.compile(r"(?<![\w./])/(?=(?:opt|srv|src)\b)")


@dataclass(frozen=True)
class Instruction:
    stage: int
    word: str
    rest: str


@dataclass
class Image:
    """The last stage: where it lies, and what a container engine would start."""

    root: Path
    folder: Path
    env: dict[str, str] = field(default_factory=dict[str, str])
    entrypoint: list[str] = field(default_factory=list[str])
    cmd: list[str] = field(default_factory=list[str])

    def command(self, *cmd: str) -> list[str]:
        """The process started for `docker run image *cmd`, by its path within the image."""
        program, *arguments = self.entrypoint + (list(cmd) or self.cmd)
        found = shutil.which(program, path=self.env["PATH"])
        if found is None or not Path(found).is_relative_to(self.root):
            raise LookupError(f"{program} is not in the image: {found}")
        return [found, *arguments]


def instructions(dockerfile: Path) -> list[Instruction]:
    """Read the instructions in order, without comments and with continued lines joined."""
    text = re.sub(r"(?m)^\s*#.*\n", "", dockerfile.read_text("utf-8"))
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    found: list[Instruction] = []
    stage = -1
    for word, _, rest in (line.partition(" ") for line in lines if line.strip()):
        stage += word == "FROM"
        found.append(Instruction(stage, word, rest.strip()))
    return found


def replay(dockerfile: Path, root: Path, *, context: Path = REPOSITORY) -> Image:
    """
    Copy, set and install as the Dockerfile says, with root in the place of `/`.

    The stages share one tree, and the Python is the one that runs the tests instead of the base image's.
    """
    image = Image(root, root)
    for at in instructions(dockerfile):
        match at.word:
            case "FROM":
                image = Image(root, root, {"PATH": f"{context}/.tools/bin:{sys.base_prefix}/bin:{os.defpath}"})
            case "WORKDIR":
                image.folder = Path(_below(root, at.rest))
                image.folder.mkdir(parents=True, exist_ok=True)
            case "ENV":
                for name, _, value in (pair.partition("=") for pair in shlex.split(at.rest)):
                    image.env[name] = _below(root, value).replace("$PATH", image.env["PATH"])
            case "COPY":
                _copy(image, shlex.split(_below(root, at.rest)), context)
            case "RUN" if not at.rest.startswith(_LEFT_OUT):
                # The machine's settings and cache of uv: the locked versions are those of the environment.
                env = {**os.environ, **image.env, "UV_NO_CACHE": "0", "UV_COMPILE_BYTECODE": "0"}
                subprocess.run(["sh", "-ec", _below(root, at.rest)], cwd=image.folder, env=env, check=True)
            case "ENTRYPOINT":
                image.entrypoint = json.loads(at.rest)
            case "CMD":
                image.cmd = json.loads(at.rest)
            case "RUN" | "USER" | "EXPOSE" | "STOPSIGNAL":
                pass
            case _:
                raise NotImplementedError(f"{dockerfile.name}: {at.word} {at.rest}")
    return image


def _below(root: Path, text: str) -> str:
    return _OURS.sub(f"{root}/", text)


def _copy(image: Image, words: list[str], context: Path) -> None:
    if words[0].startswith("--from="):
        # From another stage, which has put it into the shared tree; an environment cannot be moved anyway.
        source, target = map(Path, words[1:])
        if source != target or not source.exists():
            raise FileNotFoundError(f"COPY --from: {source} to {target}")
        return
    *sources, target_name = words
    target = image.folder / target_name
    for source in (context / name for name in sources):
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        else:
            into = target / source.name if target_name.endswith("/") else target
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, into)
