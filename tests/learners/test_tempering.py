"""The tempering sampler against posteriors that are known exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from learners.tempered_density import TemperedDensity, ladder_weights
from learners.tempering import TemperedParticles, TemperingOptions, temper

OPTIONS = TemperingOptions(particles=512, moves=8)


def walk(log_likelihood: object, num_x: int, dim: int, low: float = 0.1, high: float = 2.0) -> TemperedParticles:
    generator = torch.Generator().manual_seed(0)
    return temper(log_likelihood, num_x, dim, (low, high), OPTIONS, generator, rungs=(1.0,))  # type: ignore[arg-type]


def at(particles: TemperedParticles, x: int, beta: float) -> Tensor:
    [row] = ((particles.index == x) & (particles.beta - beta).abs().lt(1e-9)).nonzero()[:, 0].tolist()
    return particles.u[row]


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.0])
def test_gaussian_posteriors_of_several_x(beta: float) -> None:
    x = torch.tensor([[0.5, -1.0], [2.0, 0.0], [-3.0, 3.0]])
    particles = walk(lambda u, i: -2 * (u - x[i][:, None]).square().sum(-1), 3, 2)
    variance = 1 / (1 + 4 * beta)
    for row in range(3):
        draws = at(particles, row, beta)
        expected = 4 * beta * variance * x[row]
        assert (draws.mean(dim=0) - expected).abs().max() < 0.2 * variance**0.5
        assert (draws.std(dim=0) / variance**0.5).log().abs().max() < 0.15


def test_four_modes_keep_their_weights() -> None:
    weights = torch.tensor([0.5, 0.3, 0.15, 0.05])  # of the quadrants, at beta = 1

    def quadrant(u: Tensor) -> Tensor:
        return (u > 0).long() @ torch.tensor([1, 2])

    def log_likelihood(u: Tensor, _: Tensor) -> Tensor:
        return -50 * (u.abs() - 1).square().sum(-1) + weights[quadrant(u)].log()

    particles = walk(log_likelihood, 4, 2)
    for beta in (0.1, 1.0, 2.0):
        draws = torch.cat([at(particles, row, beta) for row in range(4)])
        shares = torch.bincount(quadrant(draws), minlength=4) / len(draws)
        expected = weights**beta / (weights**beta).sum()
        assert (shares - expected).abs().max() < 0.05


def test_every_ladder_has_the_rungs_asked_for_and_says_how_it_went() -> None:
    particles = walk(lambda u, i: -10 * u.square().sum(-1) * (1 + i[:, None]), 4, 3)
    for x in range(4):
        betas = particles.beta[particles.index == x]
        for wanted in (0.1, 1.0, 2.0):
            assert (betas - wanted).abs().min() < 1e-9
        assert (betas >= 0.1 - 1e-9).all()
        assert (betas.log().sort().values.diff() <= torch.tensor(1.5**1.5).log() + 1e-6).all()
    assert (particles.ess > 0.5).all()
    assert (particles.acceptance > 0.05).all()


def test_impossible_parameters_are_left() -> None:
    def log_likelihood(u: Tensor, _: Tensor) -> Tensor:
        return torch.where(u[..., 0] > 0, -u.square().sum(-1), torch.nan)

    assert (walk(log_likelihood, 1, 2).u[..., 0] > 0).all()


def test_data_that_next_to_no_parameter_can_make() -> None:
    """All first particles are impossible; those found later are draws of the prior where it is not."""

    def log_likelihood(u: Tensor, _: Tensor) -> Tensor:
        return torch.where((u[..., 0] > 2.5) & (u[..., 1] > 1.5), 0.0, -torch.inf)

    options = TemperingOptions(particles=100, moves=8)
    for seed in range(5):
        found = temper(log_likelihood, 1, 2, (0.1, 1.0), options, torch.Generator().manual_seed(seed))
        draws = found.u[found.beta.argmax()]
        assert (draws[:, 0] > 2.5).all()
        assert (draws[:, 1] > 1.5).all()
        assert float(draws.max()) < 5.5
        assert float(draws[:, 0].mean()) < 3.2  # of the prior beyond 2.5: 2.82


def test_data_that_no_parameter_can_make_end_with_the_prior() -> None:
    found = walk(lambda u, i: torch.full(u.shape[:2], -torch.inf), 1, 2)
    assert float(found.u[-1].std()) == pytest.approx(1.0, abs=0.1)


def test_a_prior_that_is_not_normal() -> None:
    # r(u) turns N(0, 1) into N(1, 0.5^2); the likelihood is flat.
    def ratio(u: Tensor) -> Tensor:
        return (0.5 * u.square() - 2 * (u - 1).square()).sum(-1)

    generator = torch.Generator().manual_seed(0)
    particles = temper(lambda u, i: 0 * u[..., 0], 1, 1, (0.5, 1.0), OPTIONS, generator, ratio)
    draws = particles.u[-1]
    assert float(draws.mean()) == pytest.approx(1, abs=0.1)
    assert float(draws.std()) == pytest.approx(0.5, abs=0.07)


def test_the_density_is_that_of_its_draws_and_log_beta_is_uniform() -> None:
    particles = walk(lambda u, i: -2 * u.square().sum(-1), 2, 1)
    generator = torch.Generator().manual_seed(0)
    density = TemperedDensity.from_particles(particles, 1000, generator)
    u, beta, row = density.sample(5000, generator)
    assert set(row.tolist()) == {0, 1}
    grid = torch.linspace(-6, 6, 4001)[:, None]
    p = density.log_prob(grid).exp()
    assert float(p.sum() * 12 / 4000) == pytest.approx(1, abs=1e-3)
    assert float((p * grid[:, 0] ** 2).sum() * 12 / 4000) == pytest.approx(float(u.square().mean()), rel=0.1)
    low, high = torch.tensor([0.1, 2.0]).log()
    position = (beta.log() - low) / (high - low)
    assert float(position.mean()) == pytest.approx(0.5, abs=0.05)
    assert float(ladder_weights(particles).sum()) == pytest.approx(2, abs=1e-4)
