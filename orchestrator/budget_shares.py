"""How the budget is shared out between what is learned from and what checks the posterior."""

from __future__ import annotations

__all__ = ["BudgetShares"]

from .config import CampaignConfig
from .proposal import ProposalKind
from .store import SimulationStore
from .tally import Tally

#: More simulations than anyone runs: what a budget without a number of them allows.
_UNLIMITED = 1 << 40


class BudgetShares:
    """What the budget of a campaign allows, with what was spent so far.

    Arguments:
        config: The budget, and which share of it checks.
        store: Where simulations are.
        tally: How many there are.
        targeted: Whether there is an observation, near which the posterior is checked too.
    """

    def __init__(self, config: CampaignConfig, store: SimulationStore, tally: Tally, targeted: bool) -> None:
        self.config, self.budget = config, config.budget
        self.store, self.tally, self.targeted = store, tally, targeted

    @property
    def calibration(self) -> int:
        """Simulations of each population that checks; without a number in the budget, as many as suit what is there."""
        rows = self.budget.simulations
        return self.config.calibration_size(max(1, self.tally.trainable) if rows is None else rows, self.targeted)

    @property
    def target(self) -> int:
        """Rows to learn from in the end, those from before and what was imported included."""
        if self.budget.simulations is None:
            return _UNLIMITED
        on_prior = self.tally.count(ProposalKind.CALIBRATION_PRIOR)
        near = self.tally.count(ProposalKind.CALIBRATION_TEMPERED)
        reserve = max(0, self.calibration - on_prior) + (self.calibration if self.targeted else 0)
        learned = self.budget.simulations - on_prior - near - reserve + self.tally.count(ProposalKind.IMPORTED)
        return max(learned, self.tally.trainable)

    @property
    def initial(self) -> int:
        """Rows before the first training, unless there are fewer to learn from at all."""
        initial, simulations = self.config.acquisition.initial, self.budget.simulations
        if initial is not None:
            return initial
        return 100 if simulations is None else min(1000, max(100, simulations // 8))

    def missing(self, kind: ProposalKind, since: int = 0) -> int:
        """Simulations that a population which checks still lacks, as far as the budget pays for them.

        Arguments:
            kind: The population.
            since: Only those with this id or a later one count.
        """
        missing = self.calibration - self._count(kind, since)
        if self.budget.simulations is not None:
            missing = min(missing, self.budget.simulations - self.tally.spent)
        return max(0, missing)

    def used_up(self, hours: float, since: int) -> bool:
        """Whether a limit is reached, once the populations that check are whole.

        Arguments:
            hours: Spent on simulating so far.
            since: Simulations near the observation count if they have this id or a later one.
        """
        budget = self.budget
        if budget.hours is not None and hours >= budget.hours:
            return True
        if budget.simulator_hours is not None and self.tally.learning_seconds >= budget.simulator_hours * 3600:
            return True
        if budget.simulations is None:
            return False
        missing = self.calibration - self._count(ProposalKind.CALIBRATION_PRIOR)
        if self.targeted:
            missing += self.calibration - self._count(ProposalKind.CALIBRATION_TEMPERED, since)
        return self.tally.spent + missing >= budget.simulations

    def _count(self, kind: ProposalKind, since: int = 0) -> int:
        return self.tally.count(kind) if not since else self.store.summary(since).by_kind[kind]
