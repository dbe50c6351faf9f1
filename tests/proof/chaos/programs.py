"""What some tests need of the operating system; a test that lacks it fails, and says what to install."""

from __future__ import annotations

from pathlib import Path

import pytest


def requires(package: str, *patterns: str) -> Path:
    """
    Where the first file is that one of these patterns, below /usr, finds.

    Fails the test, loudly, when there is none: a proof that is skipped proves nothing.
    """
    for pattern in patterns:
        for found in sorted(Path("/usr").glob(pattern)):
            return found
    pytest.fail(
        f"{package} is missing (apt-get install {package}): no file like {' or '.join(patterns)}", pytrace=False
    )


def libfaketime() -> Path:
    """The library that gives a process another clock, by LD_PRELOAD."""
    return requires("libfaketime", "lib/*/faketime/libfaketimeMT.so.1", "lib/faketime/libfaketimeMT.so.1")
