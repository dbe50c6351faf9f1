"""The demo's processes: one that ends by itself is noticed, and one that is stopped is gone."""

import sys
from pathlib import Path

import psutil
import pytest

from examples.orders.stage.services import Service, ServiceDiedError

READY_THEN_WAIT = "import time; print('ready at 7', flush=True); time.sleep(60)"


def service(code: str, folder: Path) -> Service:
    return Service("shop", [sys.executable, "-c", code], database_url="", log=folder / "shop.log")


def test_a_service_that_dies_is_reported_with_its_last_words(tmp_path: Path) -> None:
    dying = service("raise SystemExit('out of tea')", tmp_path)
    dying.start()

    with pytest.raises(ServiceDiedError, match="shop has ended; its last words:\nout of tea"):
        dying.wait_for("ready at (.*)")
    dying.wait()


@pytest.mark.parametrize("kind", ["terminated", "killed"])
def test_a_stopped_service_is_gone_and_may_start_again(tmp_path: Path, kind: str) -> None:
    stopped = service(READY_THEN_WAIT, tmp_path)
    stopped.start()
    assert stopped.wait_for("ready at (.*)") == "7"
    pid = stopped.pid
    assert pid is not None

    if kind == "terminated":
        stopped.terminate()
        stopped.wait()
    else:
        stopped.kill()

    assert stopped.pid is None
    assert not psutil.pid_exists(pid)
    stopped.check()
    stopped.start()
    stopped.check()
    stopped.kill()
