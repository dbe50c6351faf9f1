"""What deploy/ would put into the images is enough: migrated, started, used and stopped, without a container engine."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Generator
from contextlib import contextmanager

import httpx
import psycopg
import pytest

from tests.contract.dockerfile import REPOSITORY, Image, replay

ORDERS = REPOSITORY / "examples" / "orders"


@pytest.fixture(scope="module")
def worker_image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return replay(REPOSITORY / "deploy" / "worker.Dockerfile", tmp_path_factory.mktemp("worker"))


@pytest.fixture(scope="module")
def api_image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return replay(REPOSITORY / "deploy" / "api.Dockerfile", tmp_path_factory.mktemp("api"))


def packages(image: Image) -> set[str]:
    """The family's import names in the image."""
    return {path.name for path in image.root.glob("opt/kedge/lib/*/site-packages/kedge*") if "." not in path.name}


@contextmanager
def started(image: Image, *cmd: str, env: dict[str, str]) -> Generator[subprocess.Popen[str]]:
    """A process of the image, with nothing of this environment around it; killed at the end if it still runs."""
    command = image.command(*cmd)
    with subprocess.Popen(
        command, cwd=image.folder, env={**image.env, **env}, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def address(api: subprocess.Popen[str]) -> str:
    """Where the service says that it listens."""
    assert api.stderr is not None
    said = ""
    for line in api.stderr:
        said += line
        if found := re.search(r"running on (http://\S+)", line):
            return found[1]
    raise AssertionError(f"the API did not start:\n{said}")


def test_each_image_holds_its_own_side_and_what_both_share(worker_image: Image, api_image: Image) -> None:
    assert packages(worker_image) == {"kedge", "kedge_worker"}
    assert packages(api_image) == {"kedge", "kedge_client"}


def test_the_images_migrate_serve_process_an_order_and_stop_on_sigterm(
    database_url: str, conn: psycopg.Connection, worker_image: Image, api_image: Image
) -> None:
    conn.execute("drop schema kedge cascade")
    conn.execute((ORDERS / "tables.sql").read_bytes())
    env = {"KEDGE_DATABASE_URL": database_url}
    first_line = (ORDERS / "orders.jsonl").read_text("utf-8").partition("\n")[0]
    order = json.loads(first_line)["order"]
    # A free port instead of the image's own, which the machine may use already.
    serve = ["0" if word == "8000" else word for word in api_image.cmd]

    migrate = worker_image.command("migrate")
    subprocess.run(migrate, cwd=worker_image.folder, env={**worker_image.env, **env}, check=True)
    with started(worker_image, env=env) as worker, started(api_image, *serve, env=env) as api:
        url = address(api)
        placed = httpx.post(f"{url}/orders", json=order).json()
        answer = httpx.get(f"{url}/orders/{placed['run_id']}", params={"wait": 20}, timeout=30).json()
        api.terminate()
        worker.terminate()
        codes = (api.wait(15), worker.wait(60))

    assert placed["created"]
    assert (answer["status"], answer["receipt"]["order_id"]) == ("completed", order["order_id"])
    # uvicorn ends by raising the signal again, once it has answered everybody.
    assert codes == (-15, 0)
