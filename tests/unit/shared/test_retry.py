import copy
import pickle
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedge import NonRetryable, Retry, RetryAfter
from kedge.errors import InvalidDurationError, InvalidOptionError


def growing(initial: timedelta, longer: timedelta, factor: float, jitter: bool) -> Retry:
    return Retry(None, initial=initial, maximum=initial + longer, factor=factor, jitter=jitter)


RETRIES = st.builds(
    growing,
    st.timedeltas(min_value=timedelta(), max_value=timedelta(days=300)),
    st.timedeltas(min_value=timedelta(), max_value=timedelta(days=300)),
    st.floats(min_value=1, max_value=100),
    st.booleans(),
)
ATTEMPTS = st.integers(min_value=1, max_value=100_000)


def test_delays_grow_by_the_factor_up_to_the_maximum() -> None:
    retry = Retry(initial="1s", factor=2, maximum="10s", jitter=False)

    assert [retry.delay_after(attempt).total_seconds() for attempt in range(1, 7)] == [1, 2, 4, 8, 10, 10]


@given(RETRIES, ATTEMPTS, st.floats(min_value=0, max_value=1))
def test_no_delay_is_negative_or_longer_than_the_maximum(retry: Retry, attempt: int, part: float) -> None:
    assert timedelta() <= retry.delay_after(attempt, rng=lambda: part) <= retry.maximum


@given(RETRIES, ATTEMPTS)
def test_without_luck_no_delay_is_shorter_than_the_one_before(retry: Retry, attempt: int) -> None:
    this, following = (retry.delay_after(n, rng=lambda: 1.0) for n in (attempt, attempt + 1))

    assert following >= this >= min(retry.initial, retry.maximum)


def test_jitter_takes_a_random_part_of_the_delay() -> None:
    retry = Retry(initial="8s")

    assert retry.delay_after(1, rng=lambda: 0.25) == timedelta(seconds=2)
    assert retry.delay_after(1, rng=lambda: 0.0) == timedelta()


@pytest.mark.parametrize(("attempt", "final"), [(1, False), (2, False), (3, True), (4, True)])
def test_the_last_attempts_failure_is_final(attempt: int, final: bool) -> None:
    assert Retry(3).gives_up(ValueError(), attempt) is final


def test_the_default_is_five_attempts_and_never_is_one() -> None:
    assert Retry().max_attempts == 5
    assert Retry.NEVER.gives_up(ValueError(), 1)


def test_without_a_limit_no_number_of_attempts_is_enough() -> None:
    assert not Retry(None).gives_up(ValueError(), 10**9)


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (ConnectionError(), False),
        (ConnectionRefusedError(), True),
        (ValueError(), True),
        (NonRetryable("no such card"), True),
        (RetryAfter("5s"), False),
        (KeyboardInterrupt(), True),
    ],
)
def test_errors_decide_by_their_class(error: BaseException, final: bool) -> None:
    retry = Retry(retry_on=(ConnectionError,), give_up_on=(ConnectionRefusedError,))

    assert retry.gives_up(error, 1) is final


def test_retry_after_says_its_own_delay_even_beyond_the_maximum() -> None:
    retry = Retry(2, maximum="1m")

    assert retry.delay_after(1, RetryAfter("2h", "come back later"), rng=lambda: 0.0) == timedelta(hours=2)
    assert retry.gives_up(RetryAfter("2h"), 2)


@pytest.mark.parametrize("delay", [-1, "soon", None, True])
def test_retry_after_refuses_what_is_no_duration(delay: object) -> None:
    with pytest.raises(InvalidDurationError):
        RetryAfter(delay)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "options",
    [
        {"max_attempts": 0},
        {"max_attempts": -1},
        {"max_attempts": 1001},
        {"max_attempts": 2**70},
        {"max_attempts": 1.0},
        {"max_attempts": True},
        {"factor": 0.5},
        {"factor": float("nan")},
        {"factor": float("inf")},
        {"factor": 10**400},
        {"factor": True},
        {"factor": "2"},
        {"initial": "2s", "maximum": "1s"},
        {"retry_on": ConnectionError},
        {"retry_on": (3,)},
        {"give_up_on": (KeyboardInterrupt,)},
        {"give_up_on": [ValueError]},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(InvalidOptionError):
        Retry(**options)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("option", ["initial", "maximum"])
@pytest.mark.parametrize("delay", [-1, "1 month", None, "11 years"])
def test_a_delay_that_is_no_duration_is_refused_by_its_name(option: str, delay: object) -> None:
    with pytest.raises(InvalidDurationError, match=f"^{option}="):
        Retry(**{option: delay})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_policies_are_compared_by_value_and_cannot_be_changed() -> None:
    retry = Retry(3, initial="1m", maximum="2m")

    assert retry == Retry(3, initial=60, maximum=timedelta(minutes=2)) != Retry(4, initial=60, maximum=120)
    assert hash(retry) == hash(Retry(3, initial=60, maximum=120))
    assert pickle.loads(pickle.dumps(retry)) == copy.deepcopy(retry) == retry
    with pytest.raises(AttributeError):
        retry.max_attempts = 4  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
