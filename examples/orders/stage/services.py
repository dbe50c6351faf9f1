"""The demo's processes: the API service and the workers, started, killed and stopped by their process ids."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

ROOT: Final = Path(__file__).parents[3]
START_DEADLINE_S: Final = 20
STOP_DEADLINE_S: Final = 10
# So long nobody touches a dead worker's runs. The default is right for production, this for an impatient audience.
LEASE: Final = "2s"

# The pipe's other end closes when the demo ends, by whatever means; `cat` returns then.
GUARD: Final = 'cat >/dev/null; kill -9 "$1"'


def environment(database_url: str, **settings: str) -> dict[str, str]:
    """Return ours for a process of kedge: with these settings, and none of the machine's."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("KEDGE_")}
    return others | settings | {"KEDGE_DATABASE_URL": database_url}


class ServiceDiedError(Exception):
    """A service ended by itself, or did not come up in time."""

    def __init__(self, name: str, log: str) -> None:
        super().__init__(name, log)
        self.name = name
        self.log = log

    def __str__(self) -> str:
        return f"{self.name} has ended; its last words:\n{self.log}"


class Service:
    """One service: at most one process at a time, in a session of its own, so that Ctrl-C is for the demo alone."""

    def __init__(self, name: str, command: Sequence[str], *, database_url: str, log: Path) -> None:
        self.name = name
        self._command = command
        self._environment = environment(database_url, KEDGE_LEASE=LEASE)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The id of its process, if there is one."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process, and the guard that ends it should the demo itself be killed."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "sh", str(self.pid)], stdin=subprocess.PIPE, start_new_session=True
        )

    def kill(self) -> None:
        """Do what the kernel does when memory is short: kill -9."""
        if self._process is not None:
            self._process.kill()
            self._bury()

    def terminate(self) -> None:
        """Ask it to end (SIGTERM): a worker gives back the runs that it cannot complete."""
        if self._process is not None:
            self._process.terminate()

    def wait(self) -> None:
        """Wait until it has ended, and insist (kill -9) if it does not."""
        if self._process is None:
            return
        try:
            self._process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._bury()

    def check(self) -> None:
        """
        Make sure that it has not ended by itself.

        Raises:
            ServiceDiedError: It has.
        """
        if self._process is not None and self._process.poll() is not None:
            raise ServiceDiedError(self.name, "\n".join(self._read_log().splitlines()[-20:]))

    def wait_for(self, pattern: str) -> str:
        """
        Wait until its log has the pattern, and return the pattern's group.

        Raises:
            ServiceDiedError: It ended, or took too long.
        """
        deadline = time.monotonic() + START_DEADLINE_S
        while not (found := re.search(pattern, self._read_log())):
            self.check()
            if time.monotonic() > deadline:
                raise ServiceDiedError(self.name, f"(no {pattern!r} within {START_DEADLINE_S} s)\n{self._read_log()}")
            time.sleep(0.02)
        return found[1]

    def _read_log(self) -> str:
        return self._log.read_text(errors="replace")

    def _bury(self) -> None:
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
        if self._process is not None:
            self._process.wait()
        self._guard = self._process = None


@dataclass(frozen=True)
class Services:
    """The API service, where it answers, and the workers."""

    api: Service
    api_url: str
    workers: Sequence[Service]

    def check(self) -> None:
        """
        Make sure that none of them has ended by itself.

        Raises:
            ServiceDiedError: One has.
        """
        for service in (self.api, *self.workers):
            service.check()


@contextmanager
def running_services(database_url: str, *, workers: int) -> Generator[Services]:
    """Start the API service and the workers; stop them all in the end, whatever that is."""
    with TemporaryDirectory(prefix="kedge-demo-") as folder:

        def service(name: str, *command: str) -> Service:
            log = Path(folder) / f"{name}.log"
            return Service(name, [sys.executable, "-m", *command], database_url=database_url, log=log)

        # Port 0: the system picks a free one, and the log says which. Customers who have gone are not waited for.
        uvicorn = ("uvicorn", "--port", "0", "--no-access-log", "--timeout-graceful-shutdown", "1")
        api = service("api", *uvicorn, "examples.orders.api_service:app")
        others = [
            service(f"worker-{number}", "kedge_worker", "run", "examples.orders.worker_service:worker")
            for number in range(1, workers + 1)
        ]
        try:
            for each in (api, *others):
                each.start()
            yield Services(api, api.wait_for(r"running on (http://\S+)"), others)
        finally:
            for each in (api, *others):
                each.terminate()
            for each in (api, *others):
                each.wait()
