"""The process in which a simulator runs, seen from outside: asked over a pipe, watched, and ended."""

from __future__ import annotations

__all__ = ["Child"]

import base64
import contextlib
import dataclasses
import fcntl
import json
import math
import mmap
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from .errors import SimulatorError
from .memory import oom_kills, resident_bytes
from .outcome import Array, Outcome, Outcomes, Status
from .processes import MARK, kill_group, kill_marked, signal_name
from .runner import PROGRESS_BYTES
from .simulator import Seeds, SimulatorSpec
from .wire import HEADER_BYTES, decode

_START_SECONDS = 300.0
#: How often a long simulation is looked after: its memory, its output, whether it still lives.
_LOOK_SECONDS = 0.25
_MAX_LOG = 16 << 20
_KEPT_LOG = 4096

#: Our packages first, the current folder last: it may hold folders named like ours. Not by PYTHONPATH, which
#: would reach the other Python programs that a simulator starts.
_BOOT = """
import os, sys
sys.path[:] = [sys.argv[1], *sys.path, os.getcwd()]
from simulators.runner import main
main(*map(int, sys.argv[2:]))
"""

#: Kills the group $0 and all that has left it, marked by $1, once its input closes.
_GUARD = """
trap "" TERM INT HUP
read _
kill -s KILL -- "-$0"
for p in /proc/[0-9]*; do grep -qs "$1" "$p/environ" && kill -s KILL "${p#/proc/}"; done
"""


class _OutOfMemoryError(Exception):
    """The child occupies more than it may."""


class _WrongAnswerError(Exception):
    """The child sent what it was not asked for."""


