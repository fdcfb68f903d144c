"""Embedding networks: series in, posteriors of their parameters out; and what is saved of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from problems import Autoregression, LinearGaussian
from torch import Tensor, nn

from learners import LearnerOptions, TemperedPosterior
from learners.embedding import Embedding, EmbeddingOptions
from learners.features import Features
from learners.learner import Learner
from learners.rows import Rows
from learners.scaling import DataScaling
from simulators.errors import DataError, SavedModelError


class Halves(nn.Module):
    """A user's module, with a layer that counts what it sees."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.SiLU(), nn.Linear(16, width))

    def forward(self, x: Tensor) -> Tensor:
        e: Tensor = self.layers(x)
        return e


@pytest.fixture
def brief(tiny: LearnerOptions) -> LearnerOptions:
    """Trains at once, embedding included."""
    return replace(tiny, embedding=EmbeddingOptions(dim=3, training=tiny.surrogate.training))


def repeated(problem: LinearGaussian, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """`theta` `(n, 2)` and two series of six numbers around them, `(n, 12)`."""
    theta, _ = problem.draw(n, seed)
    noise = torch.randn(n, 12, generator=torch.Generator().manual_seed(seed + 100))
    return theta, theta.repeat_interleave(6, dim=1) + noise


@pytest.mark.parametrize("source", ["surrogate", "ratio"])
def test_the_parameters_of_a_series_of_200_numbers(small: LearnerOptions, paired: LearnerOptions, source: str) -> None:
    """Against quadrature on a grid, in exact standard deviations: what 2,000 series teach an embedding is not all."""
    problem = Autoregression(200)
    options = small if source == "surrogate" else paired
    options = replace(options, surrogate=replace(options.surrogate, hidden=(64, 64)))
    theta, x = problem.draw(4000, seed=1)
    posterior = TemperedPosterior.fit(theta, x, problem.prior, (0.3, 2.0), options, embedding="conv1d", source=source)
    generator = torch.Generator().manual_seed(5)
    gaps, widths = [], []
    for true in ([0.5, 0.3], [-0.3, -0.4], [0.8, 0.0], [0.0, 0.2]):
        x_o = problem.simulate(torch.tensor([true]), generator)[0]
        for beta in (0.3, 1.0, 2.0):
            mean, deviation = problem.moments(x_o, beta)
            draws = posterior.sample((4000,), x=x_o, beta=beta, seed=0).double()
            gaps.append((draws.mean(dim=0) - mean) / deviation)
            widths.append(draws.std(dim=0) / deviation)
    gap, width = torch.stack(gaps), torch.stack(widths)
    assert gap.square().mean().sqrt() < 0.6
    assert width.log().abs().max() < 0.7
    # Not too sure of itself: an embedding says more of what it has seen than of what it has not.
    assert width.log().mean() > -0.15


def test_an_embedding_and_the_source_learn_from_different_simulations(
    linear_gaussian: LinearGaussian, brief: LearnerOptions
) -> None:
    learner = Learner(linear_gaussian.prior, (0.2, 2.0), options=brief, embedding="mlp")
    learner.add_prior_draws(*repeated(linear_gaussian, 400, 0))
    assert 120 < int(learner.material.shown.sum()) < 240
    assert not (learner.material.shown & learner.material.held_out).any()
    learner.fit_surrogate()
    learner.fit_posterior()
    assert not learner.predicts
    none = Learner(linear_gaussian.prior, (0.2, 2.0), options=brief)
    none.add_prior_draws(*repeated(linear_gaussian, 400, 0))
    assert not none.material.shown.any()


@pytest.mark.filterwarnings("ignore:this x is unlike")
@pytest.mark.parametrize("kind", ["mlp", "conv1d", "own"])
def test_what_is_saved_draws_the_same(
    linear_gaussian: LinearGaussian, brief: LearnerOptions, tmp_path: Path, kind: str
) -> None:
    options = replace(brief, embedding=replace(brief.embedding, channels=2 if kind == "conv1d" else 1))
    embedding = Halves() if kind == "own" else kind
    theta, x = repeated(linear_gaussian, 200, 0)
    posterior = TemperedPosterior.fit(theta, x, linear_gaussian.prior, options=options, embedding=embedding)
    assert posterior.dim_x == 12 and posterior.features(x).shape == (200, 3)
    saved = json.loads((posterior.save(tmp_path) / "posterior.json").read_text())
    assert saved["format"] in (4, 6)  # a guide, without frames or with
    loaded = TemperedPosterior.load(tmp_path, embedding=Halves() if kind == "own" else None)
    for x_o in (x[0], 100 * x[1]):
        draws = posterior.sample((20,), x=x_o, beta=0.5, seed=0)
        torch.testing.assert_close(loaded.sample((20,), x=x_o, beta=0.5, seed=0), draws)
    batch = loaded.sample_batched((5,), x[:7], beta=0.5, seed=1)
    assert batch.shape == (5, 7, 2)
    with pytest.raises(Exception, match="expected an observation of 12 numbers"):
        loaded.sample((5,), x=x[0, :3])


def test_a_module_of_ones_own_needs_its_code(
    linear_gaussian: LinearGaussian, brief: LearnerOptions, tmp_path: Path
) -> None:
    theta, x = repeated(linear_gaussian, 200, 0)
    module = Halves()
    before = [p.clone() for p in module.parameters()]
    posterior = TemperedPosterior.fit(theta, x, linear_gaussian.prior, options=brief, embedding=module)
    # The user's object stays as it was; a copy learned.
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    posterior.save(tmp_path)
    with pytest.raises(SavedModelError, match=r"Halves, whose weights are saved but not its code.*embedding=Halves\("):
        TemperedPosterior.load(tmp_path)
    with pytest.raises(SavedModelError, match="the embedding Halves is not the one that was trained"):
        TemperedPosterior.load(tmp_path, embedding=Halves(width=5))
    with pytest.raises(SavedModelError, match="the embedding Linear is not the one that was trained, Halves"):
        TemperedPosterior.load(tmp_path, embedding=nn.Linear(12, 3))
    plain = TemperedPosterior.fit(theta, x, linear_gaussian.prior, options=brief)
    with pytest.raises(SavedModelError, match="trained without a module of your own"):
        TemperedPosterior.load(plain.save(tmp_path / "plain"), embedding=module)


class Wrong(nn.Module):
    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result

    def forward(self, x: Tensor) -> Any:
        return self.result(x)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Linear(5, 3), r"Linear was called on x of shape \(8, 12\), scaled, and raised RuntimeError"),
        (Wrong(lambda x: x[:, 0]), r"expected Wrong to map \(8, 12\) to \(n, m\), got shape \(8,\)"),
        (Wrong(lambda x: x[:, None]), r"got shape \(8, 1, 12\)"),
        (Wrong(lambda x: 3), "got int"),
    ],
)
def test_an_unusable_module_is_explained(
    linear_gaussian: LinearGaussian, brief: LearnerOptions, module: nn.Module, message: str
) -> None:
    theta, x = repeated(linear_gaussian, 200, 0)
    with pytest.raises(DataError, match=message):
        TemperedPosterior.fit(theta, x, linear_gaussian.prior, options=brief, embedding=module)


