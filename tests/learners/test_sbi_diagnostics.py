"""`sbi`'s own diagnostics take a `TemperedPosterior` for one of theirs."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest
from problems import LinearGaussian
from sbi.analysis import pairplot
from sbi.diagnostics import LC2ST, check_sbc, run_sbc
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from torch import Tensor

from learners import TemperedPosterior

DRAWS = 200


@pytest.fixture(scope="module")
def joint(linear_gaussian: LinearGaussian) -> tuple[Tensor, Tensor]:
    """Fresh draws of `p(theta, x)`."""
    return linear_gaussian.draw(400, seed=77)


@pytest.fixture(scope="module")
def posterior(gaussian_posterior: TemperedPosterior) -> NeuralPosterior:
    """As `sbi` types it: what it calls is there."""
    return gaussian_posterior  # type: ignore[return-value]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_simulation_based_calibration(posterior: NeuralPosterior, joint: tuple[Tensor, Tensor]) -> None:
    theta, x = joint
    ranks, data_averaged = run_sbc(theta, x, posterior, num_posterior_samples=DRAWS, show_progress_bar=False)
    assert ranks.shape == theta.shape
    p_values = check_sbc(ranks, theta, data_averaged, num_posterior_samples=DRAWS)["ks_pvals"]
    assert (p_values > 1e-3).all()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_expected_coverage(posterior: NeuralPosterior, joint: tuple[Tensor, Tensor]) -> None:
    theta, x = (column[:100] for column in joint)
    ranks, _ = run_sbc(
        theta, x, posterior, reduce_fns=posterior.log_prob, num_posterior_samples=DRAWS, show_progress_bar=False
    )
    assert ranks.shape == (100, 1)
    assert float(ranks.float().mean()) / DRAWS == pytest.approx(0.5, abs=0.1)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_local_classifier_test(
    gaussian_posterior: TemperedPosterior, joint: tuple[Tensor, Tensor], linear_gaussian: LinearGaussian
) -> None:
    theta, x = joint
    drawn = gaussian_posterior.sample_batched((1,), x, seed=1)[0]
    test = LC2ST(thetas=theta, xs=x, posterior_samples=drawn, num_trials_null=2, classifier_kwargs={"max_iter": 50})
    test.train_on_observed_data(verbosity=0)
    observed = gaussian_posterior.sample((500,), x=x[0], seed=2)
    assert 0 <= float(test.get_statistic_on_observed_data(observed, x[:1])) < 0.05


def test_pair_plot(gaussian_posterior: TemperedPosterior) -> None:
    figure, axes = pairplot(gaussian_posterior.sample((100,), x=[1.0, -0.5], seed=0))
    assert axes.shape == (2, 2)
    plt.close(figure)
