"""CPU threads: how many torch may use, and work that is shared out among them.

Our networks are small: operations on a batch end before threads inside of them have met, and where other work shares
the cores they wait for one another by spinning, for ten times as long. So what is parallel is larger: a member of the
ensemble, a part of a batch, some of the parameters. Each runs in a thread in which torch uses no other.
"""

from __future__ import annotations

__all__ = ["Threads", "bounded_threads"]

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Self, TypeVar

import torch

T = TypeVar("T")

#: Parts of one training step at most: each has Python's share of the work, which is done by one thread at a time.
_MOST_SHARES = 4


@contextlib.contextmanager
def bounded_threads(threads: int | None) -> Iterator[None]:
    """Runs torch with at most `threads` CPU threads: training must not fight the simulations for cores."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(max(1, threads))
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Threads:
    """So many threads, as a context; a single one is the caller's own.

    Which thread does what changes nothing, but work in as many parts as there are threads rounds differently for
    another number of them.

    Arguments:
        count: Number of threads.
    """

    def __init__(self, count: int) -> None:
        self.count = max(1, count)
        self._pool: ThreadPoolExecutor | None = None
        self._before = 1

    @property
    def shares(self) -> int:
        """Into how many parts a training step is worth splitting."""
        return min(self.count, _MOST_SHARES)

    def __enter__(self) -> Self:
        self._before = torch.get_num_threads()
        if self.count > 1:
            self._pool = ThreadPoolExecutor(self.count, "training", partial(torch.set_num_threads, 1))
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
            # Products of matrices (MKL) take for all threads what any of them set last.
            torch.set_num_threads(self._before)

    def map(self, function: Callable[..., T], *items: Iterable[Any]) -> list[T]:
        """`function` of each of the items, in their order; in the thread at hand where there is no other."""
        if self._pool is not None:
            return list(self._pool.map(function, *items))
        with bounded_threads(1):
            return list(map(function, *items))
