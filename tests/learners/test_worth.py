"""How much simulations count that were proposed from another density than the prior."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Independent, Normal

from learners.learner import Learner
from learners.simulations import Simulations, truncated_weights

PRIOR = Independent(Normal(torch.zeros(1), torch.ones(1)), 1)


def test_no_weight_is_above_root_n_times_the_mean() -> None:
    log_weight = torch.zeros(100)
    log_weight[0] = 8.0
    weight = truncated_weights(log_weight)
    assert float(weight[0]) == pytest.approx(10 * float(log_weight.exp().mean()))
    torch.testing.assert_close(weight[1:], torch.ones(99))


def learner(log_proposal: torch.Tensor, x_o: torch.Tensor | None = None) -> Learner:
    """One whose simulations have theta of minus and plus one half by turns."""
    found = Learner(PRIOR, (0.1, 2.0), x_o)
    theta = torch.full((len(log_proposal), 1), 0.5).double()
    theta[::2] = -0.5
    found.add(Simulations(theta, theta.clone(), log_proposal.double()))
    found.features.fit_scaling(found.data.x, torch.arange(len(theta)))
    return found


def test_where_proposals_are_rare_a_simulation_counts_for_more() -> None:
    log_prior = PRIOR.log_prob(torch.tensor([0.5]))
    log_proposal = (log_prior + 0.7).repeat(100)
    log_proposal[::2] = log_prior - 0.7
    weight = learner(log_proposal)._rows().worth
    assert weight is not None
    torch.testing.assert_close((weight[0] / weight[1]).log(), torch.tensor(1.4))


def test_where_nobody_knows_the_proposals_all_count_alike() -> None:
    assert learner(torch.full((100,), float("nan")))._rows().worth is None


def test_where_an_observation_is_given_nothing_is_weighted() -> None:
    assert learner(torch.randn(100), torch.zeros(1))._rows().worth is None
