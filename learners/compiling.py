"""Compiled training steps: the same numbers in fewer passes over memory, for half a minute of compiling at first.

What is compiled is the density of a flow, once for every architecture and size of batch: a campaign trains the
same ones again and again. Results differ from those of plain steps by rounding, and after many steps in all
digits; for the same seed they are the same again.
"""

from __future__ import annotations

__all__ = ["LogProb", "compiled_log_prob", "log_prob"]

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

#: `(flow, v, c)` -> `log p(v | c)`.
LogProb = Callable[[nn.Module, Tensor, Tensor], Tensor]

_log = logging.getLogger(__name__)
#: Densities that are kept compiled; torch's own limit is 8.
_MOST = 64


def log_prob(flow: nn.Module, v: Tensor, c: Tensor) -> Tensor:
    """`log p(v | c)` of `v` `(n, k)` and `c` `(n, m)` under a flow, `(n,)`."""
    log_p: Tensor = flow(c).log_prob(v)
    return log_p


@lru_cache(maxsize=1)
def compiled_log_prob() -> LogProb:
    """`log_prob`, compiled when it is first called; where that cannot be done it stays as it is, with one warning."""
    from torch._dynamo.exc import TorchDynamoException  # slow to import

    # No workers for it: they would take the cores of simulations, and outlive a trainer that is killed.
    options: dict[str, str | int | bool | Callable[..., Any]] = {"compile_threads": 1}
    fast = torch.compile(log_prob, dynamic=False, options=options, recompile_limit=_MOST)  # type: ignore[call-overload]
    failed = False

    def either(flow: nn.Module, v: Tensor, c: Tensor) -> Tensor:
        nonlocal failed
        if failed:
            return log_prob(flow, v, c)
        try:
            return fast(flow, v, c)
        except TorchDynamoException as error:
            failed = True
            reason = str(error).strip().split("\n")[0]
            _log.warning("training steps cannot be compiled, and run as they are: %s", reason)
            return log_prob(flow, v, c)

    return either
