"""Points to simulate, and what became of them, by columns: the units that travel between all parts."""

from __future__ import annotations

__all__ = ["KINDS", "Finished", "ProposalKind", "Proposals", "row_seeds"]

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from simulators.outcome import Array, Outcomes

Integers = np.ndarray[Any, np.dtype[np.int64]]
Codes = np.ndarray[Any, np.dtype[np.uint8]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


class ProposalKind(enum.StrEnum):
    """How a theta was chosen, as stored in the column `proposal`."""

    PRIOR = "prior"
    SOBOL = "sobol"
    TEMPERED = "tempered"
    ACQUISITION = "acquisition"
    CALIBRATION_PRIOR = "calibration-prior"
    CALIBRATION_TEMPERED = "calibration-tempered"
    IMPORTED = "imported"

    @property
    def trains(self) -> bool:
        """Whether rows of this kind may be trained on."""
        return self not in (ProposalKind.CALIBRATION_PRIOR, ProposalKind.CALIBRATION_TEMPERED)

    @property
    def spends(self) -> bool:
        """Whether rows of this kind were simulated by the campaign, and count against its budget."""
        return self is not ProposalKind.IMPORTED

    @property
    def code(self) -> int:
        """Position in `KINDS`: how columns hold it."""
        return _CODES[self]


KINDS: tuple[ProposalKind, ...] = tuple(ProposalKind)
_CODES = {kind: code for code, kind in enumerate(KINDS)}
_TRAINS = np.array([kind.trains for kind in KINDS])


@dataclass(frozen=True, eq=False)
class Proposals:
    """`n` simulations to be run.

    Attributes:
        id: `(n,)`, unique in the campaign.
        theta: `(n, d)`.
        beta: `(n,)` temperatures that the simulations serve, NaN for prior draws.
        kind: `(n,)` how each theta was chosen, positions in `KINDS`.
        log_density: `(n,)` log density that theta was drawn from, NaN if there is none.
        seed: `(n,)` seeds of the simulations.
    """

    id: Integers
    theta: Array
    beta: Array
    kind: Codes
    log_density: Array
    seed: Integers

    @classmethod
    def of_kind(
        cls,
        first_id: int,
        theta: Array,
        kind: ProposalKind,
        campaign_seed: int,
        log_density: Array | None = None,
        beta: Array | None = None,
    ) -> Proposals:
        """Proposals of one kind with ids from `first_id` on."""
        n = len(theta)
        ids = np.arange(first_id, first_id + n, dtype=np.int64)
        return cls(
            ids,
            np.asarray(theta, dtype=np.float64),
            np.full(n, np.nan) if beta is None else np.asarray(beta, dtype=np.float64),
            np.full(n, kind.code, dtype=np.uint8),
            np.full(n, np.nan) if log_density is None else np.asarray(log_density, dtype=np.float64),
            row_seeds(campaign_seed, ids),
        )

    def numbered(self, first_id: int, campaign_seed: int) -> Proposals:
        """The same with ids from `first_id` on, and their seeds."""
        ids = np.arange(first_id, first_id + len(self), dtype=np.int64)
        return replace(self, id=ids, seed=row_seeds(campaign_seed, ids))

    @classmethod
    def none(cls, dim: int = 0) -> Proposals:
        """No proposals of `dim` parameters."""
        return cls.of_kind(0, np.zeros((0, dim)), ProposalKind.PRIOR, 0)

    @classmethod
    def concatenate(cls, parts: Sequence[Proposals]) -> Proposals:
        """All parts, one after the other."""
        parts = [part for part in parts if len(part)] or list(parts[:1])
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return cls.none()
        return cls(
            np.concatenate([part.id for part in parts]),
            np.concatenate([part.theta for part in parts]),
            np.concatenate([part.beta for part in parts]),
            np.concatenate([part.kind for part in parts]),
            np.concatenate([part.log_density for part in parts]),
            np.concatenate([part.seed for part in parts]),
        )

    @property
    def trains(self) -> Mask:
        """Which may be trained on, `(n,)`."""
        return _TRAINS[self.kind]

    def take(self, rows: np.ndarray[Any, Any] | slice) -> Proposals:
        """Some rows, by a mask, by positions or by a slice."""
        return Proposals(
            self.id[rows], self.theta[rows], self.beta[rows], self.kind[rows], self.log_density[rows], self.seed[rows]
        )

    def __len__(self) -> int:
        return len(self.id)


@dataclass(frozen=True, eq=False)
class Finished:
    """`n` simulations that are accounted for.

    Attributes:
        proposals: What was asked.
        outcomes: What came.
        attempts: `(n,)` how often each was started.
        worker: `(n,)` where each ran, `host:pid`.
    """

    proposals: Proposals
    outcomes: Outcomes
    attempts: Integers
    worker: np.ndarray[Any, np.dtype[np.object_]]

    @classmethod
    def concatenate(cls, parts: Sequence[Finished]) -> Finished:
        """All parts, one after the other."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            Proposals.concatenate([part.proposals for part in parts]),
            Outcomes.concatenate([part.outcomes for part in parts]),
            np.concatenate([part.attempts for part in parts]),
            np.concatenate([part.worker for part in parts]),
        )

    @classmethod
    def none(cls) -> Finished:
        """Nothing."""
        return cls(Proposals.none(), Outcomes.from_rows([]), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=object))

    def take(self, rows: np.ndarray[Any, Any]) -> Finished:
        """Some rows, by a mask or by positions in increasing order."""
        return Finished(self.proposals.take(rows), self.outcomes.take(rows), self.attempts[rows], self.worker[rows])

    def __len__(self) -> int:
        return len(self.proposals)


def row_seeds(campaign_seed: int, ids: Integers) -> Integers:
    """Seeds of simulations `(n,)` in [0, 2^32), reproducible from the campaign's seed and each row's id.

    A bijection of the id for each campaign's seed (the finalizer of MurmurHash3 twice): no two of the first 2^32 rows
    share a seed.
    """
    key = int(np.random.SeedSequence(campaign_seed).generate_state(1)[0])
    return _mix(_mix(ids.astype(np.uint32)) ^ np.uint32(key)).astype(np.int64)


def _mix(h: np.ndarray[Any, np.dtype[np.uint32]]) -> np.ndarray[Any, np.dtype[np.uint32]]:
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
    return h ^ (h >> np.uint32(16))
