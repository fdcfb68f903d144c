"""A learner that continues where another one was."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from problems import LinearGaussian

from learners import LearnerOptions
from learners.checkpoint import dump_learner, restore_learner
from learners.learner import Learner
from simulators.errors import SavedModelError


def learner(problem: LinearGaussian, options: LearnerOptions, *members: str) -> Learner:
    surrogate = replace(options.surrogate, members=members)
    made = Learner(problem.prior, (0.1, 2.0), torch.zeros(2), replace(options, surrogate=surrogate), seed=1)
    made.add_prior_draws(*problem.draw(200, seed=0))
    return made


def test_the_restored_learner_gives_the_same_answers(linear_gaussian: LinearGaussian, tiny: LearnerOptions) -> None:
    members = ("linear", "committee-gaussian", "process", "waves")
    first = learner(linear_gaussian, tiny, *members)
    first.fit_surrogate(final=False)
    first.fit_posterior(final=False)
    second = learner(linear_gaussian, tiny, *members)
    restore_learner(second, dump_learner(first))
    assert first.source is not None and second.source is not None
    u, z = torch.randn(20, 2), torch.randn(20, 2)
    with torch.no_grad():
        assert torch.equal(first.source.log_prob(u, z), second.source.log_prob(u, z))
    theta = linear_gaussian.draw(10, seed=3)[0]
    assert torch.equal(*(one.posterior().log_prob(theta, beta=0.5) for one in (first, second)))
    # It goes on from there, with a short training instead of one from scratch.
    assert second.source.fitted
    assert second.fit_surrogate(final=False) == pytest.approx(first.fit_surrogate(final=False), abs=1.0)


@pytest.mark.parametrize("name", ["ratio", "cost"])
@pytest.mark.parametrize("embedding", [None, "mlp", "own"])
def test_every_source_and_embedding_is_restored(
    linear_gaussian: LinearGaussian, tiny: LearnerOptions, name: str, embedding: str | None
) -> None:
    def new(seed: int) -> Learner:
        module = torch.nn.Linear(2, 3) if embedding == "own" else embedding
        distance = (lambda a, b: (a - b).abs().sum(dim=-1)) if name == "cost" else None
        made = Learner(linear_gaussian.prior, (0.1, 2.0), torch.zeros(2), tiny, 1, None, None, name, distance, module)
        made.add_prior_draws(*linear_gaussian.draw(200, seed))
        return made

    first, second = new(0), new(0)
    first.fit_surrogate(final=False)
    first.fit_posterior(final=False)
    restore_learner(second, dump_learner(first))
    theta, x = linear_gaussian.draw(10, seed=3)
    assert torch.equal(*(one.posterior().log_prob(theta, x=x, beta=0.5) for one in (first, second)))
    assert first.source is not None and second.source is not None and second.source.fitted
    u, z = theta, first.features(x)
    with torch.no_grad():
        assert torch.equal(first.source.log_prob(u, z), second.source.log_prob(u, second.features(x)))
    restored = second.source
    assert second.fit_surrogate(final=False) == pytest.approx(first.fit_surrogate(final=False), abs=1.0)
    assert second.source is restored
    second.fit_surrogate(final=True)
    # A final fit learns an embedding anew, and then all that saw the old one.
    assert (second.source is restored) == (embedding is None)


def test_the_state_of_another_source_or_embedding_is_refused(
    linear_gaussian: LinearGaussian, tiny: LearnerOptions
) -> None:
    def new(source: str, embedding: str | None) -> Learner:
        made = Learner(linear_gaussian.prior, (0.1, 2.0), options=tiny, source=source, embedding=embedding)
        made.add_prior_draws(*linear_gaussian.draw(200, seed=0))
        return made

    first = new("ratio", "mlp")
    first.fit_surrogate(final=False)
    first.fit_posterior(final=False)
    raw = dump_learner(first)
    for source, embedding in (("surrogate", "mlp"), ("ratio", None), ("ratio", "conv1d")):
        other = new(source, embedding)
        with pytest.raises(SavedModelError, match="checkpoint cannot be used: expected"):
            restore_learner(other, raw)
        assert other.source is None and other.features.scaling is None and other.features.embedding is None


def test_another_ensemble_or_a_damaged_state_is_refused(linear_gaussian: LinearGaussian, tiny: LearnerOptions) -> None:
    first = learner(linear_gaussian, tiny, "gaussian")
    first.fit_surrogate(final=False)
    first.fit_posterior(final=False)
    raw = dump_learner(first)
    other = learner(linear_gaussian, tiny, "linear")
    for damaged in (raw, raw[:-10], b"nothing"):
        with pytest.raises(SavedModelError):
            restore_learner(other, damaged)
        assert other.source is None
