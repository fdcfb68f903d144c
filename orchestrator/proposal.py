"""A point to simulate, and what became of it: the unit that travels between all parts."""

from __future__ import annotations

__all__ = ["Finished", "Proposal", "ProposalKind", "row_seed"]

import enum
from dataclasses import dataclass

import numpy as np

from simulators.outcome import Array, Outcome


class ProposalKind(enum.StrEnum):
    """How a theta was chosen, as stored in the column `proposal`."""

    PRIOR = "prior"
    SOBOL = "sobol"
    TEMPERED = "tempered"
    ACQUISITION = "acquisition"
    CALIBRATION_PRIOR = "calibration-prior"
    CALIBRATION_TEMPERED = "calibration-tempered"

    @property
    def trains(self) -> bool:
        """Whether rows of this kind may be trained on."""
        return self not in (ProposalKind.CALIBRATION_PRIOR, ProposalKind.CALIBRATION_TEMPERED)


@dataclass(frozen=True, eq=False)
class Proposal:
    """A simulation to be run.

    Attributes:
        id: Unique in the campaign.
        theta: `(d,)`.
        beta: The temperature that the simulation serves, None for prior draws.
        kind: How theta was chosen.
        log_density: Log density that theta was drawn from, None if there is none.
        seed: Seed of the simulation.
    """

    id: int
    theta: Array
    beta: float | None
    kind: ProposalKind
    log_density: float | None
    seed: int


@dataclass(frozen=True, eq=False)
class Finished:
    """A simulation that is accounted for.

    Attributes:
        proposal: What was asked.
        outcome: What came.
        attempts: How often it was started.
        worker: Where it ran, `host:pid`.
    """

    proposal: Proposal
    outcome: Outcome
    attempts: int
    worker: str


def row_seed(campaign_seed: int, simulation_id: int) -> int:
    """Seed of one simulation, reproducible from the campaign's seed and the row's id."""
    return int(np.random.SeedSequence([campaign_seed, simulation_id]).generate_state(1)[0])
