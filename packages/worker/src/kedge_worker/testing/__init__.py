"""What development and tests of kedge applications need: a Postgres without ado."""

from kedge_worker.testing._errors import (
    PostgresError,
    PostgresUnavailableError,
    ServerNotOursError,
    ServerStartError,
)
from kedge_worker.testing._server import PostgresServer, Source
from kedge_worker.testing.postgres import postgres_server

__all__ = [
    "PostgresError",
    "PostgresServer",
    "PostgresUnavailableError",
    "ServerNotOursError",
    "ServerStartError",
    "Source",
    "postgres_server",
]
