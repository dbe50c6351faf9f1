"""The README's example, copied out of the README and run as it says."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psycopg
import pytest

README = Path(__file__).parents[2] / "README.md"


def blocks(language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text("utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """The example's files where their first lines say."""
    for block in blocks("python"):
        name = block.split("\n", 1)[0].removeprefix("# ")
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(block, "utf-8")
    return tmp_path


def environment(url: str, folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KEDGE_")}
    path = f"{Path(sys.executable).parent}:{kept['PATH']}"
    return {**kept, "DATABASE_URL": url, "PATH": path, "PYTHONPATH": str(folder)}


@contextmanager
def running(command: list[str], url: str, folder: Path) -> Generator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, cwd=folder, env=environment(url, folder), stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_the_readme_has_the_three_files_of_its_example(shop: Path) -> None:
    assert sorted(str(file.relative_to(shop)) for file in shop.rglob("*.py")) == [
        "shop/api.py",
        "shop/refs.py",
        "shop/worker.py",
    ]


def test_the_readme_example_takes_an_order_to_its_receipt(shop: Path, database_url: str, unused_port: int) -> None:
    (script,) = [block for block in blocks("sh") if "kedge-worker" in block]
    tables = re.findall(r'-c "([^"]+)"', script)
    with psycopg.connect(database_url, autocommit=True) as conn:
        for table in tables:
            conn.execute(table.encode())
    commands = [line.split("#")[0].split() for line in script.splitlines()]
    migrate, work, serve = (words for words in commands if words[0] not in ("psql", "-c"))
    subprocess.run(migrate, cwd=shop, env=environment(database_url, shop), check=True, capture_output=True)

    with (
        running(work, database_url, shop),
        running([*serve, "--port", str(unused_port)], database_url, shop),
        httpx.Client(base_url=f"http://127.0.0.1:{unused_port}", timeout=30) as http,
    ):
        until_it_answers(http)
        first = http.post("/orders", json={"order_id": "A-1", "amount_cents": 1200})
        again = http.post("/orders", json={"order_id": "A-1", "amount_cents": 1200})
        wrong = http.post("/orders", json={"order_id": "A-2", "amount_cents": "much"})
        receipt = http.get(f"/orders/{first.json()['run_id']}")

    assert (first.status_code, first.json()["created"]) == (202, True)
    assert again.json() == {**first.json(), "created": False}
    assert (wrong.status_code, "amount_cents" in wrong.text) == (422, True)
    assert receipt.json() == {"order_id": "A-1", "charge_id": 1}


def until_it_answers(http: httpx.Client) -> None:
    """The service has begun; the limit is for a broken build."""
    end = time.monotonic() + 30
    while True:
        try:
            http.get("/")
        except httpx.ConnectError:
            if time.monotonic() > end:
                raise
        else:
            return


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
