"""The peers of the accuracy benchmark run as it calls them: days of measuring must not end with a misspelt name."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, Uniform

from benchmarks.accuracy import nle, npe, problem, simulations
from benchmarks.falcon_arm import _marginals
from simulators import get_task

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


@pytest.mark.parametrize("name", ["two_moons", "gaussian_linear", "lotka_volterra"])
def test_falcon_gets_the_prior_of_the_task(name: str) -> None:
    prior = get_task(name).prior
    marginals, logs = _marginals(prior)
    kinds = {"uniform": Uniform, "normal": Normal}
    theta = prior.sample(torch.Size([5]))
    densities = [kinds[kind](first, second) for kind, first, second in marginals]
    given = theta.log() if logs else theta
    columns = zip(densities, given.unbind(-1), strict=True)
    log_prob = sum(density.log_prob(column) for density, column in columns)
    torch.testing.assert_close(log_prob - (given.sum(dim=-1) if logs else 0.0), prior.log_prob(theta))
