"""Whether a simulator still works: what this process has seen of successes and failures."""

from __future__ import annotations

__all__ = ["Successes"]

from collections import Counter

import numpy as np

from simulators.errors import DataError
from simulators.outcome import STATUSES

from .proposal import Finished

#: Failures in a row that are no chance, for each of the simulations of which one succeeded so far.
_NO_CHANCE = 50


class Successes:
    """Simulations of one process: after mending, the same command must have a chance.

    Attributes:
        ended: How many, by whether they succeeded.
        reasons: Failures by status and reason.
    """

    def __init__(self) -> None:
        self.ended: Counter[bool] = Counter()
        self.reasons: Counter[str] = Counter()
        self._in_a_row: Counter[str] = Counter()

    def add(self, rows: Finished) -> None:
        """Accounts for finished simulations, in the order in which they ended."""
        ok, outcomes = rows.outcomes.ok, rows.outcomes
        self.ended.update({True: int(ok.sum()), False: int((~ok).sum())})
        if ok.any():
            self._in_a_row.clear()
        since = int(np.flatnonzero(ok)[-1]) if ok.any() else -1
        for row in np.flatnonzero(~ok).tolist():
            reason = f"{STATUSES[outcomes.status[row]]}: {outcomes.reasons.get(row, '')}"
            self.reasons[reason] += 1
            if row > since:
                self._in_a_row[reason] += 1

    def check(self, initial: int, rows: int, succeeded: int, store: str) -> None:
        """Whether the rest of the budget is worth it.

        Arguments:
            initial: So many failures in a row end it; more where failing is in the simulator's nature, for then there
                are long series of failures now and then.
            rows, succeeded: All simulations of the campaign so far, and those of them that succeeded.
            store: Where they are, for the message.

        Raises:
            DataError: It is not.
        """
        failed = self._in_a_row.total()
        if failed < max(1, initial) or (succeeded and failed < _NO_CHANCE * (rows - failed) / succeeded):
            return
        [(reason, number)] = self._in_a_row.most_common(1)
        raise DataError(
            f"none of the last {failed} simulations succeeded, {number} of them with '{reason}'; mend the simulator "
            f"and run again. All are kept in {store}"
        )
