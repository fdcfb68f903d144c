"""Whatever a process has told torch for its own purposes, the same is learned and drawn, and all stays as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from problems import LinearGaussian
from torch import Tensor, nn

from learners import LearnerOptions, TemperedPosterior
from learners.embedding import EmbeddingOptions
from learners.learner import Learner


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def answers(posterior: TemperedPosterior, x: Tensor, theta: Tensor) -> list[Tensor]:
    torch.manual_seed(0)
    return [
        posterior.sample((20,), x=x[0]),
        posterior.sample((20,), x=x[0], seed=0, refine=True),
        posterior.sample_batched((3,), x[:4], seed=0),
        posterior.log_prob(theta[:5], x=x[0]),
        posterior.map(x=x[0]),
    ]


def test_double_precision_is_the_callers_own(
    linear_gaussian: LinearGaussian, tiny: LearnerOptions, tmp_path: Path
) -> None:
    theta, x = linear_gaussian.draw(200, seed=1)
    arguments = (theta, x, linear_gaussian.prior, (0.2, 2.0), tiny)
    expected = answers(TemperedPosterior.fit(*arguments), x, theta)
    with double_precision():
        posterior = TemperedPosterior.fit(*arguments)
        assert torch.get_default_dtype() == torch.float64
        loaded = TemperedPosterior.load(posterior.save(tmp_path))
        for got, wanted in zip(answers(loaded, x, theta), expected, strict=True):
            assert got.dtype == torch.float32
            torch.testing.assert_close(got, wanted)
        assert torch.equal(posterior.sample((20,), x=x[0], seed=0), loaded.sample((20,), x=x[0], seed=0))
        assert 0 < posterior.efficiency(x=x[0]) <= 1
        learner = Learner(linear_gaussian.prior, (0.2, 2.0), x[0], tiny)
        learner.add_prior_draws(theta, x)
        learner.fit_surrogate()
        assert learner.walk(x[0], 1.0, 20).dtype == torch.float32
        assert learner.predict(theta[:3]).dtype == torch.float64


@pytest.mark.parametrize("embedding", ["mlp", "module"])
def test_embeddings_in_double_precision(
    linear_gaussian: LinearGaussian, tiny: LearnerOptions, tmp_path: Path, embedding: str
) -> None:
    theta, x = linear_gaussian.draw(200, seed=1)
    briefly = replace(tiny, embedding=EmbeddingOptions(training=tiny.surrogate.training))
    with double_precision():
        kind = nn.Linear(2, 3) if embedding == "module" else embedding
        fitted = TemperedPosterior.fit(theta, x, linear_gaussian.prior, (0.2, 2.0), briefly, embedding=kind)
        mine = nn.Linear(2, 3) if embedding == "module" else None
        loaded = TemperedPosterior.load(fitted.save(tmp_path), embedding=mine)
        torch.testing.assert_close(fitted.sample((9,), x=x[0], seed=0), loaded.sample((9,), x=x[0], seed=0))


@pytest.mark.parametrize("source", ["surrogate", "ratio"])
def test_training_has_its_own_gradients_and_generator(
    linear_gaussian: LinearGaussian, tiny: LearnerOptions, source: str
) -> None:
    theta, x = linear_gaussian.draw(100, seed=1)
    state = torch.random.get_rng_state()
    fits = []
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            fits.append(TemperedPosterior.fit(theta, x, linear_gaussian.prior, (0.2, 2.0), tiny, source=source))
            assert torch.is_grad_enabled() == gradients
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(*(fit.sample((9,), x=x[0], seed=0) for fit in fits))
