"""The example simulators whose cost depends on theta: what is known of their data without simulating."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from simulators.loading import load_object

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module", params=["epidemic", "radio"])
def example(request: pytest.FixtureRequest) -> str:
    return str(EXAMPLES / f"{request.param}.py")


def test_a_seed_decides_all_and_x_is_finite(example: str) -> None:
    simulate, prior = load_object(f"{example}:simulate"), load_object(f"{example}:PRIOR")
    theta = prior.sample((5,)).numpy()
    x = np.stack([simulate(row, i) for i, row in enumerate(theta)])
    assert np.isfinite(x).all()
    assert np.array_equal(x, np.stack([simulate(row, i) for i, row in enumerate(theta)]))
    assert not np.array_equal(x[0], simulate(theta[0], 100))


def test_an_epidemic_that_spreads_reaches_as_many_as_the_final_size_says() -> None:
    simulate = load_object(f"{EXAMPLES / 'epidemic.py'}:simulate")
    # r = 1 - exp(-R_0 r) with R_0 = 3; ten infected die out with a probability of 3^-10.
    share = 0.5
    for _ in range(100):
        share = 1 - math.exp(-3 * share)
    counts = simulate(np.array([0.6, 0.2]), 1)
    assert counts.sum() == pytest.approx(100_000 * share, rel=0.01)


def test_an_epidemic_below_the_threshold_dies_out() -> None:
    simulate = load_object(f"{EXAMPLES / 'epidemic.py'}:simulate")
    totals = [simulate(np.array([0.05, 0.2]), seed).sum() for seed in range(300)]
    # Ten infected, each with R_0 / (1 - R_0) successors, R_0 = 1/4.
    assert np.mean(totals) == pytest.approx(10 / 3, abs=0.5)


def test_the_power_of_the_radio_channel() -> None:
    simulate = load_object(f"{EXAMPLES / 'radio.py'}:simulate")
    gain, decay, rate, noise = 3e-9, 5e-9, 4e9, 1e-10
    x = np.stack([simulate(np.log10([gain, decay, rate, noise]), seed) for seed in range(20)])
    # The Fourier transform keeps energy: E m_0 = G_0 B T (1 - exp(-T_max / T)) + sigma^2.
    expected = 4e9 * gain * decay * (1 - math.exp(-100e-9 / decay)) + noise
    # log E m = E log m + var / 2 where the logarithm is normal.
    assert np.mean(np.exp(x[:, 0] + np.exp(2 * x[:, 3]) / 2)) == pytest.approx(expected, rel=0.03)
