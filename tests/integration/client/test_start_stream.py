"""A start of any number of requests: what is read when, what is stored when, and what an error leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, cast

import psycopg
import pytest

from kedge import (
    DatabaseError,
    InputConflictError,
    InvalidInputError,
    InvalidOptionError,
    KedgeError,
    OutcomeUnknownError,
    RunActiveError,
    RunExistsError,
    RunRequest,
    UnavailableError,
    WorkflowRef,
)
from kedge.codecs import PayloadContext
from kedge.encryption import AesGcmCodec, new_key
from kedge_client import AsyncClient
from tests.fault_proxy import Fault, FaultProxy, executes, nth
from tests.integration.client.orders import NOTIFY, ORDER, PROCESS, Order
from tests.integration.client.tables import note_rings
from tests.integration.client.test_client_keys import until_somebody_waits
from tests.proxy import Proxy
from tests.twins import ASYNC, AnyClient, Twin, connected, opened

CHUNK = 1000
LARGE = WorkflowRef("large", str)


class Counted:
    """Requests that are made when they are asked for, and are kept by nobody."""

    def __init__(self, requests: Iterable[Any]) -> None:
        self._requests = iter(requests)
        self.read = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        request = next(self._requests)
        self.read += 1
        return request


def orders(count: int, *, keyed: bool = False, first: int = 0) -> Iterator[RunRequest[Any]]:
    return (PROCESS(Order(f"o-{n}"), key=f"o-{n}" if keyed else None) for n in range(first, first + count))


def transactions(conn: psycopg.Connection) -> list[int]:
    """How many runs each transaction has stored, in their order."""
    rows = conn.execute(
        "select count(*) from kedge.journal where seq = 0 group by xmin::text order by min(run_id::text)"
    )
    return [row[0] for row in rows]


def stored(conn: psycopg.Connection) -> int:
    row = conn.execute("select count(*) from kedge.runs").fetchone()
    assert row is not None
    count: int = row[0]
    return count


# ---- what is read, sent and handed out, and when


async def test_no_more_than_a_chunk_is_read_ahead_of_what_was_handed_out(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    requests = Counted(orders(50_000))
    stream = client.start_stream(requests)
    ids: set[Any] = set()

    for number in range(0, 50_000, CHUNK):
        (first,) = await twin.some(stream, 1)
        assert requests.read == number + CHUNK
        others = await twin.some(stream, CHUNK - 1)
        assert requests.read == number + CHUNK
        ids |= {first.id, *(run.id for run in others)}

    assert await twin.some(stream, 1) == []
    assert len(ids) == 50_000
    assert stored(conn) == 50_000


async def test_each_chunk_is_one_transaction_and_is_stored_before_its_first_handle_comes(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    stream = client.start_stream(orders(2500))

    for size, expected in ((1000, 1000), (1000, 2000), (500, 2500)):
        await twin.some(stream, 1)
        assert stored(conn) == expected
        await twin.some(stream, size - 1)

    assert await twin.listed(stream) == []
    assert transactions(conn) == [1000, 1000, 500]


async def test_a_chunk_of_large_inputs_ends_at_a_mebibyte(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    requests = Counted(LARGE(letter * 300_000) for letter in "abcdefg")
    stream = client.start_stream(requests)

    await twin.some(stream, 1)

    # One more than fits had to be read to know.
    assert requests.read == 4
    assert len(await twin.listed(stream)) == 6
    assert transactions(conn) == [3, 3, 1]


async def test_a_request_that_is_larger_than_a_chunk_goes_alone(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    sizes = (10, 1_048_000, 10, 10)
    note = {"note": "m" * 2000}

    runs = await twin.listed(client.start_stream(LARGE("x" * size, metadata=note) for size in sizes))

    assert [len((await twin.do(run.view)).input) for run in runs] == list(sizes)
    assert transactions(conn) == [1, 1, 2]


async def test_handles_come_in_the_order_of_the_requests_whatever_their_shape(twin: Twin, client: AnyClient) -> None:
    taken = await twin.do(client.start, NOTIFY("n-1", key="n-1"))
    requests = [
        request
        for n in range(500)
        for request in (
            NOTIFY(f"n-{n}", key=f"n-{n}"),
            PROCESS(Order(f"o-{n}"), priority=n % 3),
            PROCESS(Order(f"o-{n}"), delay="1h"),
        )
    ]

    runs = await twin.listed(client.start_stream(requests))

    assert [run.ref.name for run in runs] == ["notify", "process-order", "process-order"] * 500
    assert runs[3] == taken
    assert [n for n, run in enumerate(runs) if not run.created] == [3]
    views = {view.id: view for view in await twin.listed(client.iter_runs())}
    assert [views[run.id].key for run in runs[::3]] == [f"n-{n}" for n in range(500)]
    assert [views[run.id].status for run in runs[:6]] == ["pending", "pending", "waiting"] * 2


async def test_nothing_is_read_and_nothing_sent_before_the_first_handle_is_asked_for(twin: Twin) -> None:
    requests = Counted(orders(3))
    async with opened(twin, "host=127.0.0.1 port=1 connect_timeout=2") as offline:
        stream = offline.start_stream(requests)

        assert requests.read == 0
        await twin.stop(stream)
        assert requests.read == 0


async def test_a_stream_of_nothing_sends_nothing(twin: Twin) -> None:
    async with opened(twin, "host=127.0.0.1 port=1 connect_timeout=2") as offline:
        assert await twin.listed(offline.start_stream([])) == []


async def test_between_two_chunks_no_connection_is_held(
    twin: Twin, database_url: str, conn: psycopg.Connection
) -> None:
    async with opened(twin, database_url, max_connections=1) as client:
        stream = client.start_stream(orders(1500))
        (run,) = await twin.some(stream, 1)

        assert await twin.do(run.status) == "pending"
        assert await twin.do(client.count_runs) == 1000
        assert len(await twin.listed(stream)) == 1499


async def test_each_chunk_rings_the_doorbell_behind_its_commit(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    note_rings(conn)
    stream = client.start_stream(orders(2500))

    for chunks in (1, 2, 3):
        await twin.some(stream, CHUNK)
        assert conn.execute("select count(*) from rung").fetchone() == (chunks,)

    started = {row[0] for row in conn.execute("select xmin::text from kedge.journal")}
    assert started.isdisjoint({row[0] for row in conn.execute("select xid from rung")})


async def test_an_async_iterable_is_read_as_it_comes(database_url: str, conn: psycopg.Connection) -> None:
    read = 0

    async def requests() -> AsyncIterator[RunRequest[Any]]:
        nonlocal read
        for request in orders(2500):
            await asyncio.sleep(0)
            read += 1
            yield request

    async with AsyncClient.connect(database_url) as client:
        stream = client.start_stream(requests())

        await ASYNC.some(stream, CHUNK)
        assert read == 1000
        await ASYNC.some(stream, 1)
        assert read == 2000
        assert len(await ASYNC.listed(stream)) == 1499
    assert transactions(conn) == [1000, 1000, 500]


# ---- scope and encryption


async def test_a_scoped_client_streams_runs_of_its_resource(twin: Twin, client: AnyClient) -> None:
    scoped = client.scoped("alice")
    requests = [*orders(3), PROCESS(ORDER, resource="alice"), PROCESS(ORDER, resource="bob"), *orders(3)]
    stream = scoped.start_stream(requests)

    runs = await twin.some(stream, 4)
    with pytest.raises(InvalidOptionError, match="another resource") as caught:
        await twin.some(stream, 1)

    assert caught.value.request_place == 4
    assert [(await twin.do(run.view)).resource for run in runs] == ["alice"] * 4
    assert await twin.do(client.count_runs) == 4


async def test_streamed_inputs_are_encrypted_each_for_its_run(
    twin: Twin, database_url: str, conn: psycopg.Connection
) -> None:
    codec = AesGcmCodec({"k": new_key()}, current="k")
    async with opened(twin, database_url, codec=codec) as client:
        requests = [PROCESS(Order("secret-1")), PROCESS(Order("secret-2"), key="k"), PROCESS(Order("secret-3"))]

        runs = await twin.listed(client.start_stream(requests))

        assert [(await twin.do(run.view)).input["order_id"] for run in runs] == ["secret-1", "secret-2", "secret-3"]
    values = [bytes(row[0]) for row in conn.execute("select value from kedge.journal")]
    assert all(value[:1] == b"\x03" and b"secret" not in value for value in values)


# ---- requests that cannot be started


class Refusing:
    """A codec that has no way to encrypt one input."""

    strict = False

    def encode(self, payload: bytes, _: PayloadContext, /) -> bytes:
        if b"bad" in payload:
            raise OSError("the key service is away")
        return payload

    def decode(self, data: bytes, _: PayloadContext, /) -> bytes:
        return data

    def digest(self, data: bytes, /) -> bytes:
        return data.ljust(32, b"\0")


def no_request() -> Any:
    return "no request"


def bad_input() -> Any:
    return PROCESS(cast("Any", {"order": 1}))


def own_error() -> Any:
    raise LookupError("the source is broken")


def taken_key() -> Any:
    return PROCESS(ORDER, key="taken", on_conflict="raise")


def other_input() -> Any:
    return PROCESS(Order("other"), key="taken")


def active_singleton() -> Any:
    return NOTIFY("x", singleton="raise")


def refused_by_a_trigger() -> Any:
    return PROCESS(ORDER, resource="bad")


FAULTS: dict[str, tuple[Callable[[], Any], type[Exception]]] = {
    "no request": (no_request, InvalidOptionError),
    "an input that does not fit": (bad_input, InvalidInputError),
    "an error of the iterable": (own_error, LookupError),
    "a taken key": (taken_key, RunExistsError),
    "a key with another input": (other_input, InputConflictError),
    "an active singleton": (active_singleton, RunActiveError),
    "a refusal of the database": (refused_by_a_trigger, DatabaseError),
}


@pytest.mark.parametrize("place", [0, 1, 1300])
@pytest.mark.parametrize("fault", FAULTS)
async def test_an_error_comes_in_its_place_and_all_before_it_is_started(
    twin: Twin, client: AnyClient, conn: psycopg.Connection, fault: str, place: int
) -> None:
    make, expected = FAULTS[fault]
    conn.execute(
        "create function refuse() returns trigger language plpgsql"
        " as $$ begin raise exception 'not this one'; end $$;"
        "create trigger refuse before insert on kedge.runs for each row when (new.resource = 'bad')"
        " execute function refuse()"
    )
    await twin.do(client.start, PROCESS(ORDER, key="taken"))
    await twin.do(client.start, NOTIFY("a", singleton="raise"))

    def requests() -> Iterator[Any]:
        yield from orders(place)
        yield make()
        yield from orders(700, first=place + 1)

    stream = client.start_stream(requests())
    runs = await twin.some(stream, place)
    with pytest.raises(expected) as caught:
        await twin.some(stream, 1)

    assert type(caught.value) is expected
    assert len({run.id for run in runs}) == place
    assert stored(conn) == 2 + place
    if isinstance(caught.value, KedgeError):
        assert caught.value.request_place == place
        assert f"request {place:,}" in "".join(caught.value.__notes__)
    assert await twin.some(stream, 1) == []
    assert stored(conn) == 2 + place


async def test_of_several_requests_whose_keys_are_taken_the_first_is_told(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    """The database names another one first: it goes in the order of keys."""
    holder = await twin.do(client.start, PROCESS(ORDER, key="z"))
    await twin.do(client.start, PROCESS(ORDER, key="a"))
    requests = [
        *orders(600),
        PROCESS(ORDER, key="z", on_conflict="raise"),
        *orders(100),
        PROCESS(ORDER, key="a", on_conflict="raise"),
        *orders(100),
    ]
    stream = client.start_stream(requests)

    assert len(await twin.some(stream, 600)) == 600
    with pytest.raises(RunExistsError) as caught:
        await twin.some(stream, 1)

    assert (caught.value.request_place, caught.value.key, caught.value.existing_id) == (600, "z", holder.id)
    assert stored(conn) == 2 + 600


async def test_a_key_that_is_asked_for_twice_conflicts_with_the_first_of_the_stream(
    twin: Twin, client: AnyClient
) -> None:
    stream = client.start_stream(
        [PROCESS(Order("one"), key="k"), NOTIFY("between"), PROCESS(Order("two"), key="k"), NOTIFY("behind")]
    )

    first, _ = await twin.some(stream, 2)
    with pytest.raises(InputConflictError) as caught:
        await twin.some(stream, 1)

    assert (caught.value.request_place, caught.value.existing_id) == (2, first.id)
    assert (await twin.do(first.view)).input == {"order_id": "one", "cents": 100}


async def test_a_codec_that_fails_does_so_in_its_place(twin: Twin, database_url: str, conn: psycopg.Connection) -> None:
    async with opened(twin, database_url, codec=Refusing()) as client:
        stream = client.start_stream([PROCESS(Order(word)) for word in ("good", "better", "bad", "best")])

        assert len(await twin.some(stream, 2)) == 2
        with pytest.raises(OSError, match="key service"):
            await twin.some(stream, 1)

    assert stored(conn) == 2


@pytest.mark.parametrize("given", [None, 3, PROCESS(ORDER)], ids=lambda value: type(value).__name__)
async def test_what_holds_no_requests_is_refused(twin: Twin, client: AnyClient, given: Any) -> None:
    with pytest.raises(InvalidOptionError, match="start_stream takes an iterable of requests"):
        await twin.listed(client.start_stream(given))


# ---- outages


async def test_an_outage_between_two_chunks_says_how_far_it_has_come_and_keys_let_it_be_repeated(
    twin: Twin, database_url: str, wire: Proxy, conn: psycopg.Connection
) -> None:
    async with opened(twin, wire.url) as client:
        stream = client.start_stream(orders(2500, keyed=True))
        before = await twin.some(stream, CHUNK)
        wire.refuse()

        with pytest.raises(UnavailableError) as caught:
            await twin.some(stream, 1)

    assert caught.value.request_place == 1000
    assert stored(conn) == 1000
    async with opened(twin, database_url) as client:
        again = await twin.listed(client.start_stream(orders(2500, keyed=True)))

    assert again[:1000] == before
    assert [run.created for run in again] == [False] * 1000 + [True] * 1500
    assert stored(conn) == 2500


async def test_a_chunk_whose_answer_is_lost_is_settled_by_repeating_it(
    twin: Twin, wire: Proxy, conn: psycopg.Connection
) -> None:
    async with opened(twin, wire.url) as client:
        stream = client.start_stream(orders(2500))
        runs = await twin.some(stream, CHUNK)
        wire.lose_answers(b"start_many")

        runs += await twin.listed(stream)

    assert wire.cuts_made == 1
    assert all(run.created for run in runs)
    assert {row[0] for row in conn.execute("select id from kedge.runs")} == {run.id for run in runs}
    assert len(runs) == 2500


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.CUT_BEHIND], ids=["on its way", "behind it"])
@pytest.mark.parametrize("number", [1, 2, 3])
async def test_a_stream_that_is_cut_off_at_any_chunk_starts_each_run_once(
    twin: Twin, database_url: str, conn: psycopg.Connection, fault: Fault, number: int
) -> None:
    async with FaultProxy(database_url) as proxy:
        trap = proxy.set_trap(nth(number, "client", executes("start_many")), fault)
        async with opened(twin, proxy.url) as client:
            runs = await twin.listed(client.start_stream(orders(2500, keyed=number == 2)))

    assert trap.has_sprung
    assert all(run.created for run in runs)
    assert [row[0] for row in conn.execute("select id from kedge.runs order by id")] == [run.id for run in runs]


async def test_an_outcome_that_repeating_does_not_settle_is_unknown_for_one_chunk_alone(
    twin: Twin, database_url: str, wire: Proxy, conn: psycopg.Connection
) -> None:
    async with opened(twin, wire.url) as client:
        stream = client.start_stream(orders(2500, keyed=True))
        await twin.some(stream, CHUNK)
        wire.lose_answers(b"start_many", times=100)

        with pytest.raises(OutcomeUnknownError) as caught:
            await twin.some(stream, 1)

    assert caught.value.request_place == 1000
    assert "of the next 1,000 all are or none" in caught.value.__notes__[0]
    assert stored(conn) == 2000
    async with opened(twin, database_url) as client:
        rest = await twin.listed(client.start_stream(orders(1500, keyed=True, first=1000)))

    assert [run.created for run in rest] == [False] * 1000 + [True] * 500
    assert stored(conn) == 2500


# ---- those who stop


async def test_one_who_stops_has_started_the_chunk_of_the_last_handle_and_no_more(
    twin: Twin, client: AnyClient, conn: psycopg.Connection
) -> None:
    requests = Counted(orders(5000))
    stream = client.start_stream(requests)

    await twin.some(stream, 1003)
    await twin.stop(stream)

    assert requests.read == 2000
    assert stored(conn) == 2000
    assert await twin.some(stream, 1) == []


async def test_what_is_cancelled_while_a_chunk_is_stored_leaves_all_of_it_or_none(
    database_url: str, conn: psycopg.Connection
) -> None:
    def requests() -> Iterator[RunRequest[Any]]:
        yield from orders(1500, keyed=True)
        yield PROCESS(ORDER, key="held")
        yield from orders(499, keyed=True, first=1500)

    async with (
        opened(ASYNC, database_url, max_connections=1) as client,
        connected(ASYNC, database_url) as mine,
    ):
        await ASYNC.do(client.start, PROCESS(ORDER, key="held"), conn=mine)
        stream = client.start_stream(requests())
        await ASYNC.some(stream, CHUNK)
        blocked = asyncio.create_task(ASYNC.some(stream, 1))
        await until_somebody_waits(conn)

        blocked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await blocked
        await ASYNC.do(mine.rollback)

        # It is over, the connection is nobody's, and keys settle what has become of the chunk.
        assert await ASYNC.some(stream, 1) == []
        again = await ASYNC.listed(client.start_stream(requests()))
        chunk = {run.created for run in again[1000:]}

    assert [run.created for run in again[:1000]] == [False] * 1000
    assert len(chunk) == 1
    assert stored(conn) == 2000


async def test_what_is_cancelled_while_requests_are_read_starts_none_of_them(
    database_url: str, conn: psycopg.Connection
) -> None:
    is_waiting = asyncio.Event()

    async def requests() -> AsyncIterator[RunRequest[Any]]:
        for request in orders(1500):
            yield request
        is_waiting.set()
        await asyncio.Event().wait()

    async with AsyncClient.connect(database_url) as client:
        stream = client.start_stream(requests())
        await ASYNC.some(stream, CHUNK)
        reading = asyncio.create_task(ASYNC.some(stream, 1))
        await is_waiting.wait()

        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    assert stored(conn) == 1000
