"""The posterior that users hold: right on a problem with a known answer, and clear about what it cannot do."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from problems import LinearGaussian, Triangle
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributions import Beta, Categorical, Distribution, Independent, MixtureSameFamily, MultivariateNormal

from learners import LearnerOptions, TemperedPosterior, whiten
from learners.familiarity import Familiarity
from learners.learner import Learner
from learners.network import NetworkOptions, PosteriorNetwork
from learners.scaling import DataScaling
from learners.simulations import Simulations
from learners.surrogate import Surrogate
from simulators.errors import ConfigError, DataError, ObservationError, SavedModelError, TemperatureError
from simulators.prior import Marginal, ProductPrior

X_O = torch.tensor([1.0, -0.5])


@pytest.mark.parametrize("beta", [0.2, 0.5, 1.0, 2.0])
def test_every_temperature_of_a_gaussian_problem(
    gaussian_posterior: TemperedPosterior, linear_gaussian: LinearGaussian, beta: float
) -> None:
    exact = linear_gaussian.posterior(X_O, beta)
    draws = gaussian_posterior.sample((4000,), x=X_O, beta=beta, seed=0)
    std = exact.covariance_matrix.diagonal().sqrt()
    assert ((draws.mean(dim=0) - exact.mean).abs() < 0.3 * std).all()
    assert (draws.std(dim=0) / std).log().abs().max() < 0.25
    theta = exact.sample((1000,))
    log_q = gaussian_posterior.log_prob(theta, x=X_O, beta=beta)
    assert (exact.log_prob(theta) - log_q).mean().abs() < 0.15


def test_batched_draws_are_those_of_each_x(gaussian_posterior: TemperedPosterior) -> None:
    x = torch.stack([X_O, -X_O, 2 * X_O])
    draws = gaussian_posterior.sample_batched((3000,), x, beta=1.0, seed=0)
    assert draws.shape == (3000, 3, 2)
    for i in range(3):
        single = gaussian_posterior.sample((3000,), x=x[i], beta=1.0, seed=1)
        assert (draws[:, i].mean(dim=0) - single.mean(dim=0)).abs().max() < 0.05


def test_shapes_types_and_seeds(gaussian_posterior: TemperedPosterior) -> None:
    draws = gaussian_posterior.sample((5, 7), x=[1.0, -0.5], beta=0.5, seed=3)
    assert draws.shape == (5, 7, 2)
    assert draws.dtype == torch.float32
    assert gaussian_posterior.sample(x=X_O).shape == (2,)
    assert gaussian_posterior.sample((0,), x=X_O).shape == (0, 2)
    for seed in (3, np.int64(3), np.uint8(3)):
        again = gaussian_posterior.sample((5, 7), x=X_O.numpy(), beta=0.5, seed=seed)  # type: ignore[arg-type]
        torch.testing.assert_close(draws, again)
    refined = [gaussian_posterior.sample((5,), x=X_O, seed=seed, refine=True) for seed in (3, np.int64(3))]  # type: ignore[arg-type]
    assert torch.equal(*refined)
    state = torch.random.get_rng_state()
    gaussian_posterior.sample((5,), x=X_O, seed=3)
    assert torch.equal(state, torch.random.get_rng_state())


def test_nothing_leaks_out_of_the_prior(bounded_posterior: TemperedPosterior) -> None:
    draws = bounded_posterior.sample((5000,), x=[1.0, 1.0], beta=2.0)
    assert ((draws >= 1) & (draws <= 4)).all()
    outside = bounded_posterior.log_prob([[0.9], [4.1], [math.nan], [math.inf], [-math.inf]], x=[1.0, 1.0])
    assert (outside == -math.inf).all()


def test_the_density_integrates_to_one(bounded_posterior: TemperedPosterior) -> None:
    grid = torch.linspace(1, 4, 20_001)[1:-1, None]
    density = bounded_posterior.log_prob(grid, x=[2.0, 3.0], beta=0.7).exp().double()
    assert float(density.sum() * 3 / 20_000) == pytest.approx(1, abs=2e-3)


def test_a_default_observation(gaussian_posterior: TemperedPosterior, tmp_path: Path) -> None:
    posterior = TemperedPosterior.load(gaussian_posterior.save(tmp_path))
    with pytest.raises(ObservationError, match="pass x="):
        posterior.sample((3,))
    posterior.set_default_x(X_O)
    torch.testing.assert_close(posterior.sample((3,), seed=0), gaussian_posterior.sample((3,), x=X_O, seed=0))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([1.0, 2.0, 3.0], "expected an observation of 2 numbers"),
        (1.0, "expected an observation of 2 numbers"),
        ([1.0, math.nan], "1 NaN or infinite"),
        ([[1.0, 2.0], [0.0, 1.0]], "sample_batched takes many"),
    ],
)
def test_an_unusable_observation_is_refused(gaussian_posterior: TemperedPosterior, x: object, message: str) -> None:
    with pytest.raises(ObservationError, match=message):
        gaussian_posterior.sample((3,), x=x)


@pytest.mark.parametrize("beta", [0.1, 2.1, -1.0, 0.0, math.nan])
def test_a_beta_outside_the_range_is_refused(gaussian_posterior: TemperedPosterior, beta: float) -> None:
    with pytest.raises(TemperatureError, match=r"outside the trained range \[0.2, 2\]"):
        gaussian_posterior.sample((3,), x=X_O, beta=beta)


def test_an_x_unlike_anything_simulated_brings_a_warning(gaussian_posterior: TemperedPosterior) -> None:
    with pytest.warns(UserWarning, match=r"unlike the simulated data \(p < 0.001\)"):
        gaussian_posterior.sample((3,), x=[40.0, -40.0])


class TestSaving:
    def test_what_is_loaded_is_what_was_saved(self, gaussian_posterior: TemperedPosterior, tmp_path: Path) -> None:
        loaded = TemperedPosterior.load(gaussian_posterior.save(tmp_path))
        files = {path.name for path in tmp_path.iterdir()}
        assert files == {"posterior.json", "posterior.safetensors", "source.safetensors"}
        assert (loaded.names, loaded.beta_range) == (gaussian_posterior.names, gaussian_posterior.beta_range)
        for call in (lambda p: p.sample((9,), x=X_O, seed=1), lambda p: p.log_prob([[0.1, 0.2]], x=X_O, beta=0.3)):
            torch.testing.assert_close(call(loaded), call(gaussian_posterior))

    @pytest.mark.parametrize("damage", ["missing tensor", "garbage", "json", "future", "nothing"])
    def test_what_cannot_be_read_is_explained(
        self, bounded_posterior: TemperedPosterior, tmp_path: Path, damage: str
    ) -> None:
        bounded_posterior.save(tmp_path)
        tensors, spec = tmp_path / "posterior.safetensors", tmp_path / "posterior.json"
        expected = "is damaged"
        if damage == "missing tensor":
            kept = load_file(tensors)
            save_file({k: v for k, v in kept.items() if k != "familiarity.mean"}, tensors)
        elif damage == "garbage":
            tensors.write_bytes(b"garbage")
        elif damage == "json":
            spec.write_text("{")
        elif damage == "future":
            spec.write_text(json.dumps({**json.loads(spec.read_text()), "format": 99}))
            expected = "written in format 99.*upgrade temperflow"
        else:
            tensors.unlink()
            expected = "has the campaign finished training"
        with pytest.raises(SavedModelError, match=expected):
            TemperedPosterior.load(tmp_path)


class TestFit:
    prior = ProductPrior({"rate": Marginal("Uniform", {"low": 1.0, "high": 4.0})})

    def fit(self, theta: Tensor, x: Tensor, options: LearnerOptions, low: float = 0.2, high: float = 2.0) -> None:
        TemperedPosterior.fit(theta, x, self.prior, (low, high), options)

    def test_bad_input(self, tiny: LearnerOptions) -> None:
        theta = self.prior.sample((100,))
        x = torch.randn(100, 2)
        with pytest.raises(DataError, match="100 of 100 theta lie outside the prior's support"):
            self.fit(theta + 10, x, tiny)
        with pytest.raises(DataError, match="at least 50 valid simulations"):
            self.fit(theta[:49], x[:49], tiny)
        with pytest.raises(DataError, match="at least 50 valid simulations"):
            self.fit(theta, torch.full_like(x, math.nan), tiny)
        with pytest.raises(DataError, match="same n"):
            self.fit(theta, x[:-1], tiny)
        with pytest.raises(DataError, match="the prior has dimension 1"):
            self.fit(theta.expand(-1, 2), x, tiny)
        with pytest.raises(DataError, match="NaN or infinite"):
            self.fit(theta * math.nan, x, tiny)
        with pytest.raises(DataError, match=r"expected theta of shape \(n, d\) .* got \(100,\) and \(100, 2\)"):
            self.fit(theta[:, 0], x, tiny)
        with pytest.raises(DataError, match=r"at least 50 valid simulations .* there are 49 \(of 100\)"):
            self.fit(theta, torch.where(torch.arange(100)[:, None] < 49, x, math.inf), tiny)
        for low, high in ((0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (math.nan, 1.0), (0.1, math.inf)):
            with pytest.raises(TemperatureError, match="0 < low <= high"):
                self.fit(theta, x, tiny, low, high)

    def test_integers_and_arrays_are_taken_as_numbers(self, tiny: LearnerOptions) -> None:
        theta = self.prior.sample((200,))
        x = torch.poisson(5 * theta).expand(-1, 2).clone()
        x[:, 1] = 7
        as_integers = TemperedPosterior.fit(theta.numpy(), x.long().numpy(), self.prior, (0.2, 2.0), tiny)
        as_numbers = TemperedPosterior.fit(theta, x, self.prior, (0.2, 2.0), tiny)
        draws = [p.sample((50,), x=[12, 7], beta=0.5, seed=0) for p in (as_integers, as_numbers)]
        assert draws[0].isfinite().all()
        torch.testing.assert_close(*draws)

    def test_frames_and_reversed_arrays_are_taken_as_they_read(self, tiny: LearnerOptions) -> None:
        theta = self.prior.sample((100,))
        x = theta + torch.randn(100, 2)
        frames = pd.DataFrame({"rate": theta[:, 0].numpy()}), pd.DataFrame(x.numpy(), columns=["a", "b"])
        backwards = [value.flip(0).numpy()[::-1] for value in (theta, x)]
        fits = [TemperedPosterior.fit(*pair, self.prior, (0.2, 2.0), tiny) for pair in ((theta, x), frames, backwards)]
        observed = x[0], frames[1].iloc[0], x[0].flip(0).numpy()[::-1]
        draws = [fit.sample((9,), x=x_o, seed=0) for fit, x_o in zip(fits, observed, strict=True)]
        assert torch.equal(draws[0], draws[1]) and torch.equal(draws[0], draws[2])
        assert torch.equal(*(fits[0].log_prob(value, x=x[0]) for value in (theta, frames[0])))

    def test_one_number_may_be_the_observation(self, tiny: LearnerOptions) -> None:
        theta = self.prior.sample((100,))
        posterior = TemperedPosterior.fit(theta, theta + torch.randn(100, 1), self.prior, (0.2, 2.0), tiny)
        for x in (0.2, np.float64(0.2), torch.tensor(0.2)):
            draws = [posterior.sample((5,), x=value, seed=0) for value in (x, [0.2])]
            assert torch.equal(*draws)
        with pytest.raises(ObservationError, match=r"of 1 numbers .* got shape \(2,\)"):
            posterior.sample((5,), x=[0.2, 0.3])

    def test_what_are_no_real_numbers(self, tiny: LearnerOptions) -> None:
        theta = self.prior.sample((100,))
        with pytest.raises(DataError, match="x: expected real numbers, got complex ones"):
            self.fit(theta, torch.randn(100, 2, dtype=torch.complex64), tiny)
        with pytest.raises(DataError, match="x: expected real numbers, got DataFrame"):
            self.fit(theta, pd.DataFrame({"a": ["none"] * 100}), tiny)  # type: ignore[arg-type]

    def test_a_surrogate_that_draws_nothing_like_x(self, tiny: LearnerOptions, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Surrogate, "sample", lambda self, u, generator: torch.full((len(u), 2), 1e27))
        theta = self.prior.sample((100,))
        with pytest.raises(DataError, match=r"none of its \d+ draws lies within twice the range"):
            self.fit(theta, theta + torch.randn(100, 2), tiny)

    @pytest.mark.parametrize("x_o", [[1.0, math.nan], [math.inf, 1.0]])
    def test_an_observation_that_is_not_finite(self, tiny: LearnerOptions, x_o: list[float]) -> None:
        with pytest.raises(ObservationError, match="the observation has 1 NaN or infinite values"):
            Learner(self.prior, (0.2, 2.0), torch.tensor(x_o), tiny)

    def test_x_of_another_shape_than_before(self, tiny: LearnerOptions) -> None:
        theta = self.prior.sample((60,))
        learner = Learner(self.prior, (0.2, 2.0), torch.zeros(2), tiny)
        with pytest.raises(ObservationError, match="the observation has 2 numbers, but the simulator returns 3"):
            learner.add_prior_draws(theta, torch.randn(60, 3))
        amortized = Learner(self.prior, (0.2, 2.0), options=tiny)
        amortized.add_prior_draws(theta, torch.randn(60, 2))
        with pytest.raises(DataError, match="x has 3 columns, but the simulations so far have 2"):
            amortized.add_prior_draws(theta, torch.randn(60, 3))

    def test_failures_constants_and_counts_are_learned_from(self, tiny: LearnerOptions) -> None:
        theta = self.prior.sample((200,))
        x = torch.cat([torch.poisson(theta), torch.ones(200, 1), theta + torch.randn(200, 1)], dim=1)
        x[::7] = math.nan
        posterior = TemperedPosterior.fit(theta, x, self.prior, (0.5, 1.0), tiny)
        draws = posterior.sample((100,), x=[2.0, 1.0, 2.5], beta=0.5)
        assert draws.isfinite().all()

    def test_the_same_seed_gives_the_same_network(self, tiny: LearnerOptions) -> None:
        theta = self.prior.sample((200,))
        x = theta + torch.randn(200, 2)
        first, second = (
            TemperedPosterior.fit(theta, x, self.prior, (0.2, 2.0), tiny, seed=s) for s in (5, np.int64(5))
        )  # type: ignore[arg-type]
        torch.testing.assert_close(first.sample((9,), x=x[0], seed=0), second.sample((9,), x=x[0], seed=0))


def test_simulations_from_a_narrow_proposal_give_the_same_posterior(
    linear_gaussian: LinearGaussian, small: LearnerOptions
) -> None:
    generator = torch.Generator().manual_seed(0)
    proposal = torch.distributions.MultivariateNormal(torch.tensor([1.5, -1.0]), torch.eye(2))
    theta = proposal.mean + torch.randn(2000, 2, generator=generator)
    noise = linear_gaussian.noise * torch.randn(2000, 2, generator=generator)
    learner = Learner(linear_gaussian.prior, (0.2, 2.0), X_O, small)
    x = theta @ linear_gaussian.matrix.T + noise
    learner.add(Simulations(theta.double(), x.double(), proposal.log_prob(theta).double()))
    learner.fit_surrogate()
    learner.fit_posterior()
    draws = learner.posterior().sample((4000,), beta=1.0, seed=0)
    exact = linear_gaussian.posterior(X_O, 1.0)
    std = exact.covariance_matrix.diagonal().sqrt()
    assert ((draws.mean(dim=0) - exact.mean).abs() < 0.3 * std).all()
    assert (draws.std(dim=0) / std).log().abs().max() < 0.25


def test_training_continues_as_simulations_come(linear_gaussian: LinearGaussian, small: LearnerOptions) -> None:
    learner = Learner(linear_gaussian.prior, (0.2, 2.0), X_O, small)
    losses = []
    for seed, n in enumerate((100, 1000)):
        learner.add_prior_draws(*linear_gaussian.draw(n, seed))
        losses.append(learner.fit_surrogate(final=False))
        learner.fit_posterior(final=False)
    assert losses[1] < losses[0]
    before = learner.posterior().sample((5,), seed=0)
    kept = learner.posterior()
    learner.fit_posterior(final=True)
    torch.testing.assert_close(kept.sample((5,), seed=0), before)


def test_the_last_surrogate_begins_anew_where_most_simulations_came_after_the_first(
    linear_gaussian: LinearGaussian, tiny: LearnerOptions
) -> None:
    learner = Learner(linear_gaussian.prior, (0.2, 2.0), options=tiny)
    learner.add_prior_draws(*linear_gaussian.draw(200, seed=1))
    learner.fit_surrogate(final=False)
    first = learner.source
    learner.add_prior_draws(*linear_gaussian.draw(80, seed=2))
    learner.fit_surrogate(final=True)
    assert learner.source is first
    learner.add_prior_draws(*linear_gaussian.draw(100, seed=3))
    learner.fit_surrogate(final=False)
    assert learner.source is first
    learner.fit_surrogate(final=True)
    second = learner.source
    assert second is not first
    learner.fit_surrogate(final=True)
    assert learner.source is second


def test_the_walk_is_exact_where_the_surrogate_is(linear_gaussian: LinearGaussian, small: LearnerOptions) -> None:
    learner = Learner(linear_gaussian.prior, (0.2, 2.0), options=small)
    learner.add_prior_draws(*linear_gaussian.draw(2000, seed=1))
    learner.fit_surrogate()
    for beta in (0.2, 1.0):
        exact = linear_gaussian.posterior(X_O, beta)
        draws = learner.walk(X_O, beta, 2000)
        std = exact.covariance_matrix.diagonal().sqrt()
        assert ((draws.mean(dim=0) - exact.mean).abs() < 0.3 * std).all()
        assert (draws.std(dim=0) / std).log().abs().max() < 0.25


def test_what_cannot_be_walked_is_refused(linear_gaussian: LinearGaussian, tiny: LearnerOptions) -> None:
    learner = Learner(linear_gaussian.prior, (0.2, 2.0), options=tiny)
    learner.add_prior_draws(*linear_gaussian.draw(100, seed=1))
    learner.fit_surrogate()
    for beta in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(TemperatureError, match="0 < beta < inf"):
            learner.walk(X_O, beta, 10)
    for x in (torch.tensor([math.nan, 0.0]), torch.zeros(3), torch.zeros(2, 2)):
        with pytest.raises(ObservationError):
            learner.walk(x, 1.0, 10)
    with pytest.raises(ConfigError, match="n of at least 0, got -1"):
        learner.walk(X_O, 1.0, -1)
    for n in range(4):
        assert learner.walk(X_O, 1.0, n).shape == (n, 2)


def test_nothing_is_asked_of_nothing(gaussian_posterior: TemperedPosterior) -> None:
    assert gaussian_posterior.log_prob(torch.zeros(0, 2), x=X_O).shape == (0,)
    for refine in (False, True):
        assert gaussian_posterior.sample_batched((3,), torch.zeros(0, 2), refine=refine).shape == (3, 0, 2)
    with pytest.raises(ConfigError, match="num_draws of at least 1, got 0"):
        gaussian_posterior.efficiency(x=X_O, num_draws=0)
    with pytest.raises(ConfigError, match="num_starts of at least 1, got 0"):
        gaussian_posterior.map(x=X_O, num_starts=0)


def test_outside_a_prior_that_is_no_box(tiny: LearnerOptions) -> None:
    theta = Triangle().sample(torch.Size([100]))
    with pytest.raises(DataError, match="100 of 100 theta lie outside the prior's support"):
        TemperedPosterior.fit(theta.flip(1), theta, Triangle(), (0.2, 2.0), tiny)
    posterior = TemperedPosterior.fit(theta, theta + torch.randn(100, 2), Triangle(), (0.2, 2.0), tiny)
    log_q = posterior.log_prob([[0.2, 0.7], [0.7, 0.2]], x=[0.3, 0.6])
    assert log_q[0].isfinite() and log_q[1] == -math.inf
    best = posterior.log_prob(posterior.sample((1000,), x=[0.3, 0.6], seed=0), x=[0.3, 0.6]).max()
    assert posterior.log_prob(posterior.map(x=[0.3, 0.6])[None], x=[0.3, 0.6]) >= best


@pytest.mark.parametrize("n", [50, 51])
def test_the_fewest_simulations_suffice_all_members(tiny: LearnerOptions, n: int) -> None:
    theta = torch.randn(n, 2)
    x = theta + 0.3 * torch.randn(n, 2)
    options = replace(tiny, surrogate=replace(tiny.surrogate, members=()))
    posterior = TemperedPosterior.fit(theta, x, MultivariateNormal(torch.zeros(2), torch.eye(2)), (0.2, 2.0), options)
    assert posterior.sample((20,), x=x[0]).isfinite().all()


def test_a_column_most_of_whose_values_are_equal_does_no_harm(
    linear_gaussian: LinearGaussian, tiny: LearnerOptions
) -> None:
    theta, x = linear_gaussian.draw(200, seed=1)
    rare = torch.where(theta[:, :1] > 2.5, theta[:, :1], 0.0)
    rare[0] = 1e30
    x = torch.cat([x.double(), rare.double()], dim=1)
    options = replace(tiny, surrogate=replace(tiny.surrogate, members=()))
    posterior = TemperedPosterior.fit(theta, x, linear_gaussian.prior, (0.2, 2.0), options)
    assert posterior.sample((20,), x=[0.3, 0.1, 0.0]).isfinite().all()


class TestDevice:
    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_a_gpu_that_is_not_there(self, linear_gaussian: LinearGaussian, tiny: LearnerOptions) -> None:
        with pytest.raises(ConfigError, match=r"finds no GPU .* choose device='cpu'"):
            Learner(linear_gaussian.prior, (0.2, 2.0), options=replace(tiny, device="cuda"))

    def test_no_device(self, linear_gaussian: LinearGaussian, tiny: LearnerOptions) -> None:
        with pytest.raises(ConfigError, match="expected a device such as 'cpu' or 'cuda', got 'gpu'"):
            Learner(linear_gaussian.prior, (0.2, 2.0), options=replace(tiny, device="gpu"))

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
    def test_what_a_gpu_learned_is_asked_on_the_cpu(
        self, linear_gaussian: LinearGaussian, tiny: LearnerOptions, tmp_path: Path
    ) -> None:
        theta, x = linear_gaussian.draw(200, seed=1)
        options = replace(tiny, device="cuda")
        posterior = TemperedPosterior.fit(theta.cuda(), x.cuda(), linear_gaussian.prior, (0.2, 2.0), options)
        loaded = TemperedPosterior.load(posterior.save(tmp_path))
        for one in (posterior, loaded):
            assert {tensor.device.type for tensor in one.network.state_dict().values()} == {"cpu"}
            assert one.sample((9,), x=x[0].cuda(), seed=0, refine=True).isfinite().all()
            assert one.log_prob(theta[:5].cuda(), x=x[0]).device.type == "cpu"
        assert torch.equal(*(one.sample((9,), x=x[0], seed=0) for one in (posterior, loaded)))


def test_the_mode_is_where_the_density_is_highest(
    gaussian_posterior: TemperedPosterior, bounded_posterior: TemperedPosterior, linear_gaussian: LinearGaussian
) -> None:
    exact = linear_gaussian.posterior(X_O, 0.5)
    mode = gaussian_posterior.map(x=X_O, beta=0.5)
    assert mode.shape == (2,)
    assert ((mode - exact.mean).abs() < 0.3 * exact.covariance_matrix.diagonal().sqrt()).all()
    grid = torch.linspace(1, 4, 2001)[1:-1, None]
    highest = bounded_posterior.log_prob(grid, x=[2.0, 3.0], beta=0.7).max()
    found = bounded_posterior.map(x=[2.0, 3.0], beta=0.7)
    assert 1 <= float(found) <= 4
    assert float(bounded_posterior.log_prob(found[None], x=[2.0, 3.0], beta=0.7)) > float(highest) - 0.01


def regression(prior: Distribution, shift: Tensor, scale: Tensor, lower: Tensor | None = None) -> TemperedPosterior:
    """A posterior whose network says at beta = 2 `u = shift + scale L^-1 e`, e normal, whatever x."""
    d = len(shift)
    network = PosteriorNetwork(d, 1, (0.1, 2.0), NetworkOptions(hidden=(4,), transforms=1))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        first = network.flow.transform.transforms[0]
        first.linear.bias.copy_(torch.cat([shift, scale.log()]))  # type: ignore[union-attr, operator, arg-type]
        if lower is not None:
            first.lower.copy_(lower.tril(-1))  # type: ignore[union-attr, operator]
    scaling = DataScaling(torch.zeros(1), torch.zeros(1), torch.ones(1))
    return TemperedPosterior(network, whiten(prior), scaling, Familiarity.fit(torch.randn(100, 1)))


@pytest.mark.parametrize("dim", [2, 15, 30])
def test_the_mode_in_many_dimensions(dim: int) -> None:
    torch.manual_seed(dim)
    mode, scale, lower = torch.randn(dim), (0.7 * torch.randn(dim)).exp(), 0.5 * torch.randn(dim, dim)
    posterior = regression(MultivariateNormal(torch.zeros(dim), torch.eye(dim)), mode, scale, lower)
    state = torch.random.get_rng_state()
    found = posterior.map(x=[0.0], beta=2.0)
    assert torch.equal(torch.random.get_rng_state(), state)
    reached, highest = posterior.log_prob(torch.stack([found, mode]), x=[0.0], beta=2.0)
    assert reached > highest - 0.01
    assert torch.equal(posterior.map(x=[0.0], beta=2.0), found)


BOUNDED = {
    "beta": ProductPrior({"a": Marginal("Beta", {"concentration1": 0.5, "concentration0": 0.5})}),
    "uniform": ProductPrior({"a": Marginal("Uniform", {"low": 1e5, "high": 100010.1})}),
    "truncated": ProductPrior({"a": Marginal("Normal", {"loc": 0.0, "scale": 1.0}, low=-0.1, high=0.7)}),
    "log_normal": ProductPrior({"a": Marginal("LogNormal", {"loc": 0.0, "scale": 15.0})}),
    "joint": MixtureSameFamily(
        Categorical(torch.ones(2)), Independent(Beta(torch.tensor([[2.0], [0.5]]), torch.tensor([[2.0], [0.5]])), 1)
    ),
}


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("shift", [-7.0, 7.0])
def test_no_draw_and_no_mode_is_rounded_out_of_the_prior(name: str, shift: float) -> None:
    posterior = regression(BOUNDED[name], torch.tensor([shift]), torch.tensor([3.0]))
    draws = posterior.sample((2000,), x=[0.0], beta=2.0, seed=0)
    mode = posterior.map(x=[0.0], beta=2.0)
    for theta in (draws, mode[None]):
        assert BOUNDED[name].log_prob(theta).isfinite().all()
        assert posterior.log_prob(theta, x=[0.0], beta=2.0).isfinite().all()


def test_draws_for_arviz(gaussian_posterior: TemperedPosterior) -> None:
    data = gaussian_posterior.to_inference_data(50, x=X_O, beta=0.5, seed=1)
    draws = gaussian_posterior.sample((50,), x=X_O, beta=0.5, seed=1)
    for i, name in enumerate(gaussian_posterior.names):
        values = data["posterior"][name]
        assert values.dims == ("chain", "draw")
        torch.testing.assert_close(torch.as_tensor(values.values[0]), draws[:, i])


def test_a_row_is_an_observation_too_and_several_are_not(gaussian_posterior: TemperedPosterior) -> None:
    x = torch.tensor([0.3, -0.2])
    single = gaussian_posterior.sample((5,), x=x, seed=0)
    assert torch.equal(gaussian_posterior.sample((5,), x=x[None], seed=0), single)
    assert torch.equal(gaussian_posterior.map(x=x[None]), gaussian_posterior.map(x=x))
    for method in (gaussian_posterior.sample, gaussian_posterior.map, gaussian_posterior.efficiency):
        with pytest.raises(ObservationError, match="one observation of shape"):
            method(x=torch.zeros(3, 2))


def test_the_default_observation_is_a_copy(gaussian_posterior: TemperedPosterior) -> None:
    x = torch.zeros(2, dtype=torch.float64)
    before = gaussian_posterior.default_x
    try:
        gaussian_posterior.set_default_x(x)
        x += 1
        assert not gaussian_posterior.default_x.any()  # type: ignore[union-attr]
    finally:
        gaussian_posterior.default_x = before


def test_drawing_leaves_the_number_of_threads_alone(gaussian_posterior: TemperedPosterior) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        gaussian_posterior.sample((10,), x=[1.0, -0.5])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
