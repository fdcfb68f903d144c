"""One run of an external program: its end, and the end of what it printed."""

from __future__ import annotations

__all__ = ["Printed", "ProgramError", "run_program"]

import contextlib
import os
import selectors
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .memory import oom_kills
from .outcome import Status
from .processes import signal_name

#: How much of what a program prints is kept for failures: the end, where the reason is.
_KEPT_BYTES = 64 << 10
_LAST_LINES, _LAST_CHARACTERS = 3, 300

#: How a process ends by its own fault, or by the system's; shells and launchers add 128.
_DEATHS = ("SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGKILL", "SIGSEGV", "SIGTERM")


class ProgramError(Exception):
    """A run that gave no result.

    Attributes:
        status: CRASHED if another try may help (a signal, a full disk), else what the program itself did wrong.
    """

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Printed:
    """The last bytes of a stream, `limit` or more where there were so many, and how many came in all."""

    def __init__(self, limit: int) -> None:
        self.limit, self.kept, self.count = limit, bytearray(), 0

    def add(self, part: bytes) -> None:
        self.kept += part
        self.count += len(part)
        if len(self.kept) > 2 * self.limit:
            del self.kept[: -self.limit]

    def last_lines(self) -> str:
        text = self.kept[-_KEPT_BYTES:].decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return " / ".join(lines[-_LAST_LINES:])[-_LAST_CHARACTERS:]


def run_program(arguments: Sequence[str], folder: Path, limit: int = 0) -> Printed:
    """Runs a program to its end and returns what it printed on standard output.

    It stays in our process group, so that it dies with us. The ends of its output are left in `folder` as
    `temperflow.stdout` and `temperflow.stderr`.

    Arguments:
        arguments: Program and arguments; no shell reads them.
        folder: Its working directory.
        limit: Bytes of standard output that are wanted, if there are so many.

    Raises:
        ProgramError: An exit code other than 0, or death by a signal.
        OSError: It cannot be started.
    """
    killed_for_memory = oom_kills()
    stdout, stderr = Printed(max(limit, _KEPT_BYTES)), Printed(_KEPT_BYTES)

    def leave_words() -> None:
        for name, printed in (("stdout", stdout), ("stderr", stderr)):
            if printed.count:
                (folder / f"temperflow.{name}").write_bytes(printed.kept[-_KEPT_BYTES:])

    with _stopped_by_sigterm(leave_words):
        process = subprocess.Popen(
            arguments,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        code = _wait(process, stdout, stderr)
    leave_words()
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL) and oom_kills() > killed_for_memory:
        raise ProgramError(Status.OUT_OF_MEMORY, "the system ran out of memory and killed the program")
    if code != 0:
        raise _failure(code, stderr.last_lines() or stdout.last_lines())
    return stdout


def _wait(process: subprocess.Popen[bytes], stdout: Printed, stderr: Printed) -> int:
    """Reads what the program prints until it ends; its exit code."""
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        with process.stdout, process.stderr, selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ, stdout)
            selector.register(process.stderr, selectors.EVENT_READ, stderr)
            # What the program started may hold its pipes open, and go on printing, when it has ended itself.
            rounds_after_the_end = 100
            while selector.get_map() and rounds_after_the_end:
                ended = process.poll() is not None
                rounds_after_the_end -= ended
                ready = selector.select(0.0 if ended else 0.1)
                if ended and not ready:
                    break
                for key, _ in ready:
                    part = os.read(key.fd, 1 << 16)
                    if part:
                        key.data.add(part)
                    else:
                        selector.unregister(key.fileobj)
        return process.wait()
    finally:
        if process.returncode is None:  # We were interrupted.
            process.kill()
            process.wait()


@contextlib.contextmanager
def _stopped_by_sigterm(leave_words: Callable[[], None]) -> Iterator[None]:
    """SIGTERM reaches the program as well; it ends us only when the program has ended, which may tidy up first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True
        with contextlib.suppress(OSError):
            leave_words()  # At once: if the program does not obey, SIGKILL takes us with it.

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)
        if stopped:
            os.kill(os.getpid(), signal.SIGTERM)


def _failure(code: int, words: str) -> ProgramError:
    words = f": {words}" if words else ""
    if code < 0:
        return ProgramError(Status.CRASHED, f"the program was killed by {signal_name(-code)}{words}")
    reason = f"the program ended with exit code {code}"
    for name in _DEATHS:
        if code == 128 + signal.Signals[name]:
            return ProgramError(Status.CRASHED, f"{reason}, which stands for {name}{words}")
    return ProgramError(Status.RAISED, f"{reason}{words}")
