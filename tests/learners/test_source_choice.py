"""What goes together, and what every source can do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import LinearGaussian

from learners import LearnerOptions, TemperedPosterior
from learners.learner import Learner
from learners.source_choice import SOURCES
from simulators.errors import DataError


def distance(x: torch.Tensor, x_o: torch.Tensor) -> torch.Tensor:
    return (x - x_o).square().sum(dim=-1)


def wanted(name: str) -> dict[str, Any]:
    return {"source": name, "distance": distance if name == "cost" else None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "ration"}, "no source 'ration'; did you mean 'ratio'"),
        ({"source": "cost"}, "source 'cost' needs a distance"),
        ({"distance": distance}, "a distance is for source 'cost', but the source is 'surrogate'"),
        ({"source": "ratio", "distance": distance}, "a distance is for source 'cost', but the source is 'ratio'"),
        ({"source": "ratio", "log_likelihood": distance}, "source 'ratio' is learned, but a log_likelihood"),
        ({"loss": distance, "log_likelihood": distance}, "log_likelihood or loss, not both"),
        ({"loss": distance, "embedding": "mlp"}, "leave the embedding out"),
        ({"embedding": "conv2d"}, "no embedding 'conv2d'; did you mean 'conv1d'"),
        ({"embedding": 3}, "expected an embedding mlp or conv1d or a torch.nn.Module, got 3"),
        ({"embedding": torch.nn.ReLU}, "give an object of the class, not the class"),
    ],
)
def test_what_does_not_go_together_is_refused(
    linear_gaussian: LinearGaussian, arguments: dict[str, Any], message: str
) -> None:
    theta, x = linear_gaussian.draw(60, seed=0)
    with pytest.raises(DataError, match=message):
        TemperedPosterior.fit(theta, x, linear_gaussian.prior, **arguments)


@pytest.mark.parametrize("name", SOURCES)
def test_simulations_that_fail_are_no_evidence_for_where_they_fail(
    linear_gaussian: LinearGaussian, paired: LearnerOptions, small: LearnerOptions, name: str
) -> None:
    """All with `theta_0 < 0` fail: an observation in the middle is the others' work."""
    theta, x = linear_gaussian.draw(2000, seed=1)
    x[theta[:, 0] < 0] = torch.nan
    options = small if name == "surrogate" else paired
    learner = Learner(linear_gaussian.prior, (0.5, 1.0), options=options, **wanted(name))
    learner.add_prior_draws(theta, x)
    learner.fit_surrogate()
    draws = learner.walk(torch.zeros(2), 1.0, 1000)
    without_failures = linear_gaussian.posterior(torch.zeros(2), 1.0)
    deviation = float(without_failures.covariance_matrix[0, 0]) ** 0.5
    assert float(torch.special.ndtr(torch.tensor(-0.1 / deviation))) > 0.4
    assert float((draws[:, 0] < -0.1).float().mean()) < 0.05


@pytest.mark.parametrize("name", SOURCES)
def test_training_goes_on_and_only_a_surrogate_predicts(
    linear_gaussian: LinearGaussian, tiny: LearnerOptions, name: str
) -> None:
    learner = Learner(linear_gaussian.prior, (0.2, 2.0), torch.zeros(2), tiny, **wanted(name))
    for seed in range(2):
        learner.add_prior_draws(*linear_gaussian.draw(100, seed))
        source = learner.source
        learner.fit_surrogate(final=False)
        learner.fit_posterior(final=False)
        assert source is None or source is learner.source
    assert learner.predicts == (name == "surrogate")
    assert learner.source is not None
    assert learner.source.pairs_are_draws == (name != "cost")
    u = torch.randn(9, 2)
    with torch.no_grad():
        assert learner.source.member_log_prob(u, torch.zeros(2)).shape[1:] == (9,)
        assert learner.source.log_valid(u).shape == (9,)
    if not learner.source.draws_x:
        with pytest.raises(NotImplementedError):
            learner.source.sample(u, torch.Generator())


@pytest.mark.parametrize("name", SOURCES)
def test_save_load_and_seed(linear_gaussian: LinearGaussian, tiny: LearnerOptions, name: str, tmp_path: Any) -> None:
    theta, x = linear_gaussian.draw(200, seed=0)
    one, other = (
        TemperedPosterior.fit(theta, x, linear_gaussian.prior, options=tiny, seed=4, **wanted(name)) for _ in range(2)
    )
    loaded = TemperedPosterior.load(one.save(tmp_path))
    draws = one.sample((20,), x=x[0], beta=0.3, seed=0)
    for again in (other, loaded):
        torch.testing.assert_close(again.sample((20,), x=x[0], beta=0.3, seed=0), draws)
