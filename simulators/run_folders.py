"""A fresh folder for each run of an external program; those of the newest failures are kept."""

from __future__ import annotations

__all__ = ["RunFolders"]

import contextlib
import fcntl
import os
import shutil
import socket
import tempfile
from pathlib import Path

_PREFIX = "temperflow-"
_LOCK = "lock"

#: How many failed runs are kept, and how much of each: what is larger is the program's data, not its message.
KEPT_FAILURES = 20
KEPT_BYTES = 10 << 20


class RunFolders:
    """The folders of the runs of one process.

    Layout of `parent`: `temperflow-HOST-*/` for each process that is alive, with a locked file and the run in progress;
    `failures/temperflow-*/` for failed runs, of which the newest `KEPT_FAILURES` stay. A run whose process was
    killed, at its timeout for example, counts as failed: the next process on its host sees to it.

    Arguments:
        parent: Where; None for a folder of this user's in the system's temporary folder. Made if missing.

    Raises:
        OSError: It cannot be made or written to.
    """

    def __init__(self, parent: str | None) -> None:
        if parent is None:
            self.parent = Path(tempfile.gettempdir()) / f"{_PREFIX}{os.getuid()}"
            self.parent.mkdir(mode=0o700, exist_ok=True)
            if self.parent.lstat().st_uid != os.getuid():
                raise PermissionError(f"{self.parent} belongs to another user")
        else:
            self.parent = Path(parent)
            self.parent.mkdir(parents=True, exist_ok=True)
        self.failures = self.parent / "failures"
        # Some shared file systems keep locks within a node: there the living of other hosts would look dead.
        self._prefix = f"{_PREFIX}{socket.gethostname()}-"
        self._made = 0
        self._settle()
        self._keep_what_the_dead_left()

    def make(self, name: str) -> Path:
        """A new empty folder."""
        self._made += 1
        folder = self._home / f"{self._made}-{name}"
        try:
            folder.mkdir()
        except FileNotFoundError:  # Someone tidies up the temporary folder.
            self._settle()
            folder = self._home / folder.name
            folder.mkdir()
        return folder

    def remove(self, folder: Path) -> None:
        """After a success."""
        shutil.rmtree(folder, ignore_errors=True)

    def keep(self, folder: Path) -> None:
        """After a failure."""
        try:
            self.failures.mkdir(exist_ok=True)
            _shrink(folder)
            os.utime(folder)
            folder.rename(self.failures / f"{folder.parent.name}-{folder.name}")
            self._forget_old_failures()
        except OSError:
            self.remove(folder)  # A full disk must not be filled further.

    def _settle(self) -> None:
        self.parent.mkdir(parents=True, exist_ok=True)
        self._home = Path(tempfile.mkdtemp(prefix=self._prefix, dir=self.parent))
        # The lock tells other processes that this one is alive, and goes with it however it dies. It appears in
        # its place when it is held already.
        self._lock = (self._home / "new").open("w")
        with contextlib.suppress(OSError):  # No locks on this file system: what the dead left stays.
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            (self._home / "new").rename(self._home / _LOCK)

    def _keep_what_the_dead_left(self) -> None:
        # What mkdtemp adds has no hyphen: `node-1` is not taken for `node`.
        for home in [home for home in self.parent.glob("*/") if home.name.rpartition("-")[0] == self._prefix[:-1]]:
            with contextlib.suppress(OSError), (home / _LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for folder in home.glob("*/"):
                    self.keep(folder)
                shutil.rmtree(home, ignore_errors=True)

    def _forget_old_failures(self) -> None:
        with contextlib.suppress(OSError):  # Another process does the same.
            kept = sorted(self.failures.glob(f"{_PREFIX}*"), key=lambda folder: folder.lstat().st_mtime)
            for folder in kept[:-KEPT_FAILURES]:
                shutil.rmtree(folder, ignore_errors=True)


def _shrink(folder: Path) -> None:
    """Removes the largest files until `KEPT_BYTES` remain."""
    sizes = []
    for path, _, names in os.walk(folder):
        for name in names:
            file = Path(path, name)
            sizes.append((file.lstat().st_size + 4096, file))
    room = KEPT_BYTES
    for size, file in sorted(sizes):
        room -= size
        if room < 0:
            file.unlink()
