"""Where the database is: argument, environment, and the forms in which people write it."""

import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from kedge import Duration, InvalidDurationError, InvalidOptionError
from kedge_client._settings import ClientSettings, check_max_connections, client_settings, own_conninfo, resolve_dsn

PLAIN = "postgresql://u:p@h:5432/d"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith(("PG", "KEDGE_")) or name == "DATABASE_URL":
            monkeypatch.delenv(name)
    return iter(())


def settings(
    *, schema: str | None = None, timeout: Duration = "10s", listen: bool = True, wake: bool = True
) -> ClientSettings:
    return client_settings(schema=schema, timeout=timeout, listen=listen, wake=wake)


@pytest.mark.parametrize(
    "dsn",
    [
        PLAIN,
        "postgres://u:p@h:5432/d",
        "postgresql+psycopg://u:p@h:5432/d",
        "postgresql+asyncpg://u:p@h:5432/d",
        "postgres+psycopg2://u:p@h:5432/d",
        "POSTGRESQL://u:p@h:5432/d",
    ],
)
def test_every_way_to_write_the_scheme_leads_to_the_same_database(dsn: str) -> None:
    assert resolve_dsn(dsn) == PLAIN


def test_keywords_of_libpq_will_do() -> None:
    assert resolve_dsn("host=h dbname=d") == "host=h dbname=d"


def test_the_argument_wins_over_the_environment_and_kedges_variable_over_the_common_one() -> None:
    both = {"KEDGE_DATABASE_URL": "postgres://kedge/d", "DATABASE_URL": "postgres://common/d"}

    assert resolve_dsn("host=mine", both) == "host=mine"
    assert resolve_dsn(None, both) == "postgresql://kedge/d"
    assert resolve_dsn(None, {**both, "KEDGE_DATABASE_URL": ""}) == "postgresql://common/d"
    assert resolve_dsn(None, {}) == ""


@pytest.mark.parametrize(
    "dsn", ["host", "postgresql://u:secret@h:x y/d?nonsense=1", "password=secret nonsense=1", "mysql://u:secret@h/d"]
)
def test_an_unreadable_dsn_is_refused_without_repeating_it(dsn: str) -> None:
    for given, environment in ((dsn, {}), (None, {"DATABASE_URL": dsn})):
        with pytest.raises(InvalidOptionError, match="cannot be read: write postgresql://") as caught:
            resolve_dsn(given, environment)
        assert "secret" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__


def test_the_variable_that_cannot_be_read_is_named() -> None:
    with pytest.raises(InvalidOptionError, match="DATABASE_URL cannot be read"):
        resolve_dsn(None, {"DATABASE_URL": "nonsense"})


@pytest.mark.parametrize("dsn", [3, b"host=h", object()], ids=["number", "bytes", "object"])
def test_what_is_no_text_is_no_dsn(dsn: Any) -> None:
    with pytest.raises(InvalidOptionError, match="a DSN is text"):
        resolve_dsn(dsn)


def test_own_connections_are_limited_in_time() -> None:
    made = conninfo_to_dict(own_conninfo(PLAIN, settings(timeout="3s")))

    assert made["options"] == "-c statement_timeout=3000 -c enable_seqscan=off -c jit=off"
    assert made["connect_timeout"] == "5"
    assert made["application_name"] == "kedge-client"
    assert (made["keepalives_idle"], made["keepalives_interval"], made["keepalives_count"]) == ("15", "5", "3")
    assert made["tcp_user_timeout"] == "8000"
    assert (made["host"], made["user"], made["password"], made["dbname"]) == ("h", "u", "p", "d")


def test_what_the_dsn_says_itself_stays() -> None:
    dsn = "host=h connect_timeout=30 application_name=shop options='-c search_path=a -c statement_timeout=1'"

    made = conninfo_to_dict(own_conninfo(dsn, settings()))

    assert (made["connect_timeout"], made["application_name"]) == ("30", "shop")
    # Of two settings of the same name the later one holds.
    pinned = "-c statement_timeout=10000 -c enable_seqscan=off -c jit=off"
    assert made["options"] == f"{pinned} -c search_path=a -c statement_timeout=1"


def test_what_libpqs_variables_say_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGAPPNAME", "shop")
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "30")
    monkeypatch.setenv("PGOPTIONS", "-c search_path=a")

    made = conninfo_to_dict(own_conninfo("host=h", settings()))

    assert made["options"] == "-c statement_timeout=10000 -c enable_seqscan=off -c jit=off -c search_path=a"
    assert "application_name" not in made
    assert "connect_timeout" not in made


def test_a_client_that_does_not_listen_sets_nothing_that_a_pooler_would_mind() -> None:
    assert "options" not in conninfo_to_dict(own_conninfo(PLAIN, settings(listen=False)))


def test_the_schema_comes_from_the_argument_the_environment_or_is_kedge(monkeypatch: pytest.MonkeyPatch) -> None:
    default = settings().schema
    monkeypatch.setenv("KEDGE_SCHEMA", "other")

    assert (default, settings().schema, settings(schema="mine").schema) == ("kedge", "other", "mine")


def test_a_schema_of_the_environment_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDGE_SCHEMA", "no good")

    with pytest.raises(InvalidOptionError, match="no good"):
        settings()


def test_a_timeout_is_a_duration_longer_than_zero() -> None:
    assert settings(timeout=timedelta(minutes=1)).timeout_s == 60
    with pytest.raises(InvalidDurationError):
        settings(timeout=0)


def test_up_to_a_hundred_connections_may_be_opened() -> None:
    assert (check_max_connections(1), check_max_connections(100)) == (1, 100)
    with pytest.raises(InvalidOptionError, match="1 to 100"):
        check_max_connections(101)
