"""
The process that drains: told when to begin, it works until SIGTERM.

It writes two lines to stdout: "ready" when its imports are done, and what only it could count, as JSON, at its end.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Mapping


def say_ready_and_wait() -> None:
    """Return when the other side wants the drain to begin."""
    print("ready", flush=True)
    sys.stdin.readline()


def say_last_words(words: Mapping[str, float]) -> None:
    """Tell what only this process could count."""
    print(json.dumps(words), flush=True)


def stop_at_sigterm() -> asyncio.Event:
    """Make the event that SIGTERM sets."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    return stop
