"""A likelihood that is known takes the place of the surrogate."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from problems import LinearGaussian
from scipy import stats
from torch import Tensor

from learners import LearnerOptions, TemperedPosterior
from learners.known import KnownLikelihood
from learners.learner import Learner
from learners.scaling import DataScaling
from learners.whitening import whiten
from simulators.errors import DataError


def test_the_posterior_is_that_of_the_function(linear_gaussian: LinearGaussian, small: LearnerOptions) -> None:
    theta, x = linear_gaussian.draw(5000, seed=1)
    posterior = TemperedPosterior.fit(
        theta, x, linear_gaussian.prior, (0.2, 2.0), small, log_likelihood=linear_gaussian.log_likelihood
    )
    for beta in (0.2, 1.0, 2.0):
        for x_o in (torch.tensor([1.0, -0.5]), torch.tensor([-2.0, 1.5])):
            exact = linear_gaussian.posterior(x_o, beta)
            draws = posterior.sample((4000,), x=x_o, beta=beta, seed=0)
            deviation = exact.covariance_matrix.diagonal().sqrt()
            assert ((draws.mean(dim=0) - exact.mean).abs() < 0.2 * deviation).all()
            torch.testing.assert_close(draws.std(dim=0), deviation, rtol=0.12, atol=0.0)


def test_a_loss_gives_the_generalized_posterior(linear_gaussian: LinearGaussian, small: LearnerOptions) -> None:
    """Half the squared error at beta is a Gaussian likelihood of unit noise."""
    unit = dataclasses.replace(linear_gaussian, noise=torch.ones(2))
    theta, x = linear_gaussian.draw(5000, seed=1)

    def loss(theta: Tensor, x: Tensor) -> Tensor:
        return 0.5 * (x - theta @ linear_gaussian.matrix.double().T).square().sum(dim=-1)

    posterior = TemperedPosterior.fit(theta, x, unit.prior, (0.2, 2.0), small, loss=loss)
    # At beta = 1 too, where pairs of the simulator, which has less noise, would make it narrower.
    for beta in (0.5, 1.0, 2.0):
        for x_o in (torch.tensor([1.0, -0.5]), torch.tensor([-2.0, 1.5])):
            exact = unit.posterior(x_o, beta)
            deviation = exact.covariance_matrix.diagonal().sqrt()
            draws = posterior.sample((4000,), x=x_o, beta=beta, seed=0)
            assert ((draws.mean(dim=0) - exact.mean).abs() < 0.2 * deviation).all()
            torch.testing.assert_close(draws.std(dim=0), deviation, rtol=0.12, atol=0.0)


@pytest.mark.parametrize("argument", ["log_likelihood", "loss"])
def test_the_simulations_only_say_which_x_there_are(
    linear_gaussian: LinearGaussian, tiny: LearnerOptions, argument: str
) -> None:
    """Pairs of another simulator than the function's are nowhere taken for draws of the posterior."""
    learner = Learner(linear_gaussian.prior, (0.5, 2.0), options=tiny, **{argument: lambda t, x: -(t * x).sum(dim=-1)})
    learner.add_prior_draws(*linear_gaussian.draw(200, seed=1))
    learner.fit_surrogate()
    [pairs] = learner._teaching().joint_pairs(tiny.distillation)
    assert pairs.share == 0
    assert len(pairs.z) == 200