def test_series_must_be_of_equal_length(linear_gaussian: LinearGaussian, brief: LearnerOptions) -> None:
    theta, x = repeated(linear_gaussian, 200, 0)
    options = replace(brief, embedding=replace(brief.embedding, channels=5))
    with pytest.raises(DataError, match="x has 12 numbers, which are not 5 series of equal length"):
        TemperedPosterior.fit(theta, x, linear_gaussian.prior, options=options, embedding="conv1d")


@pytest.mark.parametrize(("channels", "length"), [(1, 1), (1, 7), (3, 9), (2, 100)])
def test_series_of_any_length(channels: int, length: int) -> None:
    options = EmbeddingOptions(channels=channels)
    embedding = Embedding.build("conv1d", channels * length, 3, options)
    z = torch.randn(5, 2, channels * length)
    embedding.standardize(z.flatten(0, 1))
    assert embedding(z).shape == (5, 2, 3)
    assert embedding(z).isfinite().all()
    again = Embedding.restore(embedding.as_dict(), embedding.state_dict())
    assert torch.equal(again(z), embedding(z))


def test_all_numbers_of_a_series_are_scaled_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(50, 8, generator=generator).exp(), torch.randn(50, 8, generator=generator)], dim=1)
    x[:, 3] = x[:, 3].abs() * 100 + 1  # alone it would be taken on another scale
    features = Features("conv1d", EmbeddingOptions(channels=2), torch.device("cpu"))
    rows = Rows()
    rows.append(x.double())
    features.fit_scaling(rows, torch.arange(len(x)))
    scaling = features.known_scaling
    assert isinstance(scaling, DataScaling)
    for part in (scaling.logarithmic, scaling.center, scaling.scale):
        assert len(part[:8].unique()) == len(part[8:].unique()) == 1
    assert scaling.logarithmic[0] and not scaling.logarithmic[8]


def test_what_an_embedding_gives_is_standardized_with_long_tails() -> None:
    torch.manual_seed(0)
    embedding = Embedding.build("mlp", 4, 2, EmbeddingOptions(hidden=(8,)))
    z = torch.randn(4000, 4)
    embedding.standardize(z)
    with torch.no_grad():
        e = embedding(z)
        assert (e.median(dim=0).values.abs() < 0.05).all()
        assert ((e.quantile(0.84, dim=0) - e.quantile(0.16, dim=0) - 2).abs() < 0.1).all()
        assert embedding(1e6 * z[:10]).abs().max() < 25


def test_the_same_seed_gives_the_same_posterior(linear_gaussian: LinearGaussian, brief: LearnerOptions) -> None:
    theta, x = repeated(linear_gaussian, 200, 0)
    first, second = (
        TemperedPosterior.fit(theta, x, linear_gaussian.prior, options=brief, seed=5, embedding="mlp") for _ in range(2)
    )
    torch.testing.assert_close(first.sample((9,), x=x[0], seed=0), second.sample((9,), x=x[0], seed=0))
