"""Bad input at every public entry: a typed error, nothing sent, nothing half done; odd input: kept as it is."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Generator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid1, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kedge import (
    InvalidDurationError,
    InvalidInputError,
    InvalidNameError,
    InvalidOptionError,
    KedgeError,
    NotEncodableError,
    RunNotFoundError,
    TooLargeError,
    UsageError,
    WorkflowRef,
)
from kedge_client import Client
from tests.integration.client.orders import ORDER, PROCESS
from tests.twins import AnyClient, Twin, opened

ANYTHING = WorkflowRef.untyped("anything")
MISSING = UUID("0198c0de-0000-7000-8000-000000000000")

BAD_NAMES: dict[str, Any] = {
    "empty": "",
    "blank": "   ",
    "NUL": "a\0b",
    "control": "a\x1bb",
    "C1 control": "a\x85b",
    "newline": "a\nb",
    "lone surrogate": "a\ud800b",
    "too long": "x" * 256,
    "too many bytes": "😀" * 64,
    "line separator": "a\u2028b",
    "number": 3,
    "bytes": b"name",
    "list": ["a"],
    "bool": True,
}

BAD_RUNS: dict[str, Any] = {
    "empty": "",
    "word": "my-run",
    "short": "0198c0de",
    "NUL": "0198c0de-0000-7000-8000-00000000000\0",
    "number": 7,
    "none": None,
    "bytes": MISSING.bytes,
    "version 4": uuid4(),
    "version 1 as text": str(uuid1()),
    "nil": UUID(int=0),
    "ref": PROCESS,
}

BAD_DURATIONS: dict[str, Any] = {
    "negative": -1,
    "negative text": "-1s",
    "nan": math.nan,
    "infinite": math.inf,
    "month": "1 month",
    "capital": "1M",
    "empty": "",
    "bool": True,
    "too long": 1e15,
    "list": [1],
    "tiny": 1e-9,
    "far": timedelta(days=400_000),
}


@pytest.fixture
async def offline(twin: Twin) -> AsyncGenerator[AnyClient]:
    """A client without a database: whatever it refuses, it refuses before anything is sent."""
    async with opened(twin, "host=127.0.0.1 port=1 connect_timeout=2") as client:
        yield client


# ---- entries


@pytest.mark.parametrize("run", BAD_RUNS.values(), ids=BAD_RUNS.keys())
async def test_what_names_no_run_is_refused_wherever_a_run_is_named(twin: Twin, offline: AnyClient, run: Any) -> None:
    entries: list[Callable[[], Any]] = [
        lambda: twin.do(offline.get, run),
        lambda: twin.do(offline.steps, run),
        lambda: twin.do(offline.cancel, run),
        lambda: twin.do(offline.result, PROCESS, run),
        lambda: twin.do(offline.handle, PROCESS, run),
    ]
    if run is not None:
        entries.append(lambda: twin.do(offline.list_runs, parent=run))
        entries.append(lambda: twin.listed(offline.iter_runs(parent=run)))

    for entry in entries:
        with pytest.raises(InvalidOptionError, match="no id of a run"):
            await entry()


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES.keys())
async def test_what_can_be_no_name_is_refused_wherever_a_name_is_given(
    twin: Twin, offline: AnyClient, name: Any
) -> None:
    entries: list[Callable[[], Any]] = [
        lambda: twin.do(offline.list_runs, resource=name),
        lambda: twin.do(offline.list_runs, tag=name),
        lambda: twin.do(offline.count_runs, resource=name),
        lambda: twin.do(offline.count_runs, tag=name),
        lambda: twin.listed(offline.iter_runs(resource=name)),
        lambda: twin.do(offline.last, PROCESS, resource=name),
        lambda: twin.do(offline.start, PROCESS(ORDER, key=name)),
        lambda: twin.do(offline.start, PROCESS(ORDER, resource=name)),
        lambda: twin.do(offline.start, PROCESS(ORDER, queue=name)),
        lambda: twin.do(offline.start, PROCESS(ORDER, tags=[name])),
    ]
    for entry in entries:
        with pytest.raises(InvalidNameError):
            await entry()
    with pytest.raises(InvalidNameError):
        offline.scoped(name)


@pytest.mark.parametrize("name", ["", "a\0", "x" * 500, 3, b"w", "a\ud800"], ids=ascii)
async def test_what_can_be_no_workflow_is_refused_in_filters(twin: Twin, offline: AnyClient, name: Any) -> None:
    for entry in (offline.list_runs, offline.count_runs):
        with pytest.raises(InvalidNameError):
            await twin.do(entry, workflow=name)


@pytest.mark.parametrize("duration", BAD_DURATIONS.values(), ids=BAD_DURATIONS.keys())
async def test_what_is_no_duration_is_refused_wherever_one_is_given(
    twin: Twin, offline: AnyClient, duration: Any
) -> None:
    handle = offline.handle(PROCESS, MISSING)
    for entry in (
        lambda: twin.do(handle.result, timeout=duration),
        lambda: twin.do(offline.result, PROCESS, MISSING, timeout=duration),
        lambda: twin.do(offline.start, PROCESS(ORDER, delay=duration)),
    ):
        with pytest.raises(InvalidDurationError):
            await entry()
    with pytest.raises(InvalidDurationError):
        twin.connect("", timeout=duration)


@pytest.mark.parametrize("limit", [0, -1, 201, 10**30, 1.0, "50", None, True, math.nan], ids=ascii)
async def test_a_limit_outside_of_1_to_200_is_refused(twin: Twin, offline: AnyClient, limit: Any) -> None:
    with pytest.raises(InvalidOptionError, match="must be 1 to 200"):
        await twin.do(offline.list_runs, limit=limit)


@pytest.mark.parametrize(
    "cursor",
    ["", "x", "AAAA", "ü", "\0", "A" * 10_000, 3, b"bytes", "n" * 32, "bgRdWsBNeQGh_ZvC6np8o7sz1iXN4WU"],
    ids=ascii,
)
async def test_a_cursor_that_no_page_has_askedis_refused(twin: Twin, offline: AnyClient, cursor: Any) -> None:
    with pytest.raises(InvalidOptionError, match="cursor"):
        await twin.do(offline.list_runs, cursor=cursor)


@pytest.mark.parametrize("status", ["done", "", "Pending", ["pending", "x"], [3], "p"], ids=ascii)
async def test_a_status_that_does_not_exist_is_refused(twin: Twin, offline: AnyClient, status: Any) -> None:
    for entry in (offline.list_runs, offline.count_runs):
        with pytest.raises(InvalidOptionError, match="there are pending"):
            await twin.do(entry, status=status)


@pytest.mark.parametrize(
    "at", [datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None), "2026-01-01", 0, timedelta()], ids=ascii
)
async def test_a_time_without_zone_is_refused(twin: Twin, offline: AnyClient, at: Any) -> None:
    for entry in (
        lambda: twin.do(offline.list_runs, since=at),
        lambda: twin.do(offline.count_runs, until=at),
        lambda: twin.do(offline.start, PROCESS(ORDER, start_at=at)),
    ):
        with pytest.raises(InvalidOptionError, match="zone"):
            await entry()


@pytest.mark.parametrize(
    "reason", ["a\0b", "a\ud800", "x" * 4001, 3, b"why", ["x"]], ids=lambda value: ascii(value)[:20]
)
async def test_a_reason_that_cannot_be_kept_is_refused(twin: Twin, offline: AnyClient, reason: Any) -> None:
    handle = offline.handle(PROCESS, MISSING)
    entries: list[Callable[[], Any]] = [
        lambda: twin.do(offline.cancel, MISSING, reason=reason),
        lambda: twin.do(handle.cancel, reason=reason),
    ]
    for entry in entries:
        with pytest.raises(InvalidOptionError, match="reason="):
            await entry()


@pytest.mark.parametrize(
    "asked",
    [None, 3, "process-order", PROCESS, ORDER, object(), [PROCESS(ORDER)]],
    ids=lambda value: type(value).__name__,
)
async def test_what_is_no_request_is_refused(twin: Twin, offline: AnyClient, asked: Any) -> None:
    for entry in (
        lambda: twin.do(offline.start, asked),
        lambda: twin.do(offline.start_many, [PROCESS(ORDER), asked]),
        lambda: twin.listed(offline.start_stream([asked])),
        lambda: twin.do(offline.start_statement, asked),
    ):
        with pytest.raises(InvalidOptionError, match="start takes a request"):
            await entry()


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": 0},
        {"timeout": "soon"},
        {"timeout": "11 years"},
        {"retry": 3},
        {"singleton": "replace"},
        {"singleton": None},
        {"singleton": "raise", "on_conflict": "return"},
        {"singleton": "raise", "key": ""},
    ],
    ids=ascii,
)
async def test_timeouts_policies_and_singletons_that_make_no_sense_are_refused(
    twin: Twin, offline: AnyClient, options: Any
) -> None:
    with pytest.raises(UsageError):
        await twin.do(offline.start, PROCESS(ORDER, **options))


@pytest.mark.parametrize("maximum", [0, -1, 101, 1.5, "4", None, True], ids=ascii)
def test_a_number_of_connections_out_of_range_is_refused(twin: Twin, maximum: Any) -> None:
    with pytest.raises(InvalidOptionError, match="max_connections"):
        twin.connect("", max_connections=maximum)


@pytest.mark.parametrize("schema", ["", "Kedge", "a b", 'x";--', "1a", "x" * 42, "a\0", "ü"], ids=ascii)
def test_a_schema_that_cannot_be_one_is_refused(twin: Twin, schema: str) -> None:
    with pytest.raises(InvalidOptionError, match="schema"):
        twin.connect("", schema=schema)


# ---- payloads


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


BAD_PAYLOADS: dict[str, tuple[Any, type[KedgeError]]] = {
    "nan": (math.nan, NotEncodableError),
    "infinite": ({"a": [math.inf]}, NotEncodableError),
    "lone surrogate": ("a\ud800", NotEncodableError),
    "surrogate key": ({"\udfff": 1}, NotEncodableError),
    "object": (object(), NotEncodableError),
    "generator": ((i for i in range(3)), NotEncodableError),
    "too deep": (nested(129), TooLargeError),
    "far too deep": (nested(5000), NotEncodableError),
    "too large": ("x" * 1024 * 1024, TooLargeError),
}


@pytest.mark.parametrize(("payload", "error"), BAD_PAYLOADS.values(), ids=BAD_PAYLOADS.keys())
async def test_a_payload_that_cannot_be_kept_is_refused(
    twin: Twin, offline: AnyClient, payload: Any, error: type[KedgeError]
) -> None:
    with pytest.raises((error, TooLargeError)):
        await twin.do(offline.start, ANYTHING(payload))


def test_a_payload_that_does_not_fit_names_the_field() -> None:
    with pytest.raises(InvalidInputError, match=r"order_id"):
        PROCESS({"order_id": 3})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


ODD_PAYLOADS: dict[str, Any] = {
    "NUL": "a\0b",
    "escape as text": "\\u0000",
    "controls": "".join(map(chr, range(32))) + "\x7f\x80\x9f",
    "noncharacters": "\ufffe\uffff\U0001ffff",
    "byte order mark": "\ufeffa",
    "right to left": "\u202eabc",
    "emoji": "😀" * 1000,
    "combining": "e" + "\u0301" * 500,
    "2^53 + 1": 2**53 + 1,
    "-2^63": -(2**63),
    "2^64 - 1": 2**64 - 1,
    "smallest float": 5e-324,
    "largest float": 1.7976931348623157e308,
    "minus zero": -0.0,
    "bool": [True, False],
    "null": None,
    "empty": {"list": [], "dict": {}, "text": ""},
    "deep": nested(128),
    "as large as can be": "x" * (1024 * 1024 - 3),
    "many keys": {str(i): i for i in range(10_000)},
    "our own codes": "\x01null",
}


@pytest.mark.parametrize("payload", ODD_PAYLOADS.values(), ids=ODD_PAYLOADS.keys())
async def test_an_odd_payload_is_kept_as_it_is(twin: Twin, client: AnyClient, payload: Any) -> None:
    single = await twin.do(client.start, ANYTHING(payload))
    (bulk,) = await twin.do(client.start_many, [ANYTHING(payload)])

    for run in (single, bulk):
        kept = (await twin.do(run.view)).input
        assert kept == payload
        assert repr(kept) == repr(payload)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
NAMES = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=40).filter(
    lambda name: name == name.strip() and len(name.encode()) <= 200
)


@pytest.fixture
def sync_client(database_url: str) -> Generator[Client]:
    with Client.connect(database_url) as made:
        yield made


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    payload=JSON,
    metadata=st.dictionaries(st.text(), JSON, max_size=3),
    key=st.none() | NAMES,
    resource=st.none() | NAMES,
    queue=NAMES,
    tags=st.lists(NAMES, max_size=5),
    priority=st.integers(-32767, 32767),
)
def test_whatever_is_accepted_comes_back_unchanged(
    sync_client: Client, payload: Any, metadata: Any, key: Any, resource: Any, queue: str, tags: Any, priority: int
) -> None:
    request = ANYTHING(
        payload, metadata=metadata, resource=resource, queue=queue, tags=tags, priority=priority, key=None
    )

    view = sync_client.get(sync_client.start(request))

    assert view.input == payload
    assert view.metadata == metadata
    assert (view.resource, view.queue, view.priority) == (resource, queue, priority)
    assert view.tags == tuple(sorted(set(tags), key=str.encode))
    if key is not None:
        keyed = sync_client.start(ANYTHING(payload, key=key, on_conflict="return_any_input"))
        assert sync_client.get(keyed).key == key


@pytest.mark.parametrize(
    "start_at", [datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, tzinfo=UTC)], ids=["past", "future"]
)
async def test_a_time_at_the_end_of_the_calendar_is_kept(twin: Twin, client: AnyClient, start_at: datetime) -> None:
    run = await twin.do(client.start, PROCESS(ORDER, start_at=start_at))

    view = await twin.do(run.view)

    assert (view.status, view.due_at) == (("pending", None) if start_at.year == 1 else ("waiting", start_at))


async def test_the_longest_names_and_delay_fit(twin: Twin, client: AnyClient) -> None:
    name = "x" * 200
    ref = WorkflowRef(name, str, version="v" * 200)
    request = ref(
        "input",
        key="k" * 255,
        resource="r" * 255,
        queue="q" * 200,
        tags=["t" * 200] + [str(i) for i in range(19)],
        delay="3653 days",
    )

    view = await twin.do((await twin.do(client.start, request)).view)
    (listed,) = (await twin.do(client.list_runs, workflow=ref, resource="r" * 255, tag="t" * 200)).items

    assert (view.workflow, view.version, view.key) == (name, "v" * 200, "k" * 255)
    assert listed.id == view.id


async def test_a_reason_is_kept_as_it_is(twin: Twin, client: AnyClient, conn: psycopg.Connection) -> None:
    reason = "two lines\nand \u202e 😀 " + "x" * 3900
    run = await twin.do(client.start, PROCESS(ORDER))

    await twin.do(run.cancel, reason=reason)
    conn.execute("select * from kedge.sort_inbox(500)")

    assert (await twin.do(run.view)).reason == reason


async def test_an_id_is_read_whatever_the_case_of_its_letters(twin: Twin, client: AnyClient) -> None:
    run = await twin.do(client.start, PROCESS(ORDER))

    for text in (str(run.id).upper(), run.id.hex, f"{{{run.id}}}", f"urn:uuid:{run.id}"):
        assert (await twin.do(client.get, text)).id == run.id
    with pytest.raises(RunNotFoundError):
        await twin.do(client.get, MISSING)


@pytest.mark.parametrize("since", [datetime(1, 1, 1, tzinfo=UTC), datetime(1969, 12, 31, 23, 59, tzinfo=UTC)])
async def test_a_list_since_before_all_times_holds_all_runs(client: AnyClient, twin: Twin, since: datetime) -> None:
    run = await twin.do(client.start, WorkflowRef("old", int)(1))

    assert [view.id for view in (await twin.do(client.list_runs, since=since)).items] == [run.id]
    assert await twin.do(client.count_runs, since=since) == 1
    assert (await twin.do(client.list_runs, until=since)).items == []
    assert await twin.do(client.count_runs, until=since) == 0
