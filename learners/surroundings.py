"""What a process has told torch for its own purposes, and what must not change what is learned."""

from __future__ import annotations

__all__ = ["as_usual"]

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def as_usual() -> Iterator[None]:
    """Networks are made and trained in single precision, with gradients; the global generator stays as it was.

    Gaussian processes are often fitted under `torch.set_default_dtype(torch.float64)`, and much is called under
    `torch.no_grad()`. The default is the whole process's, so this is for training and loading, not for drawing.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_default_dtype(default)
