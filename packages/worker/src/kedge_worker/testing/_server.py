"""The server that is handed out, whoever runs it."""

from typing import Final, Literal, Protocol, get_args
from urllib.parse import quote, urlencode

from psycopg.conninfo import conninfo_to_dict

from kedge_worker.testing._errors import ServerNotOursError

Source = Literal["url", "embedded", "docker", "local"]
SOURCES: Final[tuple[Source, ...]] = get_args(Source)


class Process(Protocol):
    """A server that we started ourselves."""

    def start(self) -> None:
        """Start it and wait until it answers."""

    def stop(self) -> None:
        """Stop it in order."""

    def kill(self) -> None:
        """Kill all its processes."""

    def freeze(self) -> None:
        """Suspend all its processes."""

    def thaw(self) -> None:
        """Resume them."""


class PostgresServer:
    """
    A server to work with.

    Attributes:
        url: URL of its maintenance database, with the right to create others.
        source: Where it comes from.
        version: Its major version, as it says itself.
    """

    def __init__(self, url: str, *, source: Source, version: int, process: Process | None = None) -> None:
        self.url = url
        self.source: Source = source
        self.version = version
        self._process = process

    def __repr__(self) -> str:
        return f"PostgresServer(source={self.source!r}, version={self.version})"

    @property
    def is_ours(self) -> bool:
        """Whether it was started here, and may be stopped, killed and frozen."""
        return self._process is not None

    def database_url(self, name: str) -> str:
        """Return the URL of another database of this server. Whether it exists is not looked at."""
        return with_database(self.url, name)

    def start(self) -> None:
        """Start it again, on the same URL, and wait until it answers. Nothing happens if it runs."""
        self._ours().start()

    def stop(self) -> None:
        """Stop it as an administrator would: transactions are rolled back, clients are told (57P01)."""
        self._ours().stop()

    def restart(self) -> None:
        """Stop it and start it again."""
        self._ours().stop()
        self._ours().start()

    def kill(self) -> None:
        """Kill all its processes: clients see their sockets close, the next start recovers from the WAL."""
        self._ours().kill()

    def freeze(self) -> None:
        """Suspend all its processes: sockets stay open, the kernel accepts new ones, and nobody answers."""
        self._ours().freeze()

    def thaw(self) -> None:
        """Let a frozen server run on."""
        self._ours().thaw()

    def _ours(self) -> Process:
        if self._process is None:
            raise ServerNotOursError(self.source)
        return self._process


def with_database(conninfo: str, name: str) -> str:
    """
    Return a URL with another database in it, from a URL or from libpq's keywords.

    Always a URL, because asyncpg, SQLAlchemy and Django's settings take no keywords.
    """
    keywords = {key: str(value) for key, value in conninfo_to_dict(conninfo).items() if value is not None}
    keywords.pop("dbname", None)
    user = quote(keywords.pop("user", ""), safe="")
    password = keywords.pop("password", None)
    authority = f"{user}:{quote(password, safe='')}@" if password is not None else f"{user}@" if user else ""
    host = keywords.get("host", "")
    # A socket's folder and a list of hosts have no place between "@" and "/" that all drivers read.
    if host and not host.startswith(("/", "@")) and "," not in host and ":" not in host:
        authority += keywords.pop("host")
        if port := keywords.pop("port", None):
            authority += f":{port}"
    query = f"?{urlencode(keywords, quote_via=quote, safe='')}" if keywords else ""
    return f"postgresql://{authority}/{quote(name, safe='')}{query}"
