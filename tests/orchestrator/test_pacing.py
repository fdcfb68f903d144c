"""Pacing: numbers in, numbers out. What it does to a campaign is in `test_loop.py` and `test_campaign.py`."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.config_learner import AcquisitionConfig
from orchestrator.pacing import Goal, Pacing
from orchestrator.proposal import ProposalKind
from orchestrator.store import StoreSummary
from orchestrator.tally import Tally
from simulators.outcome import Status

CHEAP, COSTLY = 1e-3, 600.0
GOAL = Goal(target=10_000, initial=100)


def pacing(
    rows: int,
    seconds: float | None,
    goal: Goal = GOAL,
    in_flight: int = 0,
    failed: int = 0,
    growth: float = 1.0,
    spent: float = 0.0,
    **config: Any,
) -> Pacing:
    """Of a campaign with four slots and a trainer that takes a minute, after `rows` simulations of `seconds`."""
    counts = Counter({(ProposalKind.PRIOR, Status.OK): rows - failed, (ProposalKind.PRIOR, Status.RAISED): failed})
    pool: Any = SimpleNamespace(
        slots=4, mean_seconds=seconds, num_pending=in_flight, executor=SimpleNamespace(now=lambda: 50.0)
    )
    trainer: Any = SimpleNamespace(last_seconds=60.0)
    tally = Tally(StoreSummary(counts, learning_seconds=spent))
    return Pacing(pool, trainer, tally, AcquisitionConfig(growth=growth, **config), goal)


@pytest.mark.parametrize("trained", [None, 200])
def test_costly_simulations_are_never_held_back_and_a_model_follows_every_tenth(trained: int | None) -> None:
    pace = pacing(300, COSTLY, in_flight=4)
    assert pace.allowance(trained) is None
    assert pace.room(trained) == 10_000 - 300 - 4
    assert pace.to_train(300, trained)
    assert not pace.to_train(219, 200) and pace.to_train(220, 200)


@pytest.mark.parametrize(
    ("rows", "trained", "growth", "allowed"),
    [
        (0, None, 1.0, 100),  # the first portion
        (60, None, 1.0, 40),
        (100, None, 0.5, 0),
        (200, 200, 1.0, 200),  # as many again
        (250, 200, 0.5, 50),
        (400, 200, 1.0, 0),
        (9000, 8000, 0.25, 1000),  # no update so near the end: the rest at once
    ],
)
def test_cheap_ones_wait_for_the_model(rows: int, trained: int | None, growth: float, allowed: int) -> None:
    assert pacing(rows, CHEAP, growth=growth).allowance(trained) == allowed
    assert pacing(rows, CHEAP, growth=growth, in_flight=30).room(trained) == allowed - 30


def test_what_nobody_learns_from_on_the_way_need_not_wait() -> None:
    assert pacing(500, CHEAP, method="prior").allowance(None) is None


def test_where_too_many_fail_to_train_another_portion_follows() -> None:
    assert pacing(100, CHEAP, failed=20).allowance(None) == 0
    assert pacing(100, CHEAP, failed=90).allowance(None) == 100


def test_a_model_that_is_waited_for_is_trained_once_nothing_runs_any_more() -> None:
    assert not pacing(400, CHEAP, in_flight=3).to_train(400, 200)
    assert not pacing(390, CHEAP).to_train(390, 200)
    assert pacing(400, CHEAP).to_train(400, 200)
    assert not pacing(400, CHEAP).to_train(200, 200), "of nothing new"


def test_what_runs_is_to_be_paid_too() -> None:
    goal = Goal(10_000, 100, seconds=1000.0)
    assert pacing(300, 10.0, goal, spent=900.0, in_flight=4).affordable == 6
    assert pacing(300, None, goal).affordable is None
    pace = pacing(300, 10.0, goal, spent=1000.0)
    assert pace.spent and pace.affordable == 0
    assert pacing(300, 10.0).affordable is None


def test_a_deadline_is_one_of_the_pools_clock() -> None:
    assert pacing(0, None, Goal(100, 10, deadline=49.0)).late
    assert not pacing(0, None, Goal(100, 10, deadline=51.0)).late
    assert not pacing(0, None).late
