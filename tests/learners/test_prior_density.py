"""The prior as a density of proposals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import distributions as D

from learners.prior_density import PriorDensity
from learners.whitening_choice import whiten

PRIORS = {
    "normal": D.MultivariateNormal(torch.tensor([1.0, -2.0]), torch.tensor([[2.0, 0.5], [0.5, 1.0]])),
    "uniform": D.Independent(D.Uniform(torch.tensor([0.0, -1.0]), torch.tensor([1.0, 3.0])), 1),
    # No whitening is exact for a mixture.
    "mixture": D.MixtureSameFamily(
        D.Categorical(torch.ones(2)),
        D.Independent(D.Normal(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), torch.ones(2, 2)), 1),
    ),
}


@pytest.mark.parametrize("name", PRIORS)
def test_theta_follows_the_prior_and_its_density_is_known(name: str) -> None:
    prior = PRIORS[name]
    whitening = whiten(prior)
    density = PriorDensity(prior, whitening, (0.1, 2.0))
    u, _, _ = density.sample(4000, torch.Generator().manual_seed(0))
    theta = whitening.to_theta(u)
    expected = prior.sample(torch.Size([4000]))
    torch.testing.assert_close(theta.float().mean(dim=0), expected.mean(dim=0), atol=0.15, rtol=0.0)
    torch.testing.assert_close(theta.float().std(dim=0), expected.std(dim=0), atol=0.1, rtol=0.0)
    log_prob = density.log_prob(u).double() + whitening.log_abs_det(theta)
    torch.testing.assert_close(log_prob.float(), prior.log_prob(theta.float()), atol=1e-2, rtol=1e-3)


def test_draws_repeat_and_leave_the_global_generator_alone() -> None:
    density = PriorDensity(PRIORS["normal"], whiten(PRIORS["normal"]), (0.1, 2.0))
    before = torch.get_rng_state()
    first, beta, _ = density.sample(1000, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, density.sample(1000, torch.Generator().manual_seed(1))[0])
    position = (beta.log() - math.log(0.1)) / math.log(20)
    assert 0 <= float(position.min()) <= float(position.max()) <= 1
    assert float(position.mean()) == pytest.approx(0.5, abs=0.05)
