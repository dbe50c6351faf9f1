"""What became of a transaction, how often it is tried, and which error it ends with."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg import errors

from kedge import (
    DatabaseError,
    InvalidOptionError,
    KedgeError,
    OutcomeUnknownError,
    PrivilegesError,
    SchemaError,
    TransactionStateError,
    UnavailableError,
)
from kedge_client import _attempts
from kedge_client._attempts import Attempts
from kedge_client._failures import Fate, fate, refusal, refusal_in_transaction
from kedge_client._round_trip import Answer


class Failed(psycopg.Error):
    """An error of a given SQLSTATE."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__(f"failed with {sqlstate}\nDETAIL: a secret")
        self.sqlstate = sqlstate


class Lost(psycopg.OperationalError):
    """An error without SQLSTATE, or with one of the connection's."""

    def __init__(self, sqlstate: str | None = None) -> None:
        super().__init__("server closed the connection unexpectedly\n\tThis probably means ...")
        self.sqlstate = sqlstate


def attempts(*, writes: bool = True, timeout_s: float = 10) -> Attempts:
    return Attempts(timeout_s=timeout_s, writes=writes, schema="kedge")


def no_explanation(_: psycopg.Error) -> KedgeError | None:
    return None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Failed("40001"), Fate.ROLLED_BACK),
        (Failed("40P01"), Fate.ROLLED_BACK),
        (Lost(), Fate.UNKNOWN),
        (Lost("08006"), Fate.UNKNOWN),
        (Lost("57P01"), Fate.UNKNOWN),
        (Lost("57P02"), Fate.UNKNOWN),
        (errors.StatementCompletionUnknown(), Fate.UNKNOWN),
        (Failed("25006"), Fate.NOT_DONE),
        (Failed("57P03"), Fate.NOT_DONE),
        (Failed("53300"), Fate.NOT_DONE),
        (Failed("53100"), Fate.NOT_DONE),
        (Failed("26000"), Fate.NOT_DONE),
        (Failed("57014"), Fate.REFUSED),
        (Failed("42501"), Fate.REFUSED),
        (Failed("23505"), Fate.REFUSED),
        (Failed("KE002"), Fate.REFUSED),
    ],
    ids=lambda value: getattr(value, "sqlstate", None) or str(value),
)
def test_an_error_tells_what_became_of_the_transaction(error: psycopg.Error, expected: Fate) -> None:
    assert fate(error) is expected


@pytest.mark.parametrize(
    ("sqlstate", "expected"),
    [
        ("42P01", SchemaError),
        ("42883", SchemaError),
        ("3F000", SchemaError),
        ("42501", PrivilegesError),
        ("KE004", InvalidOptionError),
        ("KE005", InvalidOptionError),
        ("22021", InvalidOptionError),
        ("54000", InvalidOptionError),
        ("57014", UnavailableError),
        ("55P03", UnavailableError),
        ("40001", UnavailableError),
        ("53300", UnavailableError),
        ("57P03", UnavailableError),
        ("25006", UnavailableError),
        ("23505", DatabaseError),
        ("XX000", DatabaseError),
    ],
)
def test_each_state_has_its_error(sqlstate: str, expected: type[KedgeError]) -> None:
    found = refusal(Failed(sqlstate), "kedge")

    assert type(found) is expected
    assert "secret" not in str(found)
    assert getattr(found, "sqlstate", sqlstate) in {sqlstate, None}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Failed("40001"), TransactionStateError),
        (Failed("40P01"), TransactionStateError),
        (Failed("57014"), TransactionStateError),
        (Failed("25P02"), TransactionStateError),
        (Lost(), TransactionStateError),
        (Lost("57P01"), TransactionStateError),
        (Failed("42501"), PrivilegesError),
        (Failed("42883"), SchemaError),
        (Failed("23505"), DatabaseError),
    ],
    ids=lambda value: getattr(value, "sqlstate", None) or str(value),
)
def test_a_callers_transaction_has_errors_of_its_own(error: psycopg.Error, expected: type[KedgeError]) -> None:
    assert type(refusal_in_transaction(error, "kedge")) is expected