def test_it_is_the_function_of_theta_and_x(linear_gaussian: LinearGaussian) -> None:
    theta, x = linear_gaussian.draw(40, seed=2)
    whitening, scaling = whiten(linear_gaussian.prior), DataScaling.fit(x)
    known = KnownLikelihood(lambda t, y: (t * y).sum(dim=-1), whitening, scaling)
    u, z = whitening.to_u(theta).float(), scaling(x)
    table = known.log_prob(u[:, None], z[None])
    assert table.shape == (40, 40)
    torch.testing.assert_close(table, (theta @ x.T).double(), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("constant", [-(2.0**30), 2.0**30])
def test_a_constant_changes_nothing(linear_gaussian: LinearGaussian, tiny: LearnerOptions, constant: float) -> None:
    theta, x = linear_gaussian.draw(200, seed=1)
    found = []
    for offset in (0.0, constant):
        posterior = TemperedPosterior.fit(
            theta,
            x,
            linear_gaussian.prior,
            options=tiny,
            log_likelihood=lambda t, y, offset=offset: linear_gaussian.log_likelihood(t, y) + offset,
        ).set_default_x(torch.tensor([1.0, -0.5]))
        refined = posterior.sample((4000,), seed=0, refine=True)
        found.append(
            (posterior.efficiency(), posterior.sample((500,), seed=0), refined.mean(dim=0), refined.std(dim=0))
        )
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("unit", [1e-12, 1e-4, 1e12])
def test_a_loss_may_be_in_any_unit(linear_gaussian: LinearGaussian, tiny: LearnerOptions, unit: float) -> None:
    unit_noise = dataclasses.replace(linear_gaussian, noise=torch.ones(2))
    x_o = torch.tensor([1.0, -0.5])

    def loss(theta: Tensor, x: Tensor) -> Tensor:
        return unit * (0.5 * (x - theta @ linear_gaussian.matrix.double().T).square().sum(dim=-1) + 1e3)

    learner = Learner(unit_noise.prior, (0.5 / unit, 1 / unit), options=tiny, loss=loss)
    learner.add_prior_draws(*linear_gaussian.draw(200, seed=1))
    learner.fit_surrogate()
    draws, exact = learner.walk(x_o, 1 / unit, 2000), unit_noise.posterior(x_o, 1.0)
    deviation = exact.covariance_matrix.diagonal().sqrt()
    assert ((draws.mean(dim=0) - exact.mean).abs() < 0.15 * deviation).all()
    torch.testing.assert_close(draws.std(dim=0), deviation, rtol=0.12, atol=0.0)


def test_many_counts_need_not_be_centered(tiny: LearnerOptions) -> None:
    """A total of 1e8: its log-likelihood is 1e9 where the posterior is, which single precision knows to 64 nats."""
    total = 1e8
    prior = torch.distributions.Independent(torch.distributions.Uniform(torch.tensor([0.5]), torch.tensor([1.5])), 1)
    theta = prior.sample((200,))
    learner = Learner(
        prior,
        (0.5, 1.0),
        options=tiny,
        log_likelihood=lambda theta, x: (x * (total * theta).log() - total * theta)[:, 0],
    )
    learner.add_prior_draws(theta, torch.poisson(total * theta.double()))
    learner.fit_surrogate()
    draws = learner.walk([total], 1.0, 2000).double()
    assert float(draws.mean()) == pytest.approx(1.0, abs=0.2 * total**-0.5)
    assert float(draws.std()) == pytest.approx(total**-0.5, rel=0.15)


def test_a_function_of_another_shape_is_refused(linear_gaussian: LinearGaussian, tiny: LearnerOptions) -> None:
    theta, x = linear_gaussian.draw(100, seed=1)
    for name in ("log_likelihood", "loss"):
        with pytest.raises(DataError, match=rf"{name}: expected \d+ numbers .* got shape \(\d+, 2\)"):
            TemperedPosterior.fit(theta, x, linear_gaussian.prior, options=tiny, **{name: lambda t, y: t + y})


def test_counts_come_to_the_function_as_whole_numbers(small: LearnerOptions) -> None:
    prior = torch.distributions.Independent(torch.distributions.Uniform(torch.tensor([0.5]), torch.tensor([20.0])), 1)
    theta = prior.sample((3000,))
    # The second is large enough for single precision to leave whole numbers.
    x = torch.cat([torch.poisson(theta), torch.poisson(torch.full_like(theta, 1e6))], dim=1).double()

    def log_likelihood(theta: Tensor, x: Tensor) -> Tensor:
        assert torch.equal(x, x.round())
        return torch.tensor(stats.poisson.logpmf(x[:, 0].numpy(), theta[:, 0].numpy()))

    posterior = TemperedPosterior.fit(theta, x, prior, (0.2, 2.0), small, log_likelihood=log_likelihood)
    grid = torch.linspace(0.5, 20.0, 2000).double()
    for beta in (0.2, 1.0, 2.0):
        weight = torch.softmax(beta * torch.tensor(stats.poisson.logpmf(10.0, grid.numpy())), dim=0)
        mean = weight @ grid
        deviation = (weight @ (grid - mean).square()).sqrt()
        draws = posterior.sample((4000,), x=torch.tensor([10.0, 1e6]), beta=beta, seed=0).double()
        assert abs(draws.mean() - mean) < 0.2 * deviation
        assert float(draws.std()) == pytest.approx(float(deviation), rel=0.15)


def test_a_function_that_is_finite_nowhere_is_an_error(linear_gaussian: LinearGaussian, tiny: LearnerOptions) -> None:
    theta, x = linear_gaussian.draw(200, seed=1)
    with pytest.raises(DataError, match="log_likelihood: expected a finite number for at least one of 200"):
        TemperedPosterior.fit(
            theta, x, linear_gaussian.prior, options=tiny, log_likelihood=lambda t, y: t[:, 0] * 0 - torch.inf
        )
