"""Draws that are corrected by what the network was distilled from."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from problems import LinearGaussian
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

from learners import LearnerOptions, TemperedPosterior
from learners.familiarity import Familiarity
from learners.known import KnownLikelihood, LogLikelihood
from learners.learner import Learner
from learners.network import NetworkOptions, PosteriorNetwork
from learners.scaling import DataScaling
from learners.surrogate import Surrogate, SurrogateOptions
from learners.whitening_choice import whiten
from simulators.errors import ObservationError, RefinementError, SavedModelError, TemperatureError

BETAS = (0.2, 1.0, 2.0)
X = torch.tensor([1.0, -0.5])


def untrained(prior: Distribution, dim_x: int, log_likelihood: LogLikelihood) -> TemperedPosterior:
    """A network that knows nothing, and a likelihood that knows all."""
    whitening = whiten(prior)
    scaling = DataScaling.fit(torch.randn(100, dim_x, generator=torch.Generator().manual_seed(0)).double())
    torch.manual_seed(0)
    network = PosteriorNetwork(whitening.dim, dim_x, (0.1, 2.0), NetworkOptions(hidden=(8,), transforms=1))
    familiarity = Familiarity.fit(torch.randn(1000, dim_x))
    source = KnownLikelihood(log_likelihood, whitening)
    return TemperedPosterior(network, whitening, scaling, familiarity, source=source)


@pytest.fixture(scope="module")
def ignorant(linear_gaussian: LinearGaussian) -> TemperedPosterior:
    return untrained(linear_gaussian.prior, 2, linear_gaussian.log_likelihood)


@pytest.mark.parametrize("beta", BETAS)
def test_a_bad_network_is_corrected(ignorant: TemperedPosterior, linear_gaussian: LinearGaussian, beta: float) -> None:
    exact = linear_gaussian.posterior(X, beta)
    deviation = exact.covariance_matrix.diagonal().sqrt()
    raw = ignorant.sample((4000,), x=X, beta=beta, seed=0)
    draws = ignorant.sample((4000,), x=X, beta=beta, seed=0, refine=True)
    assert ((raw.mean(dim=0) - exact.mean).abs() > 0.5 * deviation).any()
    assert ((draws.mean(dim=0) - exact.mean).abs() < 0.1 * deviation).all()
    torch.testing.assert_close(draws.T.cov(), exact.covariance_matrix, rtol=0.1, atol=0.1 * float(deviation.min()) ** 2)
    assert len(draws.unique(dim=0)) > 3600


def test_far_modes_keep_their_weights() -> None:
    """Both signs of theta explain the data; the likelihood gives one of them a quarter."""
    prior = MultivariateNormal(torch.zeros(1), torch.eye(1))

    def log_likelihood(theta: Tensor, x: Tensor) -> Tensor:
        away = ((theta.abs() - 1.0) / 0.05)[:, 0]
        return -0.5 * away.square() + torch.where(theta[:, 0] > 0, math.log(0.75), math.log(0.25))

    draws = untrained(prior, 1, log_likelihood).sample((4000,), x=[0.3], seed=0, refine=True)
    assert 0.7 < float((draws > 0).float().mean()) < 0.8
    assert float((draws.abs() - 1.0).abs().max()) < 0.3


def test_many_observations_at_once(ignorant: TemperedPosterior, linear_gaussian: LinearGaussian) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, 2, generator=generator)  # more than are walked at once
    draws = ignorant.sample_batched((1000,), x, 1.0, seed=0, refine=True)
    assert draws.shape == (1000, 40, 2)
    exact = torch.stack([linear_gaussian.posterior(row, 1.0).mean for row in x])
    deviation = linear_gaussian.posterior(x[0], 1.0).covariance_matrix.diagonal().sqrt()
    off = (draws.mean(dim=0) - exact) / deviation
    assert float(off.abs().max()) < 0.3
    assert off.mean(dim=0).abs().max() < 0.05


def test_more_draws_than_are_walked_at_once(
    ignorant: TemperedPosterior, linear_gaussian: LinearGaussian, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("learners.refining._AT_ONCE", 1000)
    draws = ignorant.sample((2500,), x=X, seed=0, refine=True)
    assert draws.shape == (2500, 2)
    assert len(draws.unique(dim=0)) > 2300
    exact = linear_gaussian.posterior(X, 1.0)
    assert ((draws.mean(dim=0) - exact.mean).abs() < 0.1 * exact.covariance_matrix.diagonal().sqrt()).all()


def test_shapes_and_seeds(ignorant: TemperedPosterior) -> None:
    assert ignorant.sample((), x=X, refine=True).shape == (2,)
    assert ignorant.sample((0,), x=X, refine=True).shape == (0, 2)
    assert ignorant.sample((3, 4), x=X, refine=True).shape == (3, 4, 2)
    one, two, other = (ignorant.sample((50,), x=X, seed=s, refine=True) for s in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    torch.manual_seed(5)
    first = ignorant.sample((50,), x=X, refine=True)
    torch.manual_seed(5)
    assert torch.equal(first, ignorant.sample((50,), x=X, refine=True))


def test_efficiency_is_that_of_the_weights(ignorant: TemperedPosterior, linear_gaussian: LinearGaussian) -> None:
    """By the public densities, with draws of its own."""
    beta = 0.2
    draws = ignorant.sample((200_000,), x=X, beta=beta, seed=4)
    log_weight = linear_gaussian.prior.log_prob(draws) + beta * linear_gaussian.log_likelihood(draws, X)
    weight = torch.softmax((log_weight - ignorant.log_prob(draws, x=X, beta=beta)).double(), dim=0)
    expected = float(1 / (len(draws) * weight.square().sum()))
    assert 0.02 < expected < 0.6
    assert ignorant.efficiency(x=X, beta=beta, num_draws=50_000) == pytest.approx(expected, rel=0.1)


def test_a_network_that_is_right_is_fully_efficient(linear_gaussian: LinearGaussian) -> None:
    flat = untrained(linear_gaussian.prior, 2, lambda theta, x: torch.zeros(len(theta)))
    with torch.no_grad():
        for parameter in flat.network.parameters():
            parameter.zero_()  # the prior
    assert flat.efficiency(x=X) == pytest.approx(1.0, abs=1e-4)


def test_what_is_impossible_is_left_out(linear_gaussian: LinearGaussian) -> None:
    """NaN and minus infinity are no parameters that explain the data."""

    def half(theta: Tensor, x: Tensor) -> Tensor:
        value = torch.where(theta[:, 0] > 0, 0.0, -math.inf)
        return torch.where(theta[:, 0] > 3, math.nan, value)

    posterior = untrained(linear_gaussian.prior, 2, half)
    draws = posterior.sample((500,), x=X, seed=0, refine=True)
    assert float(draws[:, 0].min()) > 0
    assert float(draws[:, 0].max()) < 3
    assert 0.3 < posterior.efficiency(x=X) < 0.6


@pytest.mark.parametrize("nothing", [-math.inf, math.nan, -1e35])
def test_where_everything_is_impossible(linear_gaussian: LinearGaussian, nothing: float) -> None:
    posterior = untrained(linear_gaussian.prior, 2, lambda theta, x: torch.where(x[:, 0] > 3, nothing, 0.0))
    assert posterior.efficiency(x=[0.0, 0.0]) > 0.1
    impossible = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    with pytest.warns(UserWarning, match="unlike"):
        assert posterior.efficiency(x=impossible[1]) == 0.0
    with (
        pytest.warns(UserWarning, match="unlike"),
        pytest.raises(RefinementError, match="for 1 of 2 x the log-likelihood"),
    ):
        posterior.sample_batched((10,), impossible, refine=True)


def test_an_infinite_weight_leaves_no_efficiency(linear_gaussian: LinearGaussian) -> None:
    posterior = untrained(linear_gaussian.prior, 2, lambda theta, x: torch.where(theta[:, 0] > 2, math.inf, 0.0))
    assert posterior.efficiency(x=X) == 0.0


def learned(source: str, linear_gaussian: LinearGaussian, options: LearnerOptions) -> TemperedPosterior:
    theta, x = linear_gaussian.draw(300, seed=2)
    distance = (lambda a, b: (a - b).square().sum(dim=-1)) if source == "cost" else None
    return TemperedPosterior.fit(
        theta, x, linear_gaussian.prior, (0.1, 2.0), options, source=source, distance=distance
    ).set_default_x(X)


@pytest.mark.parametrize("source", ["surrogate", "ratio", "cost"])
def test_a_saved_posterior_refines_as_before(
    source: str, linear_gaussian: LinearGaussian, tiny: LearnerOptions, tmp_path: Path
) -> None:
    posterior = learned(source, linear_gaussian, tiny)
    loaded = TemperedPosterior.load(posterior.save(tmp_path / "one"))
    again = TemperedPosterior.load(loaded.save(tmp_path / "two"))
    expected = posterior.sample((100,), beta=0.5, seed=0, refine=True)
    for other in (loaded, again, TemperedPosterior.load(again.save(tmp_path / "two"))):
        torch.testing.assert_close(other.sample((100,), beta=0.5, seed=0, refine=True), expected)
        assert other.efficiency(beta=0.5) == pytest.approx(posterior.efficiency(beta=0.5), rel=1e-4)


def test_a_surrogate_is_saved_without_members_that_do_not_count(linear_gaussian: LinearGaussian) -> None:
    options = SurrogateOptions(members=("gaussian", "process", "affine"), hidden=(8,))
    surrogate = Surrogate(2, 2, options, seed=0)
    surrogate.weights.copy_(torch.tensor([0.0, 0.25, 0.75]))
    mean = surrogate.members[1].mean
    u, z = linear_gaussian.draw(80, seed=1)
    mean.fit(u, z, torch.zeros(80, dtype=torch.bool), torch.Generator())  # type: ignore[union-attr,operator]
    frozen = surrogate.frozen()
    assert len(frozen.members) == 2
    torch.testing.assert_close(frozen.log_prob(u, z), surrogate.log_prob(u, z))
    assert not any(p.requires_grad for p in frozen.parameters())


def test_a_likelihood_of_the_user_is_not_saved(ignorant: TemperedPosterior, tmp_path: Path) -> None:
    loaded = TemperedPosterior.load(ignorant.save(tmp_path))
    assert loaded.sample((10,), x=X).shape == (10, 2)
    for ask in (lambda: loaded.sample((10,), x=X, refine=True), lambda: loaded.efficiency(x=X)):
        with pytest.raises(RefinementError, match="nothing to refine with"):
            ask()


def test_a_prior_that_only_its_object_knows_is_not_saved(
    linear_gaussian: LinearGaussian, tiny: LearnerOptions, tmp_path: Path
) -> None:
    theta, x = linear_gaussian.draw(300, seed=2)
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(1)),
        MultivariateNormal(torch.zeros(1, 2), 4 * torch.eye(2)[None]),
    )
    posterior = TemperedPosterior.fit(theta, x, mixture, (0.1, 2.0), tiny)
    assert posterior.sample((10,), x=X, refine=True).shape == (10, 2)
    with pytest.raises(RefinementError, match="nothing to refine with"):
        TemperedPosterior.load(posterior.save(tmp_path)).sample((10,), x=X, refine=True)


def test_an_old_save_does_not_refine() -> None:
    saved = TemperedPosterior.load(Path(__file__).with_name("saved") / "format_1")
    with pytest.raises(RefinementError, match="earlier version"):
        saved.sample((10,), refine=True)


def cut(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def remove(path: Path, other: Path) -> None:
    path.unlink()


def exchange(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("harm", [cut, remove, exchange])
def test_a_damaged_source_leaves_the_network_alone(
    harm: Callable[[Path, Path], None], linear_gaussian: LinearGaussian, tiny: LearnerOptions, tmp_path: Path
) -> None:
    one, two = (learned(source, linear_gaussian, tiny).save(tmp_path / source) for source in ("surrogate", "ratio"))
    harm(one / "source.safetensors", two / "source.safetensors")
    loaded = TemperedPosterior.load(one)
    assert loaded.sample((10,)).shape == (10, 2)
    with pytest.raises(SavedModelError, match=r"source\.safetensors cannot be used"):
        loaded.sample((10,), refine=True)


def test_a_source_of_another_version_is_refused(
    linear_gaussian: LinearGaussian, tiny: LearnerOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = learned("ratio", linear_gaussian, tiny).save(tmp_path)
    monkeypatch.setattr("learners.pair_ensemble._MEMBERS", 2)
    with pytest.raises(SavedModelError, match="fit and save the posterior again"):
        TemperedPosterior.load(folder).sample((10,), refine=True)


def test_a_save_without_a_source_removes_the_old_one(
    ignorant: TemperedPosterior, linear_gaussian: LinearGaussian, tiny: LearnerOptions, tmp_path: Path
) -> None:
    learned("ratio", linear_gaussian, tiny).save(tmp_path)
    ignorant.save(tmp_path)
    assert not (tmp_path / "source.safetensors").exists()
    assert json.loads((tmp_path / "posterior.json").read_text())["source"] is None


def test_further_training_leaves_the_source_alone(linear_gaussian: LinearGaussian, tiny: LearnerOptions) -> None:
    learner = Learner(linear_gaussian.prior, (0.1, 2.0), X, tiny)
    for seed in (1, 2):
        learner.add_prior_draws(*linear_gaussian.draw(200, seed=seed))
        learner.fit_surrogate(final=False)
        learner.fit_posterior(final=False)
        if seed == 1:
            posterior = learner.posterior()
            before = posterior.sample((20,), seed=0, refine=True)
    assert torch.equal(before, posterior.sample((20,), seed=0, refine=True))


def test_refused_as_without_refining(ignorant: TemperedPosterior) -> None:
    with pytest.raises(TemperatureError):
        ignorant.sample((10,), x=X, beta=3.0, refine=True)
    with pytest.raises(ObservationError):
        ignorant.efficiency(x=[1.0])
    with pytest.raises(TemperatureError):
        ignorant.efficiency(x=X, beta=0.01)
