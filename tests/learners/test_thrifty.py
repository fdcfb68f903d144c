"""Proposals in favour of what is cheap: their density is known, and they pay."""

from __future__ import annotations

import math

import pytest
import torch
from problems import Triangle

from learners.prior_density import PriorDensity
from learners.runtime import Runtime
from learners.tempered_density import TemperedDensity
from learners.thrifty import ThriftyDensity
from learners.validity import Validity
from learners.whitening_choice import whiten

NORMAL = whiten(torch.distributions.MultivariateNormal(torch.zeros(1), torch.eye(1)))


def standard_normal() -> TemperedDensity:
    """One center with a kernel of width 1: `g(u) = N(u; 0, 1)`."""
    zero = torch.zeros(1)
    return TemperedDensity(zero[:, None], zero + 1.0, zero.long(), zero.long(), torch.ones(1, 1, 1))


def exponential(slope: float) -> Runtime:
    """`E[t | u] = exp(slope u)` between 1/1000 and 1000 seconds."""
    return Runtime(torch.tensor([0.0, slope, 0.0], dtype=torch.float64), 0.0, 1e-3, 1e3)


def thrifty(slope: float) -> ThriftyDensity:
    return ThriftyDensity.of(standard_normal(), exponential(slope), None, NORMAL, torch.Generator().manual_seed(0))


GRID = torch.linspace(-8, 8, 8001)[:, None]
STEP = 16 / 8000


@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0, 3.0])
def test_the_density_is_that_of_its_draws(slope: float) -> None:
    density = thrifty(slope)
    p = density.log_prob(GRID).exp()
    assert float(p.sum() * STEP) == pytest.approx(1, abs=0.02)
    u, beta, row = density.sample(20_000, torch.Generator().manual_seed(1))
    assert u.shape == (20_000, 1)
    assert beta.shape == row.shape == (20_000,)
    for moment in (1, 2):
        assert float((p * GRID[:, 0] ** moment).sum() * STEP) == pytest.approx(float((u**moment).mean()), abs=0.04)


def test_alike_times_change_nothing() -> None:
    torch.testing.assert_close(thrifty(0.0).log_prob(GRID), standard_normal().log_prob(GRID))


def test_where_time_is_exponential_the_draws_are_shifted_by_half_the_slope() -> None:
    # N(u; 0, 1) exp(-u / 4) is N(u; -1/4, 1), but for the few draws that are as cheap as can be.
    u, _, _ = thrifty(0.5).sample(20_000, torch.Generator().manual_seed(1))
    assert float(u.mean()) == pytest.approx(-0.25, abs=0.03)
    assert float(u.std()) == pytest.approx(1.0, abs=0.03)


def test_nothing_is_cheaper_than_a_fifth_of_the_mean() -> None:
    # Times of exp(3 u): the mean is nearly that of the longest, a thousand seconds, and half take less than one.
    density = thrifty(3.0)
    mean = float(density.runtime.expected(torch.randn(50_000, 1, generator=torch.Generator().manual_seed(1))).mean())
    assert density.floor == pytest.approx(0.2 * mean, rel=0.1)
    cheap = GRID[density.runtime.expected(GRID) < 0.15 * mean]
    ratio = density.log_prob(cheap) - standard_normal().log_prob(cheap)
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))


def test_a_given_time_pays_for_a_smaller_error() -> None:
    # With n = N h near u, the error is the mean of 1 / n over g; its product with the time is what is minimized.
    runtime, g = exponential(1.0), standard_normal().log_prob(GRID).exp()
    seconds = runtime.expected(GRID)

    def error_times_time(h: torch.Tensor) -> float:
        return float((g.square() / h).sum() * (h * seconds).sum() * STEP**2)

    of_g = error_times_time(g)
    assert of_g == pytest.approx(math.exp(0.5), rel=0.01)
    assert error_times_time(thrifty(1.0).log_prob(GRID).exp()) < 0.85 * of_g


def test_weights_stay_bounded() -> None:
    density = thrifty(3.0)
    u, _, _ = density.sample(5000, torch.Generator().manual_seed(1))
    ratio = (density.density.log_prob(u) - density.log_prob(u)).exp()
    assert float(ratio.max()) <= 20.0 + 1e-3


def failing_below_zero() -> Validity:
    validity, u = Validity(1), torch.linspace(-4, 4, 2000)[:, None]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        validity.fit(u, u[:, 0] > 0, torch.Generator().manual_seed(0))
    return validity


def test_where_simulations_fail_fast_no_more_of_them_are_made() -> None:
    # A hundredth of the time for nothing: by time alone, most of the draws would go there.
    runtime, generator = exponential(0.0), torch.Generator().manual_seed(0)
    cheap = Runtime(torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), 0.0, 1.0, 30.0)
    validity = failing_below_zero()
    for times in (runtime, cheap):
        density = ThriftyDensity.of(standard_normal(), times, validity, NORMAL, generator)
        u, _, _ = density.sample(20_000, generator)
        assert float((u < 0).float().mean()) < 0.15
        assert float(density.log_prob(GRID).exp().sum() * STEP) == pytest.approx(1, abs=0.02)
        p = density.log_prob(GRID).exp()
        assert float((p * GRID[:, 0]).sum() * STEP) == pytest.approx(float(u.mean()), abs=0.04)


def test_nothing_is_proposed_outside_a_support_that_is_no_box() -> None:
    prior, generator = Triangle(), torch.Generator().manual_seed(0)
    whitening = whiten(prior)
    u = PriorDensity(prior, whitening, (0.1, 2.0)).sample(200, generator)[0]
    zero = torch.zeros(200)
    kernels = TemperedDensity(u, zero + 1.0, zero.long(), zero.long(), 0.5 * torch.eye(2)[None])
    assert prior.log_prob(whitening.to_theta(kernels.sample(5000, generator)[0])).isinf().float().mean() > 0.2
    density = ThriftyDensity.of(kernels, exponential_of_two(), None, whitening, generator)
    draws = density.sample(5000, generator)[0]
    assert prior.log_prob(whitening.to_theta(draws)).isfinite().all()
    # The density is one over the support, and none outside.
    grid = torch.cartesian_prod(torch.linspace(-4, 4, 400), torch.linspace(-4, 4, 400))
    p = density.log_prob(grid).exp()
    assert float(p.sum() * (8 / 399) ** 2) == pytest.approx(1, abs=0.03)
    assert (p[whitening.log_prior_ratio(grid).isinf()] == 0).all()


def exponential_of_two() -> Runtime:
    """`E[t | u] = exp(u_1)` between 1/1000 and 1000 seconds."""
    weights = torch.zeros(6, dtype=torch.float64)
    weights[1] = 1.0
    return Runtime(weights, 0.0, 1e-3, 1e3)


def test_no_draws() -> None:
    u, beta, row = thrifty(1.0).sample(0, torch.Generator().manual_seed(0))
    assert u.shape == (0, 1)
    assert beta.shape == row.shape == (0,)
