import pytest
from psycopg.conninfo import conninfo_to_dict

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
