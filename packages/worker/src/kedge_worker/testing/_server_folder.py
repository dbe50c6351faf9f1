"""
A temporary folder for one server: usable by the account that runs it, gone when its owner is gone.

A guard process removes the folder, and stops the server in it first, however the owner dies. Where even the guard
was killed, the next folder's making removes what is left.
"""

import fcntl
import os
import pwd
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

import psutil

from kedge_worker.testing._server_processes import kill_server

PREFIX: Final = "kedge-pg-"
# A socket's path has 103 bytes on the strictest system; the folder's name and the socket's take 40 of them.
LONGEST_PARENT: Final = 60
# Cloning a database is the creation of 300 files: 6 ms in memory, 10 to 100 ms on a disk.
MEMORY_PARENT: Final = Path("/dev/shm")  # noqa: S108 - mkdtemp makes the name
MEMORY_NEEDED: Final = 2 * 1024**3
DISK_PARENT: Final = Path("/tmp")  # noqa: S108 - mkdtemp makes the name
# Root must not run a server; any of these may. None is ever created, for that would change the machine.
ACCOUNTS: Final = ("pgserver", "postgres", "nobody")

# The pipe's other end closes when the owner ends, by whatever means; `cat` returns then. The server's last act is to
# remove its pid file; looking at the process would not do, for where nobody reaps it, it stays.
GUARD: Final = """
    trap '' INT TERM HUP
    cat >/dev/null
    pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null) || pid=
    if [ -n "$pid" ] && kill -QUIT "$pid" 2>/dev/null; then
        kill -CONT "$pid" 2>/dev/null
        tries=0
        while [ -e "$1/data/postmaster.pid" ] && [ $tries -lt 200 ]; do sleep 0.05; tries=$((tries + 1)); done
    fi
    rm -rf "$1" "$2"
"""


class ServerFolder:
    """
    The folder, its account (None: our own), its lock and its guard.

    Args:
        in_memory: Put it into the machine's memory, where there is room for tests' databases.
    """

    def __init__(self, *, in_memory: bool) -> None:
        remove_leftovers()
        self.account = _unprivileged_account() if os.geteuid() == 0 else None
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self._parent(in_memory=in_memory)))
        self._lock = _locked_file(self.path)
        self.give(self.path)
        self.make("socket")
        self._guard = self.popen(
            ["/bin/sh", "-c", GUARD, "sh", str(self.path), str(_copy_for(self.path))], stdin=subprocess.PIPE
        )

    @property
    def data(self) -> Path:
        """The data directory; initdb makes it."""
        return self.path / "data"

    @property
    def socket(self) -> Path:
        """Where the server puts its unix socket."""
        return self.path / "socket"

    def make(self, name: str) -> Path:
        """Make a folder in this one that belongs to the account."""
        folder = self.path / name
        folder.mkdir()
        self.give(folder)
        return folder

    def give(self, path: Path) -> None:
        """Make the account the owner of a path."""
        if self.account is not None:
            os.chown(path, self.account.pw_uid, self.account.pw_gid, follow_symlinks=False)

    def reachable(self, programs: Path) -> Path:
        """Return the folder of programs, or that of a copy where the account may not enter it (root's home, say)."""
        if self.account is None or _open_to_all(programs / "postgres"):
            return programs
        # 0.1 s and 45 MB, on a disk, since memory folders are often mounted without the right to execute. The other
        # way would be to open other people's folders.
        copy = _copy_for(self.path)
        install = programs.parent
        # A wheel's programs look for its libraries beside the package, by a relative path.
        for folder in (install, install.parent.with_name(f"{install.parent.name}.libs")):
            if folder.is_dir():
                shutil.copytree(folder, copy / folder.relative_to(install.parent.parent), symlinks=True)
        for path in (copy, *copy.rglob("*")):
            self.give(path)
        return copy / programs.relative_to(install.parent.parent)

    def popen(
        self,
        command: list[str],
        *,
        stdin: int = subprocess.DEVNULL,
        output: int | IO[bytes] = subprocess.DEVNULL,
    ) -> subprocess.Popen[bytes]:
        """Start a program as the account, in a session of its own: the terminal's interrupt is for the owner only."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
        account = self.account
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={**environment, "LC_ALL": "C", "TZ": "UTC"},
            start_new_session=True,
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
            extra_groups=[] if account else None,
        )

    def remove(self) -> None:
        """Remove the folder; the server in it must have stopped. The guard does it, and ends."""
        self._guard.communicate()
        shutil.rmtree(_copy_for(self.path), ignore_errors=True)
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()

    def _parent(self, *, in_memory: bool) -> Path:
        if in_memory and _has_room(MEMORY_PARENT):
            return MEMORY_PARENT
        parent = Path(tempfile.gettempdir())
        usable = len(str(parent)) <= LONGEST_PARENT and (self.account is None or _open_to_all(parent))
        return parent if usable else DISK_PARENT


def remove_leftovers() -> None:
    """Stop and remove the servers whose owner and guard are both dead."""
    for parent in {Path(tempfile.gettempdir()), DISK_PARENT, MEMORY_PARENT}:
        for folder in parent.glob(f"{PREFIX}*"):
            # Not ours to open, or gone, or not yet locked by the process that makes it, or locked: its owner lives.
            with suppress(OSError), (folder / "owner.lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _kill_leftover(folder / "data")
                shutil.rmtree(_copy_for(folder), ignore_errors=True)
                shutil.rmtree(folder, ignore_errors=True)


def _kill_leftover(data: Path) -> None:
    with suppress(OSError, ValueError, IndexError, psutil.Error):
        postmaster = psutil.Process(int((data / "postmaster.pid").read_text().splitlines()[0]))
        if str(data) in postmaster.cmdline():  # else the number belongs to somebody else by now
            kill_server(postmaster.pid)


def _locked_file(folder: Path) -> IO[bytes]:
    # Locked before it has the name that remove_leftovers looks for.
    fresh = folder / "fresh.lock"
    file = fresh.open("ab")
    fcntl.flock(file, fcntl.LOCK_EX)
    fresh.rename(folder / "owner.lock")
    return file


def _unprivileged_account() -> pwd.struct_passwd:
    for name in ACCOUNTS:
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise LookupError(f"root cannot run PostgreSQL, and there is no account {' or '.join(ACCOUNTS)}")


def _copy_for(folder: Path) -> Path:
    return DISK_PARENT / f"{folder.name}-programs"


def _has_room(parent: Path) -> bool:
    try:
        room = shutil.disk_usage(parent).free
    except OSError:
        return False
    return os.access(parent, os.W_OK) and min(room, psutil.virtual_memory().available) >= MEMORY_NEEDED


def _open_to_all(path: Path) -> bool:
    return all(folder.stat().st_mode & 0o005 == 0o005 for folder in (path, *path.parents))
