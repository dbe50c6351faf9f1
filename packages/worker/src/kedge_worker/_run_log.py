"""The log of a run: kept with it and given to the standard library, and silent while the run repeats what it knows."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from kedge.errors import InvalidOptionError, PayloadError
from kedge.shown import shown
from kedge.wire import encode
from kedge_worker._side_writes import WRITE_LOG

if TYPE_CHECKING:
    from kedge_worker._execution import Execution

_log: Final = logging.getLogger("kedge.run")

MAX_MESSAGE_CHARACTERS: Final = 4000
MAX_FIELDS_BYTES: Final = 16 * 1024

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


class RunLog:
    """
    Lines that are kept with the run, at most a thousand of them, for `client.watch`; each also goes to the logger
    `kedge.run`, whose records have `run_id`, `workflow`, `attempt` and `fields` as extra.

    They are written at once, not with the next outcome. What stands behind the last outcome is executed again when the
    run goes on: the logger hears it again, with the run it is kept once.
    """

    __slots__ = ("_execution",)

    def __init__(self, execution: Execution) -> None:
        self._execution = execution

    def __call__(self, level: str, message: str, /, **fields: object) -> None:
        """
        Keep a line.

        Args:
            level: `debug`, `info`, `warning` or `error`. Debug is only kept if the logger is enabled for it.
            message: Up to 4,000 characters are kept; nothing in it is replaced by anything.
            fields: What JSON holds, 16 KiB at most; what cannot be kept is said to be so.

        Raises:
            InvalidOptionError: There is no such level.
        """
        number = _LEVELS.get(level)
        if number is None:
            raise InvalidOptionError(f"log: level {shown(level)}: give one of {', '.join(_LEVELS)}")
        self._write(number, message, fields)

    def debug(self, message: str, /, **fields: object) -> None:
        """Keep a line if the logger `kedge.run` is enabled for debug."""
        self._write(logging.DEBUG, message, fields)

    def info(self, message: str, /, **fields: object) -> None:
        """Keep a line."""
        self._write(logging.INFO, message, fields)

    def warning(self, message: str, /, **fields: object) -> None:
        """Keep a line about what should not be so."""
        self._write(logging.WARNING, message, fields)

    def error(self, message: str, /, **fields: object) -> None:
        """Keep a line about what went wrong."""
        self._write(logging.ERROR, message, fields)

    def _write(self, level: int, message: str, fields: Mapping[str, object]) -> None:
        execution = self._execution
        number = _place(execution)
        if execution.replaying or execution.closed:
            return
        enabled = _log.isEnabledFor(level)
        if enabled:
            claimed = execution.run.claimed
            run = {"run_id": str(claimed.id), "workflow": claimed.workflow, "attempt": claimed.attempt + 1}
            _log.log(level, "%s", message, extra={**run, "fields": dict(fields)}, stacklevel=3)
        if enabled or level >= logging.INFO:
            text, data = clean_text(message, limit=MAX_MESSAGE_CHARACTERS), _payload(fields)
            execution.in_loop(lambda: _keep(execution, number, level, text, data))


def clean_text(text: object, *, limit: int) -> str:
    """Text as Postgres takes it: without NUL and lone surrogates, and cut to so many characters."""
    return str(text)[:limit].replace("\0", "").encode("utf-8", "replace").decode()


def _payload(fields: Mapping[str, object]) -> bytes:
    if not fields:
        return b""
    try:
        return encode(dict(fields), where="fields of a log line", limit=MAX_FIELDS_BYTES)
    except PayloadError as error:
        return encode({"kedge": f"the fields cannot be kept: {error}"[:1000]}, where="fields of a log line")


def _place(execution: Execution) -> int:
    """The line's number: the same whenever the handler comes to this line again in one attempt of the run."""
    try:
        branch = execution.tasks.by_task.get(asyncio.current_task())
    except RuntimeError:
        branch = execution.branches.root if execution.is_sync else None  # else a step's body, in a thread
    if branch is None or branch.busy or branch.run is not execution.branches:
        return secrets.randbits(63)  # in a step's body, which is not repeated when it is known
    place = f"{execution.run.claimed.attempt}/{branch.path}/{branch.number('/log')}"
    return int.from_bytes(blake2b(place.encode(), digest_size=8).digest(), "big") >> 1


def _keep(execution: Execution, number: int, level: int, text: str, data: bytes) -> None:
    if not execution.moved and not execution.run.lost:
        size = 100 + len(text) + len(data)
        execution.journal.add(execution.run, WRITE_LOG, number, level, text, data, size=size)
