"""Acquisition beside simulating: points are chosen in a thread of its own, and used once they are there."""

from __future__ import annotations

__all__ = ["ChoiceAhead"]

import logging
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from .config_learner import AcquisitionConfig
from .proposal import Mask, Proposals
from .proposer import Proposer
from .trainer import Snapshot

logger = logging.getLogger(__name__)

_MAX_CHOSEN = 128
#: Acquisition looks at no more points that the model has not seen.
_MAX_UNSEEN = 4096


class ChoiceAhead:
    """The next choice, under way or ready to be used. Nobody waits for it: until it is there, others are simulated.

    Arguments:
        proposer: Makes the choice.
        config: How much is chosen; with a method that does not choose there is never any.
    """

    def __init__(self, proposer: Proposer, config: AcquisitionConfig) -> None:
        self._proposer, self._config = proposer, config
        self._unseen: list[tuple[Proposals, Mask]] = []
        self._ready = Proposals.none()
        self._failed = 0
        self._under_way: Future[Proposals] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="acquisition")

    def simulated(self, proposals: Proposals, ok: Mask) -> None:
        """What has ended, and no model has seen; `ok` says which have a result, `(n,)`."""
        if self._config.chooses:
            self._unseen.append((proposals, ok))

    def begin(self, snapshot: Snapshot, in_flight: Proposals, unseen: int) -> None:
        """Begins the next choice, from a new model, unless one is still under way.

        Arguments:
            snapshot: The model.
            in_flight: Proposals that have not ended.
            unseen: How many of those that have ended, the last ones, the model has not seen.
        """
        rows = Proposals.concatenate([proposals for proposals, _ in self._unseen])
        ok = np.concatenate([np.zeros(0, dtype=bool), *(ok for _, ok in self._unseen)])
        last = slice(max(0, len(rows) - min(unseen, _MAX_UNSEEN)), None)
        rows, ok = rows.take(last), ok[last]
        self._unseen = [(rows, ok)]
        n = min(_MAX_CHOSEN, round(self._config.chosen_share * self._config.growth * snapshot.rows))
        if not self._config.chooses or self._under_way is not None or n <= 0:
            return
        # A failure teaches nothing of x. In flight comes last: of many, acquisition looks at the last.
        pending = Proposals.concatenate([rows.take(ok), in_flight])
        self._under_way = self._thread.submit(self._proposer.chosen, n, snapshot, pending)

    def take(self, n: int) -> Proposals:
        """At most `n` chosen points, to be started now."""
        if self._under_way is not None and self._under_way.done():
            try:
                self._ready = self._under_way.result()
            except Exception as error:
                # A choice that fails costs information, not the campaign: the density goes on proposing.
                self._failed += 1
                logger.warning("the acquisition failed (%r); proposals come from the tempered density meanwhile", error)
            self._under_way = None
        taken, self._ready = self._ready.take(slice(0, n)), self._ready.take(slice(n, None))
        return self._proposer.numbered(taken)

    @property
    def metrics(self) -> dict[str, float]:
        """How often acquisition failed, and how often its Gaussian process did not fit, by name."""
        if not self._config.chooses:
            return {}
        unfitted = getattr(self._proposer.acquisition, "unfitted", 0)  # a user's own need not have one
        return {"acquisition_failed": float(self._failed), "acquisition_unfitted": float(unfitted)}

    def close(self) -> None:
        """Waits for nothing."""
        self._thread.shutdown(wait=False, cancel_futures=True)
