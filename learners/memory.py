"""Where the memory of a device ends: work is done in parts, and in smaller ones each time it runs out.

How much a GPU can hold at once is known only when it is tried, and other programs may take a share of it at any time. A
training that has run for an hour must not end for that. Results stay the same but for rounding.
"""

from __future__ import annotations

__all__ = ["Parts"]

import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from simulators.errors import ResourceError

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Parts:
    """In how many parts a batch is computed: one, and twice as many each time memory runs out; never fewer again.

    Arguments:
        what: What is computed, for the message.
    """

    def __init__(self, what: str) -> None:
        self.what, self.count = what, 1

    def run(self, work: Callable[[int], T], most: int) -> T:
        """`work(count)`, which does all of it in `count` parts, done anew with more of them while memory runs out.

        Arguments:
            work: Changes nothing that matters when it is interrupted.
            most: Parts beyond which nothing gets smaller.

        Raises:
            ResourceError: Not even single rows fit.
        """
        while True:
            try:
                return work(min(self.count, most))
            except torch.OutOfMemoryError as error:
                if self.count >= most:
                    raise ResourceError(
                        f"the GPU has too little memory for {self.what}, even row by row ({error}); free some, train "
                        "on the CPU (CUDA_VISIBLE_DEVICES=), or choose smaller networks"
                    ) from error
            # After the handler: until then the error keeps alive what was computed.
            self.count *= 2
            torch.cuda.empty_cache()
            logger.warning("the GPU's memory ran out: %s goes on in %d parts", self.what, self.count)

    def map(self, function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        """`function(*rows)` of tensors `(n, *)`, one result a row, part by part."""
        n = len(rows[0])

        def work(count: int) -> Tensor:
            parts = zip(*(r.tensor_split(count) for r in rows), strict=True)
            return torch.cat([function(*part) for part in parts])

        return self.run(work, max(1, n))
