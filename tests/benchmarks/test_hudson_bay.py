"""The known likelihood of the Hudson Bay data is that of the example's simulator."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from benchmarks.exact import exact_draws, observed
from benchmarks.hudson_bay import log_likelihood
from benchmarks.problem import EXAMPLES
from simulators.loading import load_object

THETA = np.array([[0.55, 0.028, 0.8, 0.024, 33.0, 6.0, 0.25, 0.2], [1.2, 0.05, 0.5, 0.01, 5.0, 20.0, 0.5, 1.0]])


def test_the_likelihood_is_that_of_the_noise_that_was_added() -> None:
    simulate = load_object(f"{EXAMPLES / 'hudson_bay.py'}:simulate")
    for theta in THETA:
        x = simulate(theta, 7)
        noise = np.random.default_rng(7).normal(size=(21, 2))
        expected = norm.logpdf(noise).sum() - 21 * np.log(theta[6:]).sum() - np.log(x).sum()
        # The example's solver and ours differ by some millionths.
        assert log_likelihood(theta[None], x)[0] == pytest.approx(expected, abs=1e-3)


def test_the_references_are_near_the_published_posterior() -> None:
    assert observed("hudson_bay", 1).shape == (42,)
    draws = exact_draws("hudson_bay", 1, 1.0)
    assert draws.shape == (2000, 8)
    # B. Carpenter's case study, rounded as printed there.
    published = np.array([0.55, 0.028, 0.80, 0.024]), np.array([0.06, 0.004, 0.09, 0.004])
    shift = (draws[:, :4].numpy().mean(axis=0) - published[0]) / published[1]
    assert np.abs(shift).max() < 0.2
    assert (exact_draws("hudson_bay", 1, 0.1).std(dim=0) > 2 * draws.std(dim=0)).all()
