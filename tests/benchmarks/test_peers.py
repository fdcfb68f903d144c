"""The peers of the accuracy benchmark run as it calls them: days of measuring must not end with a misspelt name."""

from __future__ import annotations

from functools import partial

import pytest
import sbi.inference
import sbi.utils
import torch
from torch.distributions import Normal, Uniform

from benchmarks.falcon_arm import _marginals
from benchmarks.problem import problem, simulations
from benchmarks.sbi_arms import nle, npe, tsnpe
from simulators import get_task

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.sbi_arms.DRAWS", 20)


@pytest.mark.parametrize(("name", "d"), [("two_moons", 2), ("sir", 2), ("hudson_bay", 8)])
def test_npe_answers_at_beta_1_and_nowhere_else(name: str, d: int) -> None:
    task = problem(name)
    theta, x = simulations(task, 60, seed=1)
    fitted = npe(task, theta, x, seed=1)
    draws = fitted.draw(x[0], 1.0)
    assert draws is not None and draws.shape == (20, d)
    assert task.prior.log_prob(draws).isfinite().all()  # also where it learned log theta: positive
    assert fitted.draw(x[0], 0.5) is None


@pytest.mark.parametrize("name", ["two_moons", "sir"])
def test_nle_draws_at_every_beta(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    short = partial(sbi.inference.MCMCPosterior, num_chains=4, warmup_steps=2)
    monkeypatch.setattr(sbi.inference, "MCMCPosterior", short)
    task = problem(name)
    theta, x = simulations(task, 60, seed=1)
    draws = nle(task, theta, x, seed=1).draw(x[0], 0.5)
    assert draws is not None and draws.shape == (20, 2)
    assert task.prior.log_prob(draws).isfinite().all()


@pytest.mark.parametrize("name", ["two_moons", "sir"])
def test_tsnpe_answers_at_beta_1_and_nowhere_else(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = partial(sbi.utils.get_density_thresholder, num_samples_to_estimate_support=1000)
    monkeypatch.setattr(sbi.utils, "get_density_thresholder", quick)
    task = problem(name)
    x_o = simulations(task, 1, seed=2)[1][0]
    fitted = tsnpe(task, x_o, budget=80, seed=1)
    draws = fitted.draw(x_o, 1.0)
    assert draws is not None and draws.shape == (20, 2)
    assert task.prior.log_prob(draws).isfinite().all()
    assert fitted.draw(x_o, 0.5) is None


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
