"""What development and tests of kedge applications need: a Postgres without ado, and a clock that moves."""

from kedge_worker.testing._clock import Clock
from kedge_worker.testing._errors import (
    PostgresError,
    PostgresUnavailableError,
    ServerNotOursError,
    ServerStartError,
)
from kedge_worker.testing._server import PostgresServer, Source
from kedge_worker.testing.postgres import postgres_server

__all__ = [
    "Clock",
    "PostgresError",
    "PostgresServer",
    "PostgresUnavailableError",
    "ServerNotOursError",
    "ServerStartError",
    "Source",
    "postgres_server",
]
