"""The regressed cost: the mean of a user's distance, and the generalized posterior of it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from problems import LinearGaussian
from torch import Tensor

from learners import LearnerOptions, TemperedPosterior
from learners.cost import _divergence
from learners.learner import Learner
from simulators.errors import DataError

X_O = torch.tensor([1.0, -0.5])


def squared(x: Tensor, x_o: Tensor) -> Tensor:
    return (x - x_o).square().sum(dim=-1)


@pytest.fixture(scope="module")
def trained(linear_gaussian: LinearGaussian, paired: LearnerOptions) -> tuple[Learner, TemperedPosterior]:
    learner = Learner(linear_gaussian.prior, (0.3, 2.0), options=paired, source="cost", distance=squared)
    learner.add_prior_draws(*linear_gaussian.draw(2000, seed=1))
    learner.fit_surrogate()
    learner.fit_posterior()
    return learner, learner.posterior()


def test_a_quadratic_distance_has_its_closed_form(
    trained: tuple[Learner, TemperedPosterior], linear_gaussian: LinearGaussian
) -> None:
    """`E |x - x_o|^2 = |A theta - x_o|^2 + tr Sigma`."""
    learner, _ = trained
    assert learner.source is not None
    theta, _ = linear_gaussian.draw(400, seed=7)
    exact = squared(theta @ linear_gaussian.matrix.T, X_O) + linear_gaussian.noise.square().sum()
    u, z = learner.whitening.to_u(theta).float(), learner.features(X_O.double())
    with torch.no_grad():
        cost = -learner.source.log_prob(u, z)
    low = exact < 12
    assert low.sum() > 100
    assert float((cost - exact)[low].abs().median()) < 0.25
    assert float(((cost - exact).abs() / exact).median()) < 0.05


@pytest.mark.parametrize("beta", [0.3, 1.0, 2.0])
def test_the_generalized_posterior(
    trained: tuple[Learner, TemperedPosterior], linear_gaussian: LinearGaussian, beta: float
) -> None:
    """That of a Gaussian whose variance is a half, at beta = 1 too: joint pairs of the simulator are no draws of it."""
    like = dataclasses.replace(linear_gaussian, noise=torch.full((2,), math.sqrt(0.5)))
    for x_o in (X_O, torch.tensor([-2.0, 1.5])):
        exact = like.posterior(x_o, beta)
        deviation = exact.covariance_matrix.diagonal().sqrt()
        draws = trained[1].sample((4000,), x=x_o, beta=beta, seed=0)
        assert ((draws.mean(dim=0) - exact.mean).abs() < 0.25 * deviation).all()
        assert (draws.std(dim=0) / deviation).log().abs().max() < 0.15


def test_a_sharp_distance_is_not_widened_by_pairs_of_the_simulator(
    linear_gaussian: LinearGaussian, paired: LearnerOptions
) -> None:
    learner = Learner(
        linear_gaussian.prior, (0.3, 2.0), X_O, paired, source="cost", distance=lambda x, x_o: 5 * squared(x, x_o)
    )
    learner.add_prior_draws(*linear_gaussian.draw(2000, seed=1))
    learner.fit_surrogate()
    learner.fit_posterior()
    exact = dataclasses.replace(linear_gaussian, noise=torch.full((2,), math.sqrt(0.1))).posterior(X_O, 1.0)
    deviation = exact.covariance_matrix.diagonal().sqrt()
    draws = learner.posterior().sample((4000,), beta=1.0, seed=0)
    assert ((draws.mean(dim=0) - exact.mean).abs() < 0.35 * deviation).all()
    assert (draws.std(dim=0) / deviation).log().abs().max() < 0.2


def test_the_minimum_of_the_divergence_is_the_mean() -> None:
    t = torch.tensor([-2.0, -0.5, 0.0, 1.0, 30.0])
    guess = torch.linspace(-3, 20, 2301)
    loss = torch.stack([_divergence(t, torch.full_like(t, float(h))).mean() for h in guess])
    assert float(guess[loss.argmin()]) == pytest.approx(float(t.mean()), abs=0.011)
    assert (_divergence(t, t).abs() < 1e-5).all()
    assert (loss >= 0).all()


def test_costs_may_be_negative_and_all_alike(linear_gaussian: LinearGaussian, tiny: LearnerOptions) -> None:
    theta, x = linear_gaussian.draw(200, seed=1)
    for distance in (lambda a, b: squared(a, b) - 1000.0, lambda a, b: torch.zeros(len(a))):
        posterior = TemperedPosterior.fit(
            theta, x, linear_gaussian.prior, options=tiny, source="cost", distance=distance
        )
        assert posterior.sample((50,), x=X_O, beta=0.5).isfinite().all()


@pytest.mark.parametrize(
    ("distance", "message"),
    [
        (lambda a, b: a - b, r"distance: expected \d+ numbers for two arrays of shape .* got shape \(\d+, 2\)"),
        (lambda a, b: squared(a, b).mean(), r"distance: expected \d+ numbers .* got shape \(\)"),
        (lambda a, b: squared(a, b) * math.nan, r"distance: expected finite numbers, but \d+ of \d+ are NaN"),
        (lambda a, b: squared(a, b) / 0, "return a large number"),
    ],
)
def test_an_unusable_distance_is_explained(
    linear_gaussian: LinearGaussian, tiny: LearnerOptions, distance: object, message: str
) -> None:
    theta, x = linear_gaussian.draw(100, seed=1)
    with pytest.raises(DataError, match=message):
        TemperedPosterior.fit(
            theta,
            x,
            linear_gaussian.prior,
            options=tiny,
            source="cost",
            distance=distance,  # type: ignore[arg-type]
        )
