"""What travels between a simulator's process and whoever called it: a length, a JSON header, raw arrays.

No pickle: the process runs a user's code, and what it sends is only ever read as numbers and text.
"""

from __future__ import annotations

__all__ = ["HEADER_BYTES", "decode", "encode", "pack"]

import json
from typing import Any

import numpy as np

from .outcome import Outcomes

#: Bytes of the length in front of a header, little-endian.
HEADER_BYTES = 4


def pack(header: dict[str, Any], raw: bytes = b"") -> bytes:
    """A message."""
    head = json.dumps(header).encode()
    return len(head).to_bytes(HEADER_BYTES, "little") + head + raw


def encode(outcomes: Outcomes, request: int) -> bytes:
    """A message with outcomes of the request of that number."""
    raw = b"".join(
        [
            outcomes.started.tobytes(),
            outcomes.seconds.tobytes(),
            outcomes.lengths.tobytes(),
            outcomes.values.tobytes(),
            outcomes.status.tobytes(),
        ]
    )
    reasons = list(outcomes.reasons.items())
    sizes = {"n": len(outcomes), "values": len(outcomes.values), "bytes": len(raw)}
    return pack({"request": request, **sizes, "reasons": reasons}, raw)


def decode(header: dict[str, Any], raw: bytes | bytearray) -> Outcomes:
    """The outcomes of a message, without copying its numbers."""
    n, values = int(header["n"]), int(header["values"])
    started, seconds = np.frombuffer(raw, count=n), np.frombuffer(raw, count=n, offset=8 * n)
    lengths = np.frombuffer(raw, dtype=np.int64, count=n, offset=16 * n)
    x = np.frombuffer(raw, count=values, offset=24 * n)
    status = np.frombuffer(raw, dtype=np.uint8, count=n, offset=24 * n + 8 * values)
    return Outcomes(status, lengths, x, started, seconds, {int(row): str(reason) for row, reason in header["reasons"]})
