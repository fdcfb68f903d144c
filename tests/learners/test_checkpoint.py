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
    members = ("linear", "gaussian", "process", "waves")
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
