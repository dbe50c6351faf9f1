"""The fixtures of the tests of interleavings."""

from tests.integration.conftest import db, sessions

__all__ = ["db", "sessions"]
