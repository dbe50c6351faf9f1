"""Every place of the client's API where a caller can put a value, as a function of that value."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final, cast

from kedge.durations import parse_duration
from kedge.errors import DomainError, KedgeError
from kedge.event_refs import EventRef
from kedge.refs import WorkflowRef
from kedge.retry import Retry, RetryAfter
from kedge_client import AsyncClient, Client

Entry = Callable[[Any, Any], Any]
"""Gets a client and the value; answers what the client does, an awaitable for the async one."""

ref: Final = WorkflowRef[Any, Any]("fuzzed", Any, Any)
anything: Final = EventRef[Any]("anything", Any)

OPTIONS: Final = (
    "key",
    "on_conflict",
    "resource",
    "queue",
    "priority",
    "delay",
    "start_at",
    "timeout",
    "retry",
    "tags",
    "metadata",
    "singleton",
)
FILTERS: Final = ("workflow", "status", "resource", "tag", "since", "until")
VERBS: Final = ("cancel", "pause", "resume", "retry", "fast_forward", "get", "steps", "progress")


def _option(name: str) -> Entry:
    return lambda client, value: client.start(made(lambda: ref(1, **{name: value})))


def _verb(name: str) -> Entry:
    return lambda client, value: getattr(client, name)(value)


def _listed(name: str) -> Entry:
    return lambda client, value: client.list_runs(**{name: value})


def _counted(name: str) -> Entry:
    return lambda client, value: client.count_runs(**{name: value})


def made(make: Callable[[], Any]) -> Any:
    """Make a request or message. A function, so that what goes wrong in it is seen like anything else."""
    return make()


def first_of(events: Any) -> Any:
    """The first event of a watch, of either client."""
    return anext(aiter(events)) if inspect.isasyncgen(events) else next(iter(events))


def all_of(runs: Any) -> Any:
    """The handles of a stream of starts, of either client."""

    async def listed() -> list[Any]:
        return [run async for run in runs]

    return listed() if inspect.isasyncgen(runs) else list(runs)


def looking(run: Callable[[], Any]) -> dict[str, Entry]:
    """What is about a run that exists, given how to name it."""
    return {
        "payload of an event": lambda client, value: client.send(anything(value), run=run()),
        "key of an event": lambda client, value: client.send(anything(1, key=value), run=run()),
        "reason of a pause": lambda client, value: client.pause(run(), reason=value),
        "reason of a cancel": lambda client, value: client.cancel(run(), reason=value),
        "data of a fast-forward": lambda client, value: client.fast_forward(run(), value),
        "wait of a fast-forward": lambda client, value: client.fast_forward(run(), 1, wait=value),
        "step of a rerun": lambda client, value: client.rerun_from(run(), value),
        "place of a watch": lambda client, value: first_of(client.watch(run(), after=value)),
    }


DATABASE: Final[dict[str, Entry]] = {
    "input": lambda client, value: client.start(ref(value)),
    "request": lambda client, value: client.start(value),
    "requests": lambda client, value: client.start_many(value),
    "one of many requests": lambda client, value: client.start_many([ref(1), value]),
    "streamed requests": lambda client, value: all_of(client.start_stream(value)),
    "one of streamed requests": lambda client, value: all_of(client.start_stream([ref(1), value])),
    **{f"option {name}": _option(name) for name in OPTIONS},
    "a tag": lambda client, value: client.start(ref(1, tags=[value])),
    "a value of the metadata": lambda client, value: client.start(ref(1, metadata={"a": value})),
    "connection": lambda client, value: client.start(ref(1), conn=value if value is not None else 1),
    "message": lambda client, value: client.send(value, run=ref),
    "topic": lambda client, value: client.send(anything(1), topic=value),
    "whom to send to": lambda client, value: client.send(anything(1), run=value),
    **{f"run to {name}": _verb(name) for name in VERBS},
    "run to watch": lambda client, value: first_of(client.watch(value)),
    "run of a result": lambda client, value: client.result(ref, value, timeout=0),
    "run to rerun": lambda client, value: client.rerun_from(value, "step"),
    "workflow of the last": lambda client, value: client.last(value),
    "resource of the last": lambda client, value: client.last(ref, resource=value),
    "scope": lambda client, value: client.scoped(value).list_runs(limit=1),
    **{f"list by {name}": _listed(name) for name in (*FILTERS, "parent", "limit", "cursor")},
    **{f"count by {name}": _counted(name) for name in FILTERS},
    "one of many statuses": lambda client, value: client.list_runs(status=["failed", value]),
}

PURE: Final[dict[str, Callable[[Any], Any]]] = {
    "workflow's name": lambda value: WorkflowRef(value, Any, Any),
    "workflow's type": lambda value: WorkflowRef("x", value, Any),
    "workflow's version": lambda value: WorkflowRef("x", Any, Any, version=value),
    "workflow's errors": lambda value: WorkflowRef("x", Any, Any, raises=value),
    "workflow's key": lambda value: WorkflowRef("x", Any, Any, key=lambda _: value)(1),
    "event's name": lambda value: EventRef(value, Any),
    "event's type": lambda value: EventRef("x", value),
    "option's name": lambda value: cast("Any", ref)(1, **{value: 1}) if type(value) is str else None,
    "input of a number": WorkflowRef("x", int, Any),
    "input of a mapping": WorkflowRef("x", dict[str, Any], Any),
    "parsed input": lambda value: ref(value).input,
    "statement": lambda value: Client.connect("postgresql://nowhere").start_statement(value),
    "pool": Client,
    "most connections": lambda value: Client.connect("postgresql://nowhere", max_connections=value),
    "schema": lambda value: Client.connect("postgresql://nowhere", schema=value),
    "timeout": lambda value: Client.connect("postgresql://nowhere", timeout=value),
    "dsn": Client.connect,
    "async dsn": AsyncClient.connect,
    "duration": lambda value: parse_duration(value, option="x"),
    "attempts": Retry,
    "first delay": lambda value: Retry(initial=value),
    "factor": lambda value: Retry(factor=value),
    "errors of a policy": lambda value: Retry(retry_on=value),
    "delay": RetryAfter,
}


def is_own(error: BaseException, value: Any) -> bool:
    """Whether an error is that of the given object's own code, or of its nature: asked for its class, it raises."""
    own = {"__class__", "iter", "encode", "repr", "a", "not readable"}
    return any(str(error).startswith(text) for text in own) and type(value).__module__ not in {"builtins", "datetime"}


def check_typed(error: BaseException, value: Any) -> str | None:
    """Say what is wrong with an error that came to a caller; None: nothing."""
    if not issubclass(type(error), KedgeError) or issubclass(type(error), DomainError):
        return None if is_own(error, value) else f"{type(error).__name__}: {error!s:.100}"
    if len(str(error)) > 2_500:
        return f"{type(error).__name__} of {len(str(error))} characters"
    return None
