"""The process in which a simulator runs: reads parameters from a pipe, writes outcomes to another.

Started by `simulators.isolated`. Both pipes are its own, so that nothing the user's code prints can be taken
for a result. A request is a line of JSON, an answer is the length of a JSON header and the header; raw arrays
follow either.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sys
from typing import Any, BinaryIO

import numpy as np

from .errors import TemperflowError
from .outcome import Outcome
from .simulator import SimulatorSpec

#: Bytes of the length in front of an answer's header, little-endian.
HEADER_BYTES = 4

_MAX_LOG = 1 << 20


def main(read_fd: int, write_fd: int) -> None:
    """Serves batches of parameters until the pipe closes."""
    source, sink = os.fdopen(read_fd, "rb"), os.fdopen(write_fd, "wb")
    spec = json.loads(source.readline())
    if spec["pickled"] is not None:
        spec["pickled"] = base64.b64decode(spec["pickled"])
    try:
        simulator = SimulatorSpec(**spec).build()
    except TemperflowError as error:
        return _send(sink, {"error": str(error)})
    except Exception as error:
        return _send(sink, {"error": f"loading the simulator failed with {type(error).__name__}: {error}"})
    _send(sink, {"ready": True})
    while line := source.readline():
        n, d = json.loads(line)
        theta = np.frombuffer(source.read(8 * n * d)).reshape(n, d).copy()
        seeds = np.frombuffer(source.read(8 * n), dtype=np.int64).tolist()
        if simulator.batched:
            outcomes = simulator.run_batch(theta, seeds)
            for outcome in outcomes:
                _send_outcome(sink, outcome)
            _bound_log()
        else:
            for t, seed in zip(theta, seeds, strict=True):
                _send_outcome(sink, simulator.run(t, seed))
                _bound_log()
    return None


def _send_outcome(sink: BinaryIO, outcome: Outcome) -> None:
    raw = b"" if outcome.x is None else outcome.x.tobytes()
    header = {
        "status": outcome.status,
        "reason": outcome.reason,
        "started": outcome.started,
        "seconds": outcome.seconds,
        "bytes": len(raw) if outcome.x is not None else -1,
    }
    _send(sink, header, raw)


def _send(sink: BinaryIO, header: dict[str, Any], raw: bytes = b"") -> None:
    head = json.dumps(header).encode()
    sink.write(len(head).to_bytes(HEADER_BYTES, "little") + head + raw)
    sink.flush()


def _bound_log() -> None:
    """Keeps a talkative simulator from filling the disk: only the last megabyte of output matters."""
    # The user's code may have closed or replaced its output; the next simulation must not suffer.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        if os.fstat(1).st_size > _MAX_LOG:
            os.ftruncate(1, 0)
            os.lseek(1, 0, os.SEEK_SET)
