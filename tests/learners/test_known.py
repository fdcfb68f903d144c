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
from learners.whitening_choice import whiten
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
    whitening = whiten(linear_gaussian.prior)
    known = KnownLikelihood(lambda t, y: (t * y).sum(dim=-1), whitening)
    table = known.log_prob(whitening.to_u(theta).float()[:, None], x[None])
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
    # Scaled data in single precision would leave the second no whole numbers.
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


@pytest.mark.parametrize("targeted", [False, True])
def test_the_function_gets_x_as_it_is(tiny: LearnerOptions, targeted: bool) -> None:
    """In training, walking and refining: not what single precision leaves of it."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(300, 2, generator=generator).double()
    x = torch.cat([theta.clamp(min=0.0), 1e5 * torch.randn(300, 1, generator=generator).double().exp()], dim=1)
    x_o = torch.tensor([[0.0, 0.1, 1e5 + 0.01], [0.7, 0.0, 2e5 / 3]], dtype=torch.float64)
    there = {tuple(row) for row in torch.cat([x, x_o]).tolist()}

    def log_likelihood(theta: Tensor, x: Tensor) -> Tensor:
        assert {tuple(row) for row in x.unique(dim=0).tolist()} <= there
        return -(theta - x[:, :2]).square().sum(dim=-1)

    prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    learner = Learner(prior, (0.5, 2.0), x_o if targeted else None, tiny, log_likelihood=log_likelihood)
    learner.add_prior_draws(theta, x)
    learner.fit_surrogate()
    learner.fit_posterior()
    assert learner.walk(x_o[0], 1.0, 5).shape == (5, 2)
    posterior = learner.posterior().set_default_x(x_o[0])
    assert posterior.sample((5,), refine=True).shape == (5, 2)
    assert posterior.sample_batched((5,), torch.cat([x_o[:1], x[:1]]), refine=True).shape == (5, 2, 2)
    assert posterior.efficiency(x[:1]) > 0


def test_zeros_that_are_inflated(small: LearnerOptions) -> None:
    """x is zero with probability theta, else log-normal: theta given x is Beta(2, 1) or Beta(1, 2) at beta = 1."""
    prior = torch.distributions.Independent(torch.distributions.Uniform(torch.zeros(1), torch.ones(1)), 1)
    generator = torch.Generator().manual_seed(0)
    theta = torch.rand(1000, 1, generator=generator)
    x = torch.randn(1000, 1, generator=generator).exp().where(torch.rand(1000, 1, generator=generator) > theta, 0.0)

    def log_likelihood(theta: Tensor, x: Tensor) -> Tensor:
        return torch.where(x == 0, theta.log(), (-theta).log1p())[:, 0]

    less = dataclasses.replace(small, distillation=dataclasses.replace(small.distillation, pairs=10_000))
    posterior = TemperedPosterior.fit(theta, x, prior, (0.5, 2.0), less, log_likelihood=log_likelihood)
    for x_o, mean in ((0.0, 2 / 3), (1.0, 1 / 3)):
        for refine in (False, True):
            draws = posterior.sample((4000,), x=[x_o], seed=0, refine=refine)
            assert float(draws.mean()) == pytest.approx(mean, abs=0.05)


def test_x_far_in_a_tail_keeps_its_digits(tiny: LearnerOptions) -> None:
    sigma, x_o = 0.01, 1e5 + 0.003
    prior = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(1), torch.ones(1)), 1)
    learner = Learner(
        prior,
        (0.5, 1.0),
        options=tiny,
        log_likelihood=lambda theta, x: -0.5 * ((x - 1e5 * (x > 5e4) - theta) / sigma).square()[:, 0],
    )
    theta = torch.randn(300, 1, generator=torch.Generator().manual_seed(0))
    learner.add_prior_draws(theta, theta)
    learner.fit_surrogate()
    assert float(learner.walk([x_o], 1.0, 2000).mean()) == pytest.approx(0.003, abs=0.1 * sigma)


def test_few_draws_are_as_good_as_many(tiny: LearnerOptions) -> None:
    """As many particles walk for them: five do not find their way in ten dimensions."""
    dim, sigma = 10, 0.1
    prior = torch.distributions.MultivariateNormal(torch.zeros(dim), torch.eye(dim))
    options = dataclasses.replace(tiny, focus=LearnerOptions().focus)
    learner = Learner(
        prior, (0.5, 1.0), options=options, log_likelihood=lambda t, x: -0.5 * ((x - t) / sigma).square().sum(dim=-1)
    )
    theta = torch.randn(100, dim, generator=torch.Generator().manual_seed(0))
    learner.add_prior_draws(theta, theta)
    learner.fit_surrogate()
    draws = torch.cat([learner.walk(torch.ones(dim), 1.0, 5) for _ in range(10)])
    off = (draws - 1 / (1 + sigma**2)) * (1 + sigma**-2) ** 0.5
    assert abs(float(off.mean())) < 0.3
    assert 0.7 < float(off.square().mean()) < 1.4


def test_a_function_that_is_finite_nowhere_is_an_error(linear_gaussian: LinearGaussian, tiny: LearnerOptions) -> None:
    theta, x = linear_gaussian.draw(200, seed=1)
    with pytest.raises(DataError, match="log_likelihood: expected a finite number for at least one of 200"):
        TemperedPosterior.fit(
            theta, x, linear_gaussian.prior, options=tiny, log_likelihood=lambda t, y: t[:, 0] * 0 - torch.inf
        )
