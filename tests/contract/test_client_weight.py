"""What importing the client loads, and what it may never load."""

import subprocess
import sys

import pytest

FORBIDDEN = ("kedge_worker", "anyio", "psycopg_pool", "sqlalchemy", "django", "asyncpg", "pydantic", "cryptography")


def modules_after(*imports: str) -> set[str]:
    """The modules of a fresh interpreter that has imported these."""
    code = "".join(f"import {name}\n" for name in imports) + "import sys\nprint(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    return modules_after("kedge_client")


@pytest.mark.parametrize("name", FORBIDDEN)
def test_the_client_does_not_load(loaded: set[str], name: str) -> None:
    assert not {module for module in loaded if module.partition(".")[0] == name}


def test_the_client_loads_nothing_beside_the_driver_msgspec_and_small_parts_of_the_standard_library(
    loaded: set[str],
) -> None:
    beside = loaded - modules_after("psycopg", "msgspec")

    foreign = {name for name in beside if name.partition(".")[0] not in sys.stdlib_module_names}
    assert {name.partition(".")[0] for name in foreign} == {"kedge", "kedge_client"}
    # Each costs milliseconds: a new one is a decision.
    assert {name for name in beside - foreign if "." not in name and not name.startswith("_")} <= {
        "base64",
        "binascii",
        "copy",
        "difflib",
        "fractions",
        "hashlib",
        "importlib",
        "tempfile",
        "unicodedata",
        "uuid",
        "zlib",
    }


def test_the_shared_package_loads_no_driver() -> None:
    assert not {name for name in modules_after("kedge") if name.partition(".")[0] in {"psycopg", "asyncio", "socket"}}