class Child:
    """A child process and process group with the simulator imported.

    Arguments:
        spec: The simulator.
        environment: Variables that it has beside ours.

    Attributes:
        unwanted: Why the simulation that is running shall end for want of memory; empty if it shall not.

    Raises:
        SimulatorError: The simulator cannot be imported.
    """

    def __init__(self, spec: SimulatorSpec, environment: Mapping[str, str]) -> None:
        self.spec = spec
        self.unwanted = ""
        self._requests = 0
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by kill)
        # So that it can be cut while the child writes.
        fcntl.fcntl(self.log, fcntl.F_SETFL, fcntl.fcntl(self.log, fcntl.F_GETFL) | os.O_APPEND)
        self._shared = tempfile.TemporaryFile()  # noqa: SIM115 (closed by kill)
        self._shared.truncate(PROGRESS_BYTES)
        self._pages = mmap.mmap(self._shared.fileno(), PROGRESS_BYTES)
        self._progress = np.frombuffer(self._pages)
        self.mark = f"{MARK}={uuid.uuid4().hex}"
        to_child, self.sink = _pipe()
        os.set_blocking(self.sink.fileno(), False)
        self.source, from_child = _pipe()
        ends = to_child.fileno(), from_child.fileno(), self._shared.fileno()
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        self._oom_kills = oom_kills()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, root, *map(str, ends)],
            pass_fds=ends,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
            cwd=spec.folder if spec.folder and os.path.isdir(spec.folder) else None,
            env={**os.environ, **environment, MARK: self.mark.removeprefix(f"{MARK}=")},
        )
        # If this process is killed, nobody is left to end the group: the guard does when its input closes.
        self.guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, str(self.process.pid), self.mark],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        to_child.close()
        from_child.close()
        pickled = None if spec.pickled is None else base64.b64encode(spec.pickled).decode()
        try:
            self._begin(_START_SECONDS, None)
            self._send(json.dumps({**dataclasses.asdict(spec), "pickled": pickled}).encode() + b"\n")
            answer = self._receive()
        except (EOFError, BrokenPipeError, TimeoutError) as error:
            reason = self._last_words() or str(error)
            self.kill()
            raise SimulatorError(f"the process that loads the simulator died: {reason}") from error
        if "error" in answer:
            self.kill()
            raise SimulatorError(answer["error"])

    def simulate(
        self, theta: Array, seeds: Seeds, memory: int | None
    ) -> tuple[list[Outcomes], Outcome | None, int | None]:
        """Outcomes received; the failure (crash, deadline, memory) that ended the child, if any; and whose it is.

        The latter counts from the first row without an outcome; None if no simulation was running.
        """
        received: list[Outcomes] = []
        count, forged = 0, False
        budget = self.spec.timeout
        if budget is not None and self.spec.batched:
            budget *= len(theta)
        self._begin(budget, memory)
        try:
            self._requests += 1
            header = json.dumps([*theta.shape, self._requests]).encode() + b"\n"
            self._send(header + theta.tobytes() + np.asarray(seeds, dtype=np.int64).tobytes())
            while count < len(theta):
                answer = self._receive()
                if answer.get("request") != self._requests or answer["n"] > len(theta) - count:
                    # Taken for the next results, it would be stored under the wrong parameters.
                    raise _WrongAnswerError
                received.append(decode(answer, self._read(answer["bytes"])))
                count += len(received[-1])
        except TimeoutError:
            status, reason = Status.TIMEOUT, f"ran longer than its timeout of {self.spec.timeout:g} s and was killed"
        except _OutOfMemoryError as error:
            status, reason = Status.OUT_OF_MEMORY, str(error)
        except (EOFError, BrokenPipeError):
            status, reason = self._death()
        except _WrongAnswerError:
            forged, status = True, Status.CRASHED
            reason = "the simulator's process answered what it was not asked, and was killed: it must not write there"
        else:
            return received, None, None
        row, began = int(self._progress[0]), float(self._progress[1])
        seconds = max(0.0, time.perf_counter() - began)
        # Who sent a wrong answer is not known: the next simulation may have begun before it was read.
        running = row >= count and began < math.inf and not forged
        failure = Outcome(status, None, reason, time.time() - seconds, seconds)
        return received, failure, row - count if running else None

    @property
    def idle(self) -> bool:
        """Whether it lives and has nothing to say, as it should between two requests."""
        poller = select.poll()
        poller.register(self.source, select.POLLIN)
        return self.process.poll() is None and not poller.poll(0)

    def kill(self) -> None:
        """SIGTERM to the whole process group, SIGKILL after the grace; closes the pipes."""
        kill_group(self.process, self.spec.grace)
        kill_marked(self.mark)
        self.guard.kill()
        self.guard.communicate()
        del self._progress
        self._pages.close()
        for file in (self.sink, self.source, self.log, self._shared):
            file.close()

    def _begin(self, budget: float | None, memory: int | None) -> None:
        self._budget, self._memory, self.unwanted = budget, memory, ""
        self._progress[:2] = 0.0, time.perf_counter()

    def _send(self, message: bytes) -> None:
        """Writes to a child that may have stopped reading."""
        view = memoryview(message)
        poller = select.poll()
        poller.register(self.sink, select.POLLOUT)
        while view:
            self._await(poller)
            view = view[os.write(self.sink.fileno(), view) :]

    def _receive(self) -> dict[str, Any]:
        """The next message's header."""
        size = int.from_bytes(self._read(HEADER_BYTES), "little")
        message: dict[str, Any] = json.loads(self._read(size))
        return message

    def _read(self, count: int) -> bytearray:
        parts = bytearray()
        poller = select.poll()
        poller.register(self.source, select.POLLIN)
        while len(parts) < count:
            self._await(poller)
            part = os.read(self.source.fileno(), min(count - len(parts), 1 << 20))
            if not part:
                raise EOFError("the simulator's process closed its pipe")
            parts += part
        return parts

    def _await(self, poller: select.poll) -> None:
        """Waits for a pipe; raises if the simulation is late (TimeoutError), too large, or gone (EOFError)."""
        while not poller.poll(1000.0 * self._patience()):
            # A dead child's pipe stays open while a process that it forked holds the other end.
            if self.process.poll() is not None and not poller.poll(0):
                raise EOFError("the simulator's process ended")
            if self._patience() <= 0.0 and not poller.poll(0):
                raise TimeoutError("the simulator's process did not answer")
            self._bound_log()
            if self.unwanted:
                raise _OutOfMemoryError(self.unwanted)
            if self._memory is not None and (resident := resident_bytes(self.process.pid)) > self._memory:
                limit = f"its memory of {self._memory / 1e6:.0f} MB"
                raise _OutOfMemoryError(f"occupied {resident / 1e6:.0f} MB, more than {limit}, and was killed")

    def _patience(self) -> float:
        """Seconds until the simulation must be looked after. The child writes down when each one begins."""
        if self._budget is None:
            return _LOOK_SECONDS
        return min(_LOOK_SECONDS, max(0.0, float(self._progress[1]) + self._budget - time.perf_counter()))

    def _death(self) -> tuple[Status, str]:
        try:
            code = self.process.wait(self.spec.grace)
        except subprocess.TimeoutExpired:
            return Status.CRASHED, "the simulator's process closed the pipe to temperflow and was killed."
        if code == -signal.SIGKILL and oom_kills() > self._oom_kills:
            return Status.OUT_OF_MEMORY, "the system ran out of memory and killed the simulator's process."
        how = f"was killed by {signal_name(-code)}." if code < 0 else f"ended with exit code {code}."
        return Status.CRASHED, f"the simulator's process {how} {self._last_words()}".strip()

    def _last_words(self) -> str:
        return " ".join(self._end_of_log(500).decode(errors="replace").split())

    def _end_of_log(self, count: int) -> bytes:
        size = os.fstat(self.log.fileno()).st_size
        return os.pread(self.log.fileno(), count, max(0, size - count))

    def _bound_log(self) -> None:
        """Keeps a talkative simulation from filling the disk: only the end of its output matters."""
        if os.fstat(self.log.fileno()).st_size > _MAX_LOG:
            end = self._end_of_log(_KEPT_LOG)
            with contextlib.suppress(OSError):
                os.ftruncate(self.log.fileno(), 0)
                os.write(self.log.fileno(), end)


def _pipe() -> tuple[BinaryIO, BinaryIO]:
    read_fd, write_fd = os.pipe()
    return os.fdopen(read_fd, "rb", buffering=0), os.fdopen(write_fd, "wb", buffering=0)
