"""The peers of the accuracy benchmark run as it calls them: days of measuring must not end with a misspelt name."""

from __future__ import annotations

import pytest
import torch

from benchmarks.accuracy import nle, npe, problem, simulations

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.accuracy.DRAWS", 20)


def test_npe_answers_at_beta_1_and_nowhere_else() -> None:
    task = problem("two_moons")
    fitted = npe(task, *simulations(task, 60, seed=1), seed=1)
    draws = fitted.draw(torch.zeros(2), 1.0)
    assert draws is not None and draws.shape == (20, 2)
    assert fitted.draw(torch.zeros(2), 0.5) is None


def test_nle_is_fitted() -> None:
    task = problem("two_moons")
    # Its chains, which take a minute, are left out.
    assert nle(task, *simulations(task, 60, seed=1), seed=1).fit_seconds > 0
