import traceback

import pytest
from psycopg.conninfo import conninfo_to_dict

from kedge.errors import InvalidOptionError
from kedge_worker._settings import WorkerSettings, database_url
from kedge_worker.testing._server import with_database


@pytest.mark.parametrize(
    ("conninfo", "url"),
    [
        ("postgresql://u:p@h:5433/old", "postgresql://u:p@h:5433/new"),
        ("postgresql://u@h/old?sslmode=require", "postgresql://u@h/new?sslmode=require"),
        ("postgres://h", "postgresql://h/new"),
        ("postgresql:///old?host=/run/pg&port=5433", "postgresql:///new?host=%2Frun%2Fpg&port=5433"),
        ("postgresql://u@h1:1,h2:2/old", "postgresql://u@/new?host=h1%2Ch2&port=1%2C2"),
        ("postgresql://[::1]:5433/old", "postgresql:///new?host=%3A%3A1&port=5433"),
        ("host=h dbname=old user='a b' password='x/y@z'", "postgresql://a%20b:x%2Fy%40z@h/new"),
        ("", "postgresql:///new"),
    ],
)
def test_another_database_of_the_same_server_is_a_url_whatever_form_was_given(conninfo: str, url: str) -> None:
    assert with_database(conninfo, "new") == url


@pytest.mark.parametrize("name", ["a b", "ü/ö", "50%", "x?y#z"])
def test_any_database_name_survives_the_url(name: str) -> None:
    assert conninfo_to_dict(with_database("postgresql://u:p@h/old", name))["dbname"] == name


@pytest.mark.parametrize(
    "url", ["postgresql://a:geheim%zz@h/x", "host=h geheim", "password='geheim", "postgresql://h/x?geheim=1"]
)
def test_an_unreadable_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        database_url(url)

    assert "geheim" not in "".join(traceback.format_exception(caught.value, limit=0))


def test_the_settings_do_not_show_the_password() -> None:
    settings = WorkerSettings(database_url="postgresql://a:geheim@h/x")

    assert "geheim" not in repr(settings)
    assert "geheim" not in f"{settings.__rich_repr__()}"
    assert "lease_s=15.0" in repr(settings)
