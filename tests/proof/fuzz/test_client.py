"""Whatever is given to a client: the call does what it says, or its caller gets a typed error; the client lives on."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kedge.errors import KedgeError, PayloadError, ResultTimeoutError
from kedge.refs import WorkflowRef
from kedge.wire import MAX_PAYLOAD_BYTES, decode, encode
from kedge_client import AsyncClient, Client
from kedge_worker import Context, Worker, workflow
from tests.proof.fuzz.entries import DATABASE, PURE, check_typed, looking, ref
from tests.proof.fuzz.zoo_values import NUMBERS, TEXTS, VALUES, is_same, sized
from tests.proof.kit.lanes import amount, thinned
from tests.proof.kit.plugin import Figure

CASES: Final = list(itertools.product([*DATABASE, *looking(UUID)], VALUES))
PURE_CASES: Final = list(itertools.product(PURE, VALUES))


def what_comes_of(entry: Callable[..., Any], *given: Any) -> str | None:
    """Call it with the value, which comes last; say what is wrong with what came of it."""
    value = given[-1]
    try:
        entry(*given)
    except BaseException as error:  # noqa: BLE001  # that is what is looked at
        return check_typed(error, value)
    return None


def test_no_argument_brings_anything_but_a_typed_error(figure: Figure) -> None:
    wrong: list[str] = []
    cases = thinned(PURE_CASES, of=20)
    for name, kind in cases:
        value = VALUES[kind]()
        if said := what_comes_of(PURE[name], value):
            wrong.append(f"{name}, {kind}: {said}")

    figure("cases of pure arguments", len(cases))
    assert wrong == []


def test_no_argument_of_a_call_brings_anything_but_a_typed_error(database_url: str, figure: Figure) -> None:
    wrong: list[str] = []
    cases = thinned(CASES, of=40)
    with Client.connect(database_url) as client:
        run = client.start(ref(1, delay="1 day"))
        entries = {**DATABASE, **looking(lambda: run)}
        for name, kind in cases:
            value = VALUES[kind]()
            if said := what_comes_of(entries[name], client, value):
                wrong.append(f"{name}, {kind}: {said}")
        assert client.get(run).input == 1

    figure("cases of the client", len(cases))
    assert wrong == []


async def test_the_async_client_answers_alike(database_url: str, figure: Figure) -> None:
    wrong: list[str] = []
    cases = thinned(CASES, of=100)
    async with AsyncClient.connect(database_url) as client:
        run = await client.start(ref(1, delay="1 day"))
        entries = {**DATABASE, **looking(lambda: run)}
        for name, kind in cases:
            value = VALUES[kind]()
            try:
                answer = entries[name](client, value)
                if inspect.isawaitable(answer):
                    await answer
            except BaseException as error:  # noqa: BLE001  # as above
                if said := check_typed(error, value):
                    wrong.append(f"{name}, {kind}: {said}")
        assert (await client.get(run)).input == 1

    figure("cases of the async client", len(cases))
    assert wrong == []


echoed: Final = WorkflowRef[dict[str, Any] | list[Any] | str | int | float | bool | None, Any]("fuzzed", Any, Any)


@workflow(echoed)
async def echo(_: Context, value: Any) -> Any:
    return value


async def test_what_was_started_ends_with_the_value_that_was_stored(database_url: str) -> None:
    with Client.connect(database_url) as client:
        started: dict[str, tuple[Any, UUID]] = {}
        for kind, make in VALUES.items():
            try:
                request = ref(make())
            except PayloadError:
                continue
            started[kind] = (decode(encode(make(), where="it"), Any, where="it"), client.start(request).id)
        for size in (-1, 0):
            text = sized(MAX_PAYLOAD_BYTES + size)
            started[f"limit {size}"] = (text, client.start(ref(text)).id)

        await Worker(database_url, workflows=[echo]).run_until_idle()

        assert len(started) > 100
        wrong = [
            kind for kind, (value, run) in started.items() if not is_same(client.result(ref, run, timeout="0s"), value)
        ]
        assert wrong == []


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_what_is_larger_than_the_limit_is_not_sent(size: int) -> None:
    with pytest.raises(KedgeError, match="limit"):
        ref(sized(MAX_PAYLOAD_BYTES + size))


SCALARS: Final = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(10**30), max_value=10**30),
    st.floats(),
    st.text(),
    st.characters(categories=["Cs", "Cc", "Cn"]).map(lambda sign: f"a{sign}"),
    st.binary(),
    st.decimals(),
    st.datetimes(timezones=st.none() | st.timezones()),
    st.timedeltas(),
    st.uuids(),
    st.sampled_from(TEXTS),
    st.sampled_from([number for number in NUMBERS if not isinstance(number, int) or number < 10**4299]),
)
ANYTHING: Final[st.SearchStrategy[Any]] = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.tuples(inner, inner),
        st.dictionaries(
            st.text(max_size=10) | st.integers() | st.floats() | st.booleans() | st.none(), inner, max_size=5
        ),
        st.sets(st.integers() | st.text(max_size=5), max_size=5),
    ),
    max_leaves=20,
)
PLAIN: Final[st.SearchStrategy[Any]] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5),
    max_leaves=20,
)
examined = {"cases": 0}


@settings(max_examples=amount(thin=10, full=1_000), suppress_health_check=[HealthCheck.too_slow])
@given(ANYTHING)
def test_random_arguments_bring_nothing_but_typed_errors(value: Any) -> None:
    for name, entry in PURE.items():
        examined["cases"] += 1
        said = what_comes_of(entry, value)
        assert said is None, f"{name}: {said}"


@settings(max_examples=amount(thin=30, full=800), suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(PLAIN, min_size=1, max_size=5))
def test_a_plain_value_comes_back_as_it_was_or_is_refused(values: list[Any]) -> None:
    for value in values:
        examined["cases"] += 1
        try:
            request = ref(value)
        except PayloadError:
            continue
        assert is_same(request.input, value)


def test_the_random_cases_are_counted(figure: Figure) -> None:
    figure("random cases", examined["cases"], goal=amount(thin=200, full=20_000), at_least=True)


def test_the_check_sees_a_raw_error_and_one_that_is_too_long() -> None:
    assert check_typed(UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), "\ud800")
    assert check_typed(TypeError("not iterable"), 1)
    assert check_typed(ResultTimeoutError(UUID(int=0), 1.0, "x" * 3_000), 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert check_typed(PayloadError("it", "is wrong"), 1) is None
