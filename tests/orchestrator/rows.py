"""Rows for the tests of the store."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orchestrator.proposal import Finished, ProposalKind, Proposals
from simulators.outcome import Outcome, Outcomes, Status


def finished(
    ids: Sequence[int], failing: Sequence[int] = (), kind: ProposalKind = ProposalKind.PRIOR, worker: str = "host:1"
) -> Finished:
    """Rows with these ids: theta is `(id, 0.5)` and x `(id, 2 id)`, except for those that fail."""
    n = len(ids)
    one = Proposals.of_kind(0, np.zeros((n, 2)), kind, 7)
    proposals = Proposals(
        np.array(ids, dtype=np.int64),
        np.array([[i, 0.5] for i in ids], dtype=np.float64).reshape(n, 2),
        np.array([np.nan if i % 2 else 0.3 for i in ids]),
        one.kind,
        np.array([-1.0 if i % 3 else np.nan for i in ids]),
        np.array(ids, dtype=np.int64) + 100,
    )
    outcomes = Outcomes.from_rows(
        [
            Outcome(Status.TIMEOUT, None, "too slow", 1.7e9 + i, 2.0)
            if i in failing
            else Outcome(Status.OK, np.array([i, 2.0 * i]), "", 1.7e9 + i, 0.5)
            for i in ids
        ]
    )
    return Finished(proposals, outcomes, np.ones(n, dtype=np.int64), np.full(n, worker, dtype=object))
