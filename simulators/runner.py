"""The process in which a simulator runs: reads parameters from a pipe, writes outcomes to another.

Started by `simulators.child`. Both pipes are its own, so that nothing the user's code prints can be taken
for a result. A request is a line of JSON and raw arrays, answers are those of `simulators.wire`. A page of memory
that both share says which simulation is running and since when.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import mmap
import os
import sys
from typing import BinaryIO

import numpy as np

from .errors import TemperflowError
from .processes import end_fork
from .simulator import SimulatorSpec
from .wire import encode, pack

#: What has ended is told at least this often between simulations: the price of a message is then nothing.
_TELL_SECONDS = 0.02

#: Two numbers of the shared page: the row that is being simulated, and when that began.
PROGRESS_BYTES = 16

_MAX_LOG = 1 << 20


def main(read_fd: int, write_fd: int, progress_fd: int) -> None:
    """Serves batches of parameters until the pipe closes."""
    owner = os.getpid()
    try:
        _serve(read_fd, write_fd, progress_fd, owner)
    finally:
        end_fork(owner)


def _serve(read_fd: int, write_fd: int, progress_fd: int, owner: int) -> None:
    source, sink = os.fdopen(read_fd, "rb"), os.fdopen(write_fd, "wb")
    progress = np.frombuffer(mmap.mmap(progress_fd, PROGRESS_BYTES))
    spec = json.loads(source.readline())
    if spec["pickled"] is not None:
        spec["pickled"] = base64.b64decode(spec["pickled"])
    try:
        try:
            simulator = SimulatorSpec(**spec).build()
        finally:
            end_fork(owner)
    except TemperflowError as error:
        _send(sink, pack({"error": str(error)}))
        return
    except Exception as error:
        _send(sink, pack({"error": f"loading the simulator failed with {type(error).__name__}: {error}"}))
        return
    _send(sink, pack({"ready": True}))
    while line := source.readline():
        n, d, request = json.loads(line)
        theta = np.frombuffer(source.read(8 * n * d)).reshape(n, d).copy()
        seeds = np.frombuffer(source.read(8 * n), dtype=np.int64).tolist()
        for outcomes in simulator.stream(theta, seeds, _TELL_SECONDS, progress):
            progress[1] = math.inf  # Nothing is simulated while we tell.
            _send(sink, encode(outcomes, request))
            _bound_log()


def _send(sink: BinaryIO, message: bytes) -> None:
    sink.write(message)
    sink.flush()


def _bound_log() -> None:
    """Keeps a talkative simulator from filling the disk: only the last megabyte of output matters."""
    # The user's code may have closed or replaced its output; the next simulation must not suffer.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        if os.fstat(1).st_size > _MAX_LOG:
            os.ftruncate(1, 0)
            os.lseek(1, 0, os.SEEK_SET)
