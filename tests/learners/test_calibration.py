"""SBC accepts a right posterior and rejects a wrong one, over the prior and over a part of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from learners import TemperedPosterior
from learners.calibration import Calibration, sbc_ranks
from learners.known import KnownLikelihood

Build = Callable[..., TemperedPosterior]


def ranks(posterior: TemperedPosterior, population: MultivariateNormal, sigma: float) -> Calibration:
    torch.manual_seed(1)
    theta = population.sample((400,))
    x = theta + sigma * torch.randn(400, 2)
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))

    def log_weight(values: Tensor) -> Tensor:
        return population.log_prob(values.float()) - prior.log_prob(values.float())

    return sbc_ranks(posterior, theta, x, "test", draws=200, log_weight=log_weight)


NARROW = MultivariateNormal(torch.tensor([0.8, -0.5]), 0.3 * torch.eye(2))
PRIOR = MultivariateNormal(torch.zeros(2), torch.eye(2))


@pytest.mark.parametrize("population", [PRIOR, NARROW], ids=["prior", "narrow"])
def test_a_right_posterior_passes(exact_posterior: Build, population: MultivariateNormal) -> None:
    result = ranks(exact_posterior(0.5), population, 0.5)
    assert result.passed
    assert result.ranks.shape == (400, 2)
    assert result.effective_draws > 50


@pytest.mark.parametrize("population", [PRIOR, NARROW], ids=["prior", "narrow"])
@pytest.mark.parametrize("factor", [0.6, 1.6])
def test_a_wrong_width_is_found(exact_posterior: Build, population: MultivariateNormal, factor: float) -> None:
    assert not ranks(exact_posterior(0.5, factor), population, 0.5).passed


def test_refined_draws_of_a_wrong_network_pass(exact_posterior: Build) -> None:
    """The source is right; so are draws that it corrects."""
    wrong = exact_posterior(0.5, 0.6)

    def log_likelihood(theta: Tensor, x: Tensor) -> Tensor:
        return -2 * (x - theta).square().sum(dim=-1)

    wrong.source = KnownLikelihood(log_likelihood, wrong.whitening)
    torch.manual_seed(1)
    theta = PRIOR.sample((200,))
    x = theta + 0.5 * torch.randn(200, 2)
    assert not sbc_ranks(wrong, theta, x, "test").passed
    assert sbc_ranks(wrong, theta, x, "test", refine=True).passed


def test_without_weights_the_ranks_of_a_part_are_not_uniform(exact_posterior: Build) -> None:
    torch.manual_seed(1)
    theta = NARROW.sample((400,))
    result = sbc_ranks(exact_posterior(2.0), theta, theta + 2 * torch.randn(400, 2), "test")
    assert not result.passed
