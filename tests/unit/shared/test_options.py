from collections import UserDict
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from typing import Any

import pytest
from msgspec import UNSET

from kedge.errors import (
    InvalidDurationError,
    InvalidNameError,
    InvalidOptionError,
    KedgeError,
    NotEncodableError,
    TooLargeError,
)
from kedge.options import StartOptions, ref_options, resolve
from kedge.retry import Retry
from kedge.run_meta import RetryTerms, RunMeta

NONE = StartOptions()


def meta_of(options: StartOptions) -> RunMeta:
    return RunMeta.decode(options.meta)


def test_without_options_the_engines_defaults_hold_and_nothing_is_stored() -> None:
    assert (NONE.queue, NONE.priority, NONE.on_conflict) == ("default", 0, "return")
    assert (NONE.timeout, NONE.retry, NONE.tags, NONE.meta) == (UNSET, None, (), b"")
    assert meta_of(NONE) == RunMeta()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"queue": "fast"}, "fast"),
        ({"priority": -32767}, -32767),
        ({"priority": 32767}, 32767),
        ({"on_conflict": "raise"}, "raise"),
        ({"resource": "customer-7"}, "customer-7"),
        ({"resource": None}, None),
        ({"delay": "1m"}, timedelta(minutes=1)),
        ({"delay": 0}, timedelta()),
        ({"timeout": None}, None),
        ({"timeout": 90}, timedelta(seconds=90)),
        ({"retry": Retry(3)}, Retry(3)),
        ({"tags": ["b", "a", "b"]}, ("b", "a")),
        ({"tags": ()}, ()),
        ({"singleton": "cancel_old"}, "cancel_old"),
        (
            {"start_at": datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))},
            datetime(2026, 1, 1, 10, tzinfo=UTC),
        ),
    ],
)
def test_an_option_is_checked_and_kept(given: dict[str, object], kept: object) -> None:
    (name,) = given

    assert getattr(resolve(NONE, given), name) == kept


@pytest.mark.parametrize(
    ("given", "error", "problem"),
    [
        ({"prioriti": 3}, InvalidOptionError, "unknown option 'prioriti'; did you mean 'priority'?"),
        ({"namespace": "x"}, InvalidOptionError, "unknown option 'namespace'"),
        ({"version": "2"}, InvalidOptionError, "unknown option 'version'"),
        ({"queue": ""}, InvalidNameError, "queue '' is empty"),
        ({"queue": "a\n"}, InvalidNameError, "control character"),
        ({"queue": None}, InvalidNameError, "queue 'None' is a NoneType"),
        ({"resource": "x" * 256}, InvalidNameError, "the limit is 255"),
        ({"resource": 7}, InvalidNameError, "give text"),
        ({"priority": 32768}, InvalidOptionError, "from -32767 to 32767"),
        ({"priority": -32768}, InvalidOptionError, "from -32767 to 32767"),
        ({"priority": 2**80}, InvalidOptionError, "from -32767 to 32767"),
        ({"priority": True}, InvalidOptionError, "whole number"),
        ({"priority": 1.0}, InvalidOptionError, "whole number"),
        ({"priority": "high"}, InvalidOptionError, "whole number"),
        ({"on_conflict": "ignore"}, InvalidOptionError, "'return', 'return_any_input', 'raise'"),
        ({"on_conflict": None}, InvalidOptionError, "give one of"),
        ({"on_conflict": []}, InvalidOptionError, "give one of"),
        ({"singleton": True}, InvalidOptionError, "give one of"),
        ({"delay": -1}, InvalidDurationError, "delay=-1 is negative"),
        ({"delay": None}, InvalidDurationError, "is a NoneType"),
        ({"timeout": 0}, InvalidDurationError, "must be longer than zero"),
        ({"timeout": "soon"}, InvalidDurationError, "timeout='soon' cannot be read"),
        ({"delay": "1s", "start_at": datetime(2026, 1, 1, tzinfo=UTC)}, InvalidOptionError, "exclude each other"),
        ({"start_at": datetime(2026, 1, 1)}, InvalidOptionError, "has no time zone"),  # noqa: DTZ001  # the mistake
        ({"start_at": "2026-01-01"}, InvalidOptionError, "give a datetime"),
        (
            {"start_at": datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))},
            InvalidOptionError,
            "outside the years",
        ),
        ({"retry": 3}, InvalidOptionError, "give a Retry"),
        ({"retry": None}, InvalidOptionError, "Retry.NEVER"),
        ({"retry": Retry(retry_on=(OSError,))}, InvalidOptionError, "put them where the handler is"),
        ({"retry": Retry(give_up_on=(OSError,))}, InvalidOptionError, "put them where the handler is"),
        ({"tags": "import"}, InvalidOptionError, "give a list of names"),
        ({"tags": {"a"}}, InvalidOptionError, "give a list of names"),
        ({"tags": [1]}, InvalidNameError, "tag '1' is a int"),
        ({"tags": ["a", ""]}, InvalidNameError, "tag '' is empty"),
        ({"tags": [str(n) for n in range(21)]}, InvalidOptionError, "21 of them, the limit is 20"),
        ({"singleton": "raise", "on_conflict": "return"}, InvalidOptionError, "exclude each other"),
        ({"singleton": None}, InvalidOptionError, "give one of"),
        ({"metadata": [1]}, InvalidOptionError, "give a dict"),
        ({"metadata": None}, InvalidOptionError, "give a dict"),
        ({"metadata": {1: "a"}}, InvalidOptionError, "its keys must be text"),
        ({"metadata": {"a": object()}}, NotEncodableError, "metadata: is a object"),
        ({"metadata": {"a": float("nan")}}, NotEncodableError, "metadata: is nan"),
        ({"metadata": {"a": "\ud800"}}, NotEncodableError, "lone surrogate"),
        ({"metadata": {"a": "x" * 70_000}}, TooLargeError, "the limit is 65,536"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_where_it_is_written(
    given: dict[str, object], error: type[KedgeError], problem: str
) -> None:
    with pytest.raises(error) as caught:
        resolve(NONE, given)

    assert problem in str(caught.value)
    assert len(str(caught.value)) < 400


def test_whole_values_replace_and_the_rest_stays() -> None:
    first = resolve(NONE, {"queue": "fast", "tags": ["a", "b"], "metadata": {"a": 1, "b": 2}, "resource": "c"})

    second = resolve(first, {"tags": ["c"], "metadata": {"a": 3}})

    assert (second.queue, second.resource, second.tags) == ("fast", "c", ("c",))
    assert meta_of(second).metadata == {"a": 3}


def test_metadata_stay_when_another_option_changes() -> None:
    first = resolve(NONE, {"metadata": {"a": 1}})

    assert meta_of(resolve(first, {"timeout": "1h"})) == RunMeta({"a": 1}, 3600.0, None, ("timeout",))


def test_metadata_can_be_emptied() -> None:
    assert meta_of(resolve(resolve(NONE, {"metadata": {"a": 1}}), {"metadata": {}})).metadata == {}


def test_of_delay_and_start_at_the_later_one_replaces_the_other() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)

    delayed = resolve(NONE, {"delay": "1h"})
    dated = resolve(delayed, {"start_at": at})
    again = resolve(dated, {"delay": "2h"})

    assert (dated.delay, dated.start_at) == (None, at)
    assert (again.delay, again.start_at) == (timedelta(hours=2), None)


