"""The sync and the async client have the same names, parameters and words; only the awaits differ."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from kedge_client import AsyncClient, AsyncRunHandle, Client, RunHandle
from kedge_client._async_connections import LentAsyncConnections, OwnAsyncConnections
from kedge_client._async_core import AsyncCore
from kedge_client._sync_connections import LentSyncConnections, OwnSyncConnections
from kedge_client._sync_core import SyncCore

TWINS = [
    (Client, AsyncClient),
    (RunHandle, AsyncRunHandle),
    (SyncCore, AsyncCore),
    (OwnSyncConnections, OwnAsyncConnections),
    (LentSyncConnections, LentAsyncConnections),
]

# The async client's name for it is Python's own.
RENAMED = {"aclose": "close", "__aenter__": "__enter__", "__aexit__": "__exit__"}
# Threads and forks concern the sync client alone.
SYNC_ONLY = {"after_fork"}

WORDS = [
    # What the async one waits for or not, the sync one never does.
    (r"(Iterable\[[^|]+\]) \| Async\1", r"\1"),
    (r"\bAsync(?=Client|RunHandle|Connection|Pool|Core|Link|Iterator|Generator)", ""),
    (r"\bSync(?=Connection|Pool|Core|Link)", ""),
    (r"\bAbstractAsyncContextManager\b", "AbstractContextManager"),
]


def plain(text: str) -> str:
    for pattern, replacement in WORDS:
        text = re.sub(pattern, replacement, text)
    return text


def public(cls: type[Any]) -> dict[str, Any]:
    """Its public methods, its bases' too, by the sync one's names."""
    names = {name: value for base in reversed(cls.__mro__[:-1]) for name, value in vars(base).items()}
    found = {name: value for name, value in names.items() if not name.startswith("_") or name in RENAMED.values()}
    found |= {RENAMED[name]: value for name, value in names.items() if name in RENAMED}
    # A class method is found behind its wrapper, a property is none of these.
    methods = {name: getattr(value, "__func__", value) for name, value in found.items() if name not in SYNC_ONLY}
    return {name: value for name, value in methods.items() if callable(value)} | {"__init__": vars(cls)["__init__"]}


@pytest.mark.parametrize(("sync", "other"), TWINS, ids=[sync.__name__ for sync, _ in TWINS])
def test_twins_have_the_same_methods_with_the_same_parameters(sync: type[Any], other: type[Any]) -> None:
    ours, theirs = public(sync), public(other)

    assert ours.keys() == theirs.keys() - {"aclose", "__aenter__", "__aexit__"}
    for name, method in ours.items():
        assert plain(str(inspect.signature(method))) == plain(str(inspect.signature(theirs[name]))), name


@pytest.mark.parametrize(("sync", "other"), TWINS[:2], ids=[sync.__name__ for sync, _ in TWINS[:2]])
def test_what_waits_in_one_is_awaited_in_the_other(sync: type[Any], other: type[Any]) -> None:
    ours, theirs = public(sync), public(other)
    without_waiting = {"__init__", "connect", "scoped", "handle", "start_statement"}

    assert not any(inspect.iscoroutinefunction(method) for method in ours.values())
    waits = {
        name
        for name, method in theirs.items()
        if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)
    }
    assert waits == theirs.keys() - without_waiting


@pytest.mark.parametrize(("sync", "other"), TWINS[:2], ids=[sync.__name__ for sync, _ in TWINS[:2]])
def test_twins_are_described_alike(sync: type[Any], other: type[Any]) -> None:
    ours, theirs = public(sync), public(other)

    for name, method in ours.items():
        first, second = inspect.getdoc(method) or "", inspect.getdoc(theirs[name]) or ""
        assert plain(first).split()[:6] == plain(second).split()[:6], name
        raises = re.compile(r"^    (\w+Error): ", re.MULTILINE)
        assert raises.findall(first) == raises.findall(second), name


def test_every_public_method_of_the_clients_is_documented() -> None:
    for cls in (Client, AsyncClient, RunHandle, AsyncRunHandle):
        for name, method in public(cls).items():
            if not name.startswith("__"):
                assert inspect.getdoc(method), f"{cls.__name__}.{name}"


def test_the_public_names_of_the_clients_are_these() -> None:
    assert {name for name in public(Client) if not name.startswith("__")} == {
        "cancel",
        "close",
        "connect",
        "count_runs",
        "fast_forward",
        "get",
        "handle",
        "iter_runs",
        "last",
        "list_runs",
        "pause",
        "progress",
        "rerun_from",
        "result",
        "resume",
        "retry",
        "scoped",
        "send",
        "start",
        "start_many",
        "start_statement",
        "start_stream",
        "steps",
        "watch",
    }
    assert {name for name in public(RunHandle) if not name.startswith("__")} == {
        "cancel",
        "fast_forward",
        "pause",
        "rerun_from",
        "result",
        "resume",
        "retry",
        "send",
        "status",
        "view",
    }
