"""What of a budget is learned from, and what checks: numbers in, numbers out."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from orchestrator.budget_shares import BudgetShares
from orchestrator.config_reading import validate_config
from orchestrator.proposal import ProposalKind
from orchestrator.store import StoreSummary
from orchestrator.tally import Tally
from simulators.outcome import Status

PRIOR, NEAR = ProposalKind.CALIBRATION_PRIOR, ProposalKind.CALIBRATION_TEMPERED


class Store:
    """Holds this many simulations near the observation with a late id, for the one question that is asked."""

    def __init__(self, late: int) -> None:
        self.late = late

    def summary(self, since: int) -> StoreSummary:
        assert since == 500
        return StoreSummary(Counter({(NEAR, Status.OK): self.late}))


def shares(
    rows: dict[ProposalKind, int], targeted: bool = True, late: int = 0, seconds: float = 0.0, **config: Any
) -> BudgetShares:
    values = {"simulator": {"task": "two_moons"}, "budget": {"simulations": 1000}, **config}
    store: Any = Store(late)
    counts = Counter({(kind, Status.OK): n for kind, n in rows.items()})
    tally = Tally(StoreSummary(counts, learning_seconds=seconds))
    return BudgetShares(validate_config(values, "test"), store, tally, targeted)


def test_what_checks_is_left_out_of_what_is_learned_from() -> None:
    fresh = shares({})
    assert fresh.calibration > 0
    assert fresh.target == 1000 - 2 * fresh.calibration
    assert shares({}, targeted=False).target == 1000 - shares({}, targeted=False).calibration


def test_what_was_kept_before_is_not_kept_twice_and_imports_come_on_top() -> None:
    size = shares({}).calibration
    assert shares({PRIOR: size}).target == 1000 - 2 * size
    # Those near an earlier observation check nothing any more, but were paid for.
    assert shares({PRIOR: size, NEAR: 7}).target == 1000 - 2 * size - 7
    assert shares({ProposalKind.IMPORTED: 50}).target == 1050 - 2 * size


def test_a_lowered_budget_takes_nothing_away() -> None:
    assert shares({ProposalKind.PRIOR: 1500}).target == 1500
    assert shares({ProposalKind.PRIOR: 1500}).missing(PRIOR) == 0


def test_a_population_is_as_large_as_the_budget_still_pays_for() -> None:
    size = shares({}).calibration
    assert shares({ProposalKind.PRIOR: 500, PRIOR: size - 20}).missing(PRIOR) == 20
    assert shares({ProposalKind.PRIOR: 995 - (size - 20), PRIOR: size - 20}).missing(PRIOR) == 5
    assert shares({NEAR: 30}, late=size - 1).missing(NEAR, since=500) == 1


def test_without_a_number_of_simulations_what_is_there_decides() -> None:
    hours = {"budget": {"hours": 1.0}}
    assert shares({}, **hours).calibration == 0
    assert shares({ProposalKind.PRIOR: 1000}, **hours).calibration == shares({}).calibration
    assert shares({ProposalKind.PRIOR: 1000}, **hours).missing(PRIOR) == shares({}).calibration
    assert shares({}, **hours).target > 10**9


@pytest.mark.parametrize(("simulations", "initial"), [(200, 100), (4000, 500), (100_000, 1000)])
def test_an_eighth_comes_before_the_first_training(simulations: int, initial: int) -> None:
    assert shares({}, budget={"simulations": simulations}).initial == initial
    assert shares({}, budget={"simulations": simulations}, acquisition={"initial": 64}).initial == 64


def test_a_budget_is_used_up_once_only_checks_are_missing() -> None:
    size = shares({}).calibration
    assert not shares({ProposalKind.PRIOR: 999 - 2 * size}).used_up(0.0, since=0)
    assert shares({ProposalKind.PRIOR: 1000 - 2 * size}).used_up(0.0, since=0)
    hours = {"budget": {"hours": 2.0}}
    assert not shares({}, **hours).used_up(1.9, since=0)
    assert shares({}, **hours).used_up(2.0, since=0)
    paid = {"budget": {"simulator_hours": 1.0}}
    assert not shares({}, seconds=3599.0, **paid).used_up(9.0, since=0)
    assert shares({}, seconds=3600.0, **paid).used_up(0.0, since=0)
