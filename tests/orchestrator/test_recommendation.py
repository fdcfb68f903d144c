"""Reweighted predictive draws and the recommended temperature, against what is known of normal distributions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Size, Tensor

from learners import TemperedPosterior
from orchestrator.predictive_bank import PredictiveBank, PredictivePath
from orchestrator.predictive_bank import _log_q as log_q
from orchestrator.recommendation import p_value, recommend
from simulators.outcome import Array


class Conjugate:
    """The exact tempered posterior of k times `x ~ N(theta, sd^2)` under `theta ~ N(0, 1)`: what a network learns."""

    def __init__(self, x_o: Array, sd: float, beta_range: tuple[float, float] = (0.1, 2.0)) -> None:
        self.x_o, self.sd, self.beta_range, self.default_x = x_o, sd, beta_range, torch.as_tensor(x_o)

    def at(self, x: Array | None, beta: float) -> torch.distributions.Normal:
        x = self.x_o if x is None else x
        precision = 1.0 + beta * len(x) / self.sd**2
        return torch.distributions.Normal(
            torch.tensor(beta * x.sum() / self.sd**2 / precision, dtype=torch.float64), precision**-0.5
        )

    def sample(self, shape: Size, x: Array | None = None, beta: float = 1.0, seed: int = 0) -> Tensor:
        torch.manual_seed(seed)
        return self.at(x, beta).sample(shape)[:, None]

    def log_prob(self, theta: Array, x: Array | None = None, beta: float = 1.0) -> Tensor:
        return self.at(x, beta).log_prob(torch.as_tensor(theta))[:, 0]


def bank_of(posterior: Conjugate, n: int = 2000) -> PredictiveBank:
    """As a campaign makes one: draws at five temperatures, a simulation each."""
    betas = (0.1, 0.3, 0.5, 1.0, 2.0)
    theta = np.concatenate([posterior.sample(Size([n]), beta=b, seed=i).numpy() for i, b in enumerate(betas)])
    noise = np.random.default_rng(0).normal(size=(len(theta), len(posterior.x_o)))
    mixture = np.mean([np.exp(log_q(as_posterior(posterior), theta, b, None)) for b in betas], axis=0)
    return PredictiveBank(theta, theta + posterior.sd * noise, np.log(mixture), "the simulator")


def as_posterior(posterior: Conjugate) -> TemperedPosterior:
    return posterior  # type: ignore[return-value]


class TestBank:
    @pytest.mark.parametrize("beta", [0.1, 0.2, 0.7, 1.0, 1.6])
    def test_weights_give_the_predictive_between_the_stored_temperatures(self, beta: float) -> None:
        posterior = Conjugate(np.array([1.0, 1.5, 0.8]), 0.5)
        draws = bank_of(posterior).at(as_posterior(posterior), beta)
        exact = posterior.at(None, beta)
        sd = (float(exact.scale) ** 2 + 0.25) ** 0.5
        expected = float(exact.loc) + sd * np.array([-1.645, -0.674, 0.0, 0.674, 1.645])
        found = draws.quantiles((0.05, 0.25, 0.5, 0.75, 0.95))
        assert draws.effective > 3000
        np.testing.assert_allclose(found, np.repeat(expected[:, None], 3, axis=1), atol=0.12 * sd)
        again = np.quantile(draws.resampled(), [0.05, 0.5, 0.95], axis=0)
        np.testing.assert_allclose(again, found[[0, 2, 4]], atol=0.05 * sd)

    def test_another_observation_uses_the_same_draws_while_enough_suit_it(self) -> None:
        posterior = Conjugate(np.array([1.0, 1.5, 0.8]), 0.5)
        bank = bank_of(posterior)
        near, far = np.array([1.2, 1.4, 1.0]), np.array([9.0, 9.0, 9.0])
        assert bank.at(as_posterior(posterior), 1.0, near).enough
        median = bank.at(as_posterior(posterior), 1.0, near).quantiles((0.5,))
        np.testing.assert_allclose(median, float(posterior.at(near, 1.0).loc), atol=0.05)
        assert not bank.at(as_posterior(posterior), 1.0, far).enough

    def test_impossible_pairs_have_no_weight(self) -> None:
        posterior = Conjugate(np.zeros(2), 0.5)
        bank = PredictiveBank(np.full((10, 1), np.inf), np.zeros((10, 2)), np.zeros(10), "nowhere")
        draws = bank.at(as_posterior(posterior), 1.0)
        assert draws.effective == 0.0
        assert not draws.enough

    @pytest.mark.parametrize("beta_range", [(0.1, 2.0), (0.5, 0.5)])
    def test_a_path_gives_the_same_predictive_at_every_temperature(self, beta_range: tuple[float, float]) -> None:
        posterior = Conjugate(np.array([1.0, 1.5, 0.8]), 0.5, beta_range)
        bank, x = bank_of(posterior, 200), np.array([0.9, 1.5, 1.0])
        path = PredictivePath(bank, as_posterior(posterior), x)
        for beta in np.linspace(*beta_range, 9):
            exact = bank.at(as_posterior(posterior), float(beta), x)
            np.testing.assert_allclose(path.at(float(beta)).weights, exact.weights, rtol=1e-3)

    def test_on_a_path_what_is_impossible_stays_so(self) -> None:
        posterior = Conjugate(np.zeros(2), 0.5)
        theta = np.array([[0.1], [np.inf], [-0.2]])
        path = PredictivePath(PredictiveBank(theta, np.zeros((3, 2)), np.zeros(3), "a few"), posterior, np.zeros(2))  # type: ignore[arg-type]
        weights = path.at(0.7).weights
        assert weights[1] == 0.0
        assert weights.sum() == pytest.approx(1.0)

    def test_failed_draws_are_left_out(self) -> None:
        x = np.array([[1.0, 2.0], [np.nan, 1.0], [3.0, np.inf]])
        assert len(PredictiveBank(np.zeros((3, 1)), x, np.zeros(3), "somewhere")) == 1

    def test_ranks_of_ties_are_in_the_middle(self) -> None:
        posterior = Conjugate(np.zeros(1), 1.0)
        x = np.array([[0.0], [1.0], [1.0], [1.0], [2.0]])
        draws = PredictiveBank(np.zeros((5, 1)), x, np.zeros(5), "somewhere").at(as_posterior(posterior), 1.0)
        np.testing.assert_allclose(draws.own_cdf()[:, 0], [0.1, 0.5, 0.5, 0.5, 0.9])
        assert draws.cdf(np.array([1.0])) == pytest.approx(0.5)
        assert draws.cdf(np.array([-5.0])) == pytest.approx(0.0)


class TestRecommendation:
    def test_data_of_the_model_recommend_bayes(self) -> None:
        rng = np.random.default_rng(3)
        for _ in range(5):
            x_o = rng.normal() + 0.5 * rng.normal(size=3)
            posterior = Conjugate(x_o, 0.5)
            found = recommend(as_posterior(posterior), bank_of(posterior, 400), x_o)
            assert found is not None
            assert found.recommended == 1.0
            assert "nothing here speaks against" in found.verdict

    def test_data_that_the_model_cannot_make_recommend_less(self) -> None:
        """Two numbers with one mean that lie too far apart: only the wide predictions reach both."""
        x_o = np.array([-1.2, 1.2])
        posterior = Conjugate(x_o, 0.5)
        found = recommend(as_posterior(posterior), bank_of(posterior), x_o)
        assert found is not None
        assert found.recommended is not None
        assert 0.1 < found.recommended < 1.0
        assert (found.p_value[found.beta > found.recommended] < 0.05).all()
        assert found.p_value[found.beta == found.recommended] >= 0.05
        assert f"Just above β = {found.recommended:.2g}" in found.verdict

    def test_data_beyond_every_temperature_are_said_to_be_so(self) -> None:
        x_o = np.array([40.0, -40.0])
        posterior = Conjugate(x_o, 0.5)
        found = recommend(as_posterior(posterior), bank_of(posterior), x_o)
        assert found is not None
        assert found.recommended is None
        assert "None in the trained range" in found.verdict

    def test_p_values_of_the_draws_themselves_are_uniform(self) -> None:
        posterior = Conjugate(np.array([0.3, 0.1, -0.2]), 0.5)
        draws = bank_of(posterior, 400).at(as_posterior(posterior), 1.0)
        rng = np.random.default_rng(1)
        theta = posterior.sample(Size([400]), beta=1.0, seed=99).numpy()
        p = np.array([p_value(draws, x) for x in theta + 0.5 * rng.normal(size=(400, 3))])
        assert np.abs(np.sort(p) - (np.arange(400) + 0.5) / 400).max() < 0.08

    def test_units_and_wild_tails_do_not_matter(self) -> None:
        posterior = Conjugate(np.array([0.9, 1.1, 0.2]), 0.5)
        bank = bank_of(posterior, 400)
        x_o = posterior.x_o
        wild = PredictiveBank(bank.theta, np.exp(20 * bank.x), bank.log_density, "the simulator")
        plain = p_value(bank.at(as_posterior(posterior), 1.0), x_o)
        assert p_value(wild.at(as_posterior(posterior), 1.0), np.exp(20 * x_o)) == pytest.approx(plain)

    def test_none_above_one(self) -> None:
        posterior = Conjugate(np.zeros(2), 0.5, beta_range=(1.2, 2.0))
        assert recommend(as_posterior(posterior), bank_of(posterior, 50), posterior.x_o) is None

    def test_one_temperature_alone(self) -> None:
        posterior = Conjugate(np.zeros(2), 0.5, beta_range=(0.5, 0.5))
        found = recommend(as_posterior(posterior), bank_of(posterior, 400), posterior.x_o)
        assert found is not None
        assert found.beta.tolist() == [0.5]
        assert found.recommended == 0.5
