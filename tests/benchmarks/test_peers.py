"""The peers of the accuracy benchmark run as it calls them: days of measuring must not end with a misspelt name."""

from __future__ import annotations

import pytest
import torch

from benchmarks.accuracy import DRAWS, npe, problem, simulations


@pytest.mark.filterwarnings("ignore")
def test_npe_answers_at_beta_1_and_nowhere_else() -> None:
    task = problem("two_moons")
    theta, x = simulations(task, 60, seed=1)
    fitted = npe(task, theta, x, seed=1)
    draws = fitted.draw(torch.zeros(2), 1.0)
    assert draws is not None and draws.shape == (DRAWS, 2)
    assert fitted.draw(torch.zeros(2), 0.5) is None