def test_of_singleton_and_on_conflict_the_later_one_replaces_the_other() -> None:
    keyed = resolve(NONE, {"on_conflict": "raise"})
    single = resolve(keyed, {"singleton": "return"})
    again = resolve(single, {"on_conflict": "return_any_input"})

    assert (single.on_conflict, single.singleton) == ("return", "return")
    assert (again.on_conflict, again.singleton) == ("return_any_input", None)


def test_what_was_not_said_is_the_parents() -> None:
    nothing = NONE.with_inherited(resource="customer-7", priority=5)
    by_ref = ref_options({"priority": 0}).with_inherited(resource="customer-7", priority=5)
    by_request = resolve(NONE, {"resource": None, "priority": 0}).with_inherited(resource="customer-7", priority=5)

    assert (nothing.resource, nothing.priority) == ("customer-7", 5)
    assert (by_ref.resource, by_ref.priority) == ("customer-7", 0)
    assert (by_request.resource, by_request.priority) == (None, 0)


def test_what_was_said_once_stays_said() -> None:
    options = resolve(resolve(ref_options({"priority": 1}), {"tags": []}), {"resource": "a", "queue": "b"})

    assert options.own == ("priority", "resource", "tags")


def test_metadata_do_not_change_with_the_mapping_they_were_made_from() -> None:
    inner: list[int] = [1]
    given: UserDict[str, Any] = UserDict(a=inner)

    options = resolve(NONE, {"metadata": given})
    inner.append(2)
    given["b"] = 1

    assert meta_of(options).metadata == {"a": [1]}


def test_it_is_kept_which_options_the_request_itself_named() -> None:
    from_ref = ref_options({"queue": "mail", "timeout": "1h"})

    options = resolve(resolve(from_ref, {"priority": 1, "resource": "c"}), {"queue": "fast", "retry": Retry(2)})

    assert meta_of(from_ref).asked == ()
    assert options.asked == meta_of(options).asked == ("priority", "queue", "retry")


def test_a_timeout_tells_none_from_nothing() -> None:
    assert meta_of(resolve(NONE, {"queue": "a"})).timeout_s is UNSET
    assert meta_of(resolve(NONE, {"timeout": None})).timeout_s is None
    assert meta_of(resolve(ref_options({"timeout": "1m"}), {"timeout": None})).timeout_s is None
    assert meta_of(resolve(ref_options({"timeout": "1m"}), {"queue": "a"})).timeout_s == 60.0


@pytest.mark.parametrize("retry", [Retry(), Retry(None, initial="90ms", factor=1.5, maximum="2h", jitter=False)])
def test_a_retry_policy_comes_back_from_what_is_stored(retry: Retry) -> None:
    terms = meta_of(resolve(NONE, {"retry": retry})).retry

    assert isinstance(terms, RetryTerms)
    assert terms.retry() == retry


@pytest.mark.parametrize("option", ["key", "resource", "tags", "metadata", "delay", "retry"])
def test_a_ref_has_only_defaults_that_a_ref_may_have(option: str) -> None:
    with pytest.raises(InvalidOptionError, match=f"unknown option '{option}'"):
        ref_options({option: "x"})


def test_names_of_an_enum_become_plain_text() -> None:
    class Queue(StrEnum):
        FAST = "fast"

    assert type(resolve(NONE, {"queue": Queue.FAST}).queue) is str
