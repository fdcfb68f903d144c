"""How many simulations a campaign has, and what they took: rows on their way to the store count as well."""

from __future__ import annotations

__all__ = ["Tally"]

from collections import Counter

import numpy as np

from simulators.outcome import STATUSES, Status

from .proposal import KINDS, Finished, ProposalKind
from .store import StoreSummary


class Tally:
    """Rows by kind and status, and simulator seconds.

    Arguments:
        stored: What the store holds at first.

    Attributes:
        seconds: Simulator seconds spent.
        learning_seconds: Of those on what may be learned from.
    """

    def __init__(self, stored: StoreSummary) -> None:
        self._rows: Counter[tuple[ProposalKind, Status]] = Counter(stored.counts)
        self.seconds, self.learning_seconds = stored.seconds, stored.learning_seconds

    def spend(self, rows: Finished) -> None:
        """Accounts for the time of finished simulations."""
        self.seconds += float(rows.outcomes.seconds.sum())
        self.learning_seconds += float(rows.outcomes.seconds[rows.proposals.trains].sum())

    def add(self, rows: Finished, sign: int = 1) -> None:
        """Counts rows, or with a `sign` of -1 takes them away."""
        if not len(rows):
            return
        codes = rows.proposals.kind * np.int64(len(STATUSES)) + rows.outcomes.status
        for pair, number in zip(*(part.tolist() for part in np.unique(codes, return_counts=True)), strict=True):
            kind, status = divmod(pair, len(STATUSES))
            self._rows[KINDS[kind], STATUSES[status]] += sign * number

    @property
    def counts(self) -> Counter[Status]:
        """Simulations of this campaign by status: what counts against its budget."""
        counts: Counter[Status] = Counter()
        for (kind, status), number in self._rows.items():
            if kind.spends:
                counts[status] += number
        return counts

    @property
    def spent(self) -> int:
        """Simulations that count against the budget."""
        return self.counts.total()

    @property
    def trainable(self) -> int:
        """Rows that may be trained on."""
        return sum(number for (kind, _), number in self._rows.items() if kind.trains)

    @property
    def valid(self) -> int:
        """Those of them with a result."""
        return sum(n for (kind, status), n in self._rows.items() if kind.trains and status is Status.OK)

    @property
    def own(self) -> Counter[bool]:
        """Those of them that this campaign simulated itself, by whether they succeeded."""
        own: Counter[bool] = Counter()
        for (kind, status), number in self._rows.items():
            if kind.trains and kind.spends:
                own[status is Status.OK] += number
        return own

    def count(self, kind: ProposalKind) -> int:
        """Rows of one kind."""
        return sum(number for (k, _), number in self._rows.items() if k is kind)
