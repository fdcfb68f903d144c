r"""Which simulations a model may be trained on: decided by when they started, never by when they ended.

Whichever runs end first are the fast ones. Where the length of a run depends on what it returns, a model trained on
them would be biased. So a model in the middle of a campaign is trained on the first `c` simulations only, of which all
but a small share have ended,

.. math:: c = \max \{ c : \#\{\text{in flight with id} < c\} \le 0.05\, c \}.

The last training waits for all of them.
"""

from __future__ import annotations

__all__ = ["UNFINISHED_SHARE", "cut"]

import numpy as np

from .proposal import Integers

#: Share of simulations still in flight that may be missing from a training.
UNFINISHED_SHARE = 0.05


def cut(in_flight: Integers, next_id: int) -> tuple[int, int]:
    """The largest `c` of the formula, and how many simulations with an id below it are in flight.

    Arguments:
        in_flight: Ids that have no outcome yet.
        next_id: The first id that is not used: ids are given in the order of starting.
    """
    ids = np.append(np.sort(in_flight), next_id)
    unfinished = np.arange(len(ids))
    allowed = np.flatnonzero(unfinished <= UNFINISHED_SHARE * ids)
    last = int(allowed[-1]) if len(allowed) else 0
    return int(ids[last]), last
