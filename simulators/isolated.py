"""A simulator in a process of its own: may hang, crash or leak without harm to whoever called it."""

from __future__ import annotations

__all__ = ["IsolatedSimulator"]

import base64
import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, BinaryIO, Self

import numpy as np

from .errors import SimulatorError
from .outcome import Array, Outcome, Status
from .runner import HEADER_BYTES
from .simulator import SimulatorSpec

Seeds = np.ndarray[Any, np.dtype[np.int64]]

_START_SECONDS = 300.0

#: Our packages first, the current folder last: it may hold folders named like ours. Not by PYTHONPATH, which
#: would reach the other Python programs that a simulator starts.
_BOOT = """
import os, sys
sys.path[:] = [sys.argv[1], *sys.path, os.getcwd()]
from simulators.runner import main
main(int(sys.argv[2]), int(sys.argv[3]))
"""


class IsolatedSimulator:
    """Runs simulations in a child process and process group, with a deadline for each.

    The child is started on first use and kept between calls. It is replaced after a crash or a deadline: its
    whole process group gets SIGTERM, after `spec.grace` seconds SIGKILL, grandchildren included.

    Arguments:
        spec: The simulator.

    Raises:
        SimulatorError: On first use, if the simulator cannot be imported.
    """

    def __init__(self, spec: SimulatorSpec) -> None:
        self.spec = spec
        self._child: _Child | None = None

    def start(self) -> None:
        """Starts the child and waits until the simulator is imported."""
        if self._child is not None and self._child.process.poll() is not None:
            self.close()  # It died while idle (out of memory, say): the next simulation is not to blame.
        if self._child is None:
            self._child = _Child(self.spec)

    def run(self, theta: Array, seeds: Seeds) -> list[Outcome]:
        """Simulates `theta` `(n, d)` with `seeds` `(n,)`; always one outcome a row, in order."""
        theta = np.ascontiguousarray(theta, dtype=np.float64)
        outcomes: list[Outcome] = []
        while len(outcomes) < len(theta):
            self.start()
            assert self._child is not None
            done = len(outcomes)
            try:
                received, failure = self._child.simulate(theta[done:], seeds[done:])
            except BaseException:
                self.close()  # Interrupted: what the child still answers would be taken for the next results.
                raise
            outcomes += received
            if failure is not None:
                outcomes += [failure] * (len(theta) - len(outcomes) if self.spec.batched else 1)
                self.close()
        return outcomes

    def close(self) -> None:
        """Ends the child and everything that it started."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Child:
    def __init__(self, spec: SimulatorSpec) -> None:
        self.spec = spec
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by kill)
        to_child, self.sink = _pipe()
        self.source, from_child = _pipe()
        ends = str(to_child.fileno()), str(from_child.fileno())
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, root, *ends],
            pass_fds=(to_child.fileno(), from_child.fileno()),
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
            cwd=spec.folder if spec.folder and os.path.isdir(spec.folder) else None,
        )
        # If this process is killed, nobody is left to end the group: the guard does when its input closes.
        self.guard = subprocess.Popen(
            ["/bin/sh", "-c", 'trap "" TERM INT HUP; read _; kill -s KILL -- "-$0"', str(self.process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        to_child.close()
        from_child.close()
        pickled = None if spec.pickled is None else base64.b64encode(spec.pickled).decode()
        try:
            self._send(json.dumps({**dataclasses.asdict(spec), "pickled": pickled}).encode() + b"\n")
            answer = self._receive(time.monotonic() + _START_SECONDS)
        except (EOFError, BrokenPipeError, TimeoutError) as error:
            reason = self._last_words() or str(error)
            self.kill()
            raise SimulatorError(f"the process that loads the simulator died: {reason}") from error
        if "error" in answer:
            self.kill()
            raise SimulatorError(answer["error"])

    def simulate(self, theta: Array, seeds: Seeds) -> tuple[list[Outcome], Outcome | None]:
        """Outcomes received, and the failure (crash or deadline) that ended the child, if any."""
        outcomes: list[Outcome] = []
        started = time.time()
        budget = self.spec.timeout
        if budget is not None and self.spec.batched:
            budget *= len(theta)
        try:
            header = json.dumps(theta.shape).encode() + b"\n"
            self._send(header + theta.tobytes() + np.asarray(seeds, dtype=np.int64).tobytes())
            while len(outcomes) < len(theta):
                started = time.time()
                answer = self._receive(None if budget is None else time.monotonic() + budget)
                raw = self._read(answer["bytes"]) if answer["bytes"] >= 0 else None
                x = None if raw is None else np.frombuffer(raw)
                status = Status(answer["status"])
                outcomes.append(Outcome(status, x, answer["reason"], answer["started"], answer["seconds"]))
        except TimeoutError:
            reason = f"ran longer than its timeout of {self.spec.timeout:g} s and was killed"
            return outcomes, Outcome(Status.TIMEOUT, None, reason, started, time.time() - started)
        except (EOFError, BrokenPipeError):
            reason = f"{self._death()} {self._last_words()}".strip()
            return outcomes, Outcome(Status.CRASHED, None, reason, started, time.time() - started)
        return outcomes, None

    def kill(self) -> None:
        """SIGTERM to the whole process group, SIGKILL after the grace; closes the pipes."""
        for stop, patience in ((signal.SIGTERM, self.spec.grace), (signal.SIGKILL, 10.0)):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, stop)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
        self.guard.kill()
        self.guard.communicate()
        for file in (self.sink, self.source, self.log):
            file.close()

    def _send(self, message: bytes) -> None:
        self.sink.write(message)
        self.sink.flush()

    def _receive(self, deadline: float | None) -> dict[str, Any]:
        """The next message's header; TimeoutError after the deadline, EOFError if the child is gone."""
        poller = select.poll()
        poller.register(self.source, select.POLLIN)
        ready = poller.poll(0)
        while not ready:
            # A dead child's pipe stays open while a process that it forked holds the other end.
            if self.process.poll() is not None and not poller.poll(0):
                raise EOFError("the simulator's process ended")
            patience = 0.25 if deadline is None else min(0.25, deadline - time.monotonic())
            if patience <= 0.0:
                raise TimeoutError("the simulator's process did not answer")
            ready = poller.poll(1000.0 * patience)
        size = int.from_bytes(self._read(HEADER_BYTES), "little")
        message: dict[str, Any] = json.loads(self._read(size))
        return message

    def _read(self, count: int) -> bytearray:
        parts = bytearray()
        while len(parts) < count:
            part = os.read(self.source.fileno(), count - len(parts))
            if not part:
                raise EOFError("the simulator's process closed its pipe")
            parts += part
        return parts

    def _death(self) -> str:
        try:
            code = self.process.wait(self.spec.grace)
        except subprocess.TimeoutExpired:
            return "the simulator's process closed the pipe to temperflow and was killed."
        if code < 0:
            return f"the simulator's process was killed by {signal.Signals(-code).name}."
        return f"the simulator's process ended with exit code {code}."

    def _last_words(self) -> str:
        self.log.seek(0, os.SEEK_END)
        self.log.seek(max(0, self.log.tell() - 500))
        return self.log.read().decode(errors="replace").strip()


def _pipe() -> tuple[BinaryIO, BinaryIO]:
    read_fd, write_fd = os.pipe()
    return os.fdopen(read_fd, "rb", buffering=0), os.fdopen(write_fd, "wb", buffering=0)
