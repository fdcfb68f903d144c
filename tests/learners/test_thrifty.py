"""Proposals in favour of what is cheap: their density is known, and they pay."""

from __future__ import annotations

import math

import pytest
import torch

from learners.runtime import Runtime
from learners.tempered_density import TemperedDensity
from learners.thrifty import ThriftyDensity


def standard_normal() -> TemperedDensity:
    """One center with a kernel of width 1: `g(u) = N(u; 0, 1)`."""
    zero = torch.zeros(1)
    return TemperedDensity(zero[:, None], zero + 1.0, zero.long(), zero.long(), torch.ones(1, 1, 1))


def exponential(slope: float) -> Runtime:
    """`E[t | u] = exp(slope u)` between 1/1000 and 1000 seconds."""
    return Runtime(torch.tensor([0.0, slope, 0.0], dtype=torch.float64), 0.0, 1e-3, 1e3)


def thrifty(slope: float) -> ThriftyDensity:
    return ThriftyDensity.of(standard_normal(), exponential(slope), torch.Generator().manual_seed(0))


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


def test_no_draws() -> None:
    u, beta, row = thrifty(1.0).sample(0, torch.Generator().manual_seed(0))
    assert u.shape == (0, 1)
    assert beta.shape == row.shape == (0,)
