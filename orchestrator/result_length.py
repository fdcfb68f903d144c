"""How many numbers every x of a campaign has, and what becomes of results that have others.

One odd result must not decide: it is the observation that says how long x is, or what is stored, else what the first
results agree on. What cannot be judged yet is held back: the store has results of one length only.
"""

from __future__ import annotations

__all__ = ["ResultLength"]

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from simulators.errors import DataError, ObservationError, TemperflowError
from simulators.outcome import Status

from .observation import check_length
from .proposal import Finished

logger = logging.getLogger(__name__)

#: Results that must agree where nothing else tells the length. What is held back is lost with this process: few.
_AGREEING = 3
#: Results of another length than the stored ones, none of the same, that are no accident.
_NO_ACCIDENT = 20


class ResultLength:
    """The length of x, and the results that wait for it.

    Arguments:
        stored: Length of the results in the store, None if there are none.
        observed: Length of the observation, None of an amortized campaign.
        store: Where the store is, for messages.

    Attributes:
        value: The length, None while it is not known.
        held: Results that are held back, as they will most likely be judged.

    Raises:
        ObservationError: The two lengths differ.
    """

    def __init__(self, stored: int | None, observed: int | None, store: str) -> None:
        check_length(observed, stored, store)
        self.value = observed if stored is None else stored
        self.held = Finished.none()
        self._stored, self._observed, self._store = stored is not None, observed, store
        self._met = False  # Whether a result of this process had that length.
        self._waiting: list[Finished] = []
        self._others: Counter[int] = Counter()

    def admit(self, rows: Finished) -> Finished:
        """What may be stored, of finished rows and of those held back before: results of other lengths are failures."""
        results, lengths = rows.outcomes.ok, rows.outcomes.lengths
        others = lengths[results & (lengths != self.value)]
        self._others.update(others.tolist())
        if not self._met and self.value is not None and len(others) < results.sum():
            return self._decide(self.value, [rows])
        if self._met or self._stored:
            return self._judged(rows)
        if self.value is not None and len(others) and not self._waiting:
            logger.warning(
                "the observation has %d numbers, but the first simulation returned %d: if none returns as many as the "
                "observation has, the campaign will end",
                self.value,
                others[0],
            )
        self._waiting += [rows.take(results)] if results.any() else []
        rows = rows.take(~results)
        if self.value is None and self._others.total():
            [(length, number)] = self._others.most_common(1)
            if number >= _AGREEING:
                return self._decide(length, [rows])
        self.held = self._judged(Finished.concatenate(self._waiting)) if self._waiting else Finished.none()
        return rows

    def verdict(self, final: bool) -> tuple[Finished, TemperflowError | None]:
        """What may be stored now, and what the user must mend, if the results so far show that.

        Where all have one other length than the observation, they are stored as they came: it may be that which is
        wrong, and they are of use for another.

        Arguments:
            final: Whether so many have ended that the others would hardly be better, or no others are awaited.
        """
        [(returned, number)] = self._others.most_common(1) or [(0, 0)]
        alike = len(self._others) == 1
        if self._met:
            return Finished.none(), None
        if self._stored:
            return Finished.none(), self._misfit(returned) if alike and number >= _NO_ACCIDENT else None
        if not self._waiting or not final:
            return Finished.none(), None
        if self.value is None:
            return self._decide(returned), None
        if not alike:  # Nobody knows which length is meant.
            self._stored = True
            return self._judged(self._released()), None
        try:
            check_length(self.value, returned, self._store)
        except ObservationError as error:
            return self._released(), error
        raise AssertionError("results of the right length are not held back")

    def close(self) -> Finished:
        """What may be stored at an early end. Results that do not fit the observation will be simulated again."""
        return Finished.none() if self.value is not None else self.verdict(final=True)[0]

    def _misfit(self, returned: int) -> DataError:
        return DataError(
            f"the simulator returned {returned} numbers each time, but the x in {self._store}, imported or simulated "
            f"before, have {self.value}; mend the simulator and run again, or choose another --dir for x of {returned} "
            "numbers"
        )

    def _decide(self, length: int, rows: Sequence[Finished] = ()) -> Finished:
        self.value, self._met = length, True
        return self._judged(Finished.concatenate([self._released(), *rows]))

    def _released(self) -> Finished:
        rows, self._waiting = self._waiting, []
        self.held = Finished.none()
        return Finished.concatenate(rows) if rows else self.held

    def _judged(self, rows: Finished) -> Finished:
        lengths = rows.outcomes.lengths
        wrong = rows.outcomes.ok & (lengths != self.value)
        if self.value is None or not wrong.any():
            return rows
        has = "earlier simulations returned" if self._observed is None else "the observation has"
        reasons = {int(i): f"returned {int(lengths[i])} numbers, but {has} {self.value}" for i in np.flatnonzero(wrong)}
        return replace(rows, outcomes=rows.outcomes.failing(wrong, Status.WRONG_SHAPE, reasons))