def test_a_missing_schema_names_the_command_with_the_schema() -> None:
    assert "kedge-worker migrate --schema shop" in str(refusal(Failed("3F000"), "shop"))


# ---- answers


def answered(*, error: psycopg.Error | None = None, closed: bool = True) -> Answer:
    answer = Answer()
    answer.error, answer.closed = error, closed
    return answer


def test_a_closed_answer_has_been_committed_whatever_happened_behind_it() -> None:
    assert attempts().error_of([answered()], Lost(), unreplicated=False) is None
    assert attempts().error_of([answered(), answered(error=Failed("XX000"))], None, unreplicated=False) is None


def test_an_answer_is_not_closed_before_its_commit() -> None:
    lost = Lost()

    assert attempts().error_of([answered(closed=False)], lost, unreplicated=False) is lost
    assert attempts().error_of([], lost, unreplicated=False) is lost


def test_an_error_of_the_server_is_what_counts() -> None:
    refused = Failed("42501")

    assert attempts().error_of([answered(error=refused)], None, unreplicated=False) is refused
    assert attempts().error_of([answered(error=refused, closed=False)], Lost(), unreplicated=False) is refused


def test_a_commit_without_its_standby_is_unknown_for_writes_only() -> None:
    with pytest.raises(OutcomeUnknownError, match="standby"):
        attempts().error_of([answered()], None, unreplicated=True)
    assert attempts(writes=False).error_of([answered()], None, unreplicated=True) is None


# ---- tries


def test_a_lost_write_is_tried_three_times_and_then_unknown() -> None:
    tries = attempts()

    delays = [tries.failed(Lost(), no_explanation) for _ in range(2)]

    assert all(0 < delay < 1 for delay in delays)
    with pytest.raises(OutcomeUnknownError) as caught:
        tries.failed(Lost(), no_explanation)
    assert str(caught.value).count("\n") == 0


def test_a_lost_read_is_tried_three_times_and_then_unavailable() -> None:
    tries = attempts(writes=False)
    for _ in range(2):
        tries.failed(Lost(), no_explanation)

    with pytest.raises(UnavailableError):
        tries.failed(Lost(), no_explanation)


def test_what_was_never_sent_is_unavailable() -> None:
    tries = attempts()
    for _ in range(2):
        tries.not_sent(Lost())

    with pytest.raises(UnavailableError, match="not reached"):
        tries.not_sent(Lost())


def test_what_may_have_been_done_once_stays_unknown() -> None:
    tries = attempts()
    tries.failed(Lost(), no_explanation)
    tries.not_sent(Lost())

    with pytest.raises(OutcomeUnknownError):
        tries.not_sent(Lost())


def test_what_was_not_done_is_repeated_and_then_unavailable() -> None:
    tries = attempts()
    for _ in range(2):
        tries.failed(Failed("57P03"), no_explanation)

    with pytest.raises(UnavailableError) as caught:
        tries.failed(Failed("57P03"), no_explanation)
    assert caught.value.sqlstate == "57P03"


def test_a_rolled_back_transaction_is_repeated_five_times() -> None:
    tries = attempts()
    for _ in range(_attempts.MAX_ROLLBACKS - 1):
        assert tries.failed(Failed("40P01"), no_explanation) < 1

    with pytest.raises(UnavailableError):
        tries.failed(Failed("40P01"), no_explanation)


def test_a_refusal_is_final_and_may_be_explained_by_the_call() -> None:
    explained = DatabaseError("explained")

    with pytest.raises(PrivilegesError):
        attempts().failed(Failed("42501"), no_explanation)
    with pytest.raises(DatabaseError, match="explained"):
        attempts().failed(Failed("KE002"), lambda _: explained)


def test_no_try_begins_after_the_calls_time() -> None:
    tries: Any = attempts(timeout_s=0)

    with pytest.raises(OutcomeUnknownError):
        tries.failed(Lost(), no_explanation)
