"""How much simulations count that were proposed from another density than the prior."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Independent, Normal

from learners.distillation import DistillationOptions
from learners.learner import Learner
from learners.options import LearnerOptions
from learners.pairs import JointPairs
from learners.simulations import Simulations, truncated_weights
from learners.source import TrainingRows
from learners.surrogate import Surrogate, SurrogateOptions
from learners.training import TrainOptions

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
    found.features.fit_scaling(found.material.data.x, torch.arange(len(theta)))
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


def test_a_surrogate_is_scored_and_its_members_stop_by_what_is_worth_more() -> None:
    # Two laws for the same u; the rarer and wider is worth nine times as much.
    generator = torch.Generator().manual_seed(0)
    first = torch.arange(600) % 4 == 0
    z = torch.where(first, 1.0, 0.1)[:, None] * torch.randn(600, 1, generator=generator)
    u, held_out, worth = torch.zeros(600, 1), torch.arange(600) % 5 == 0, torch.where(first, 9.0, 1.0)
    options = TrainOptions(max_epochs=60, patience=60, batch_size=64, learning_rate=1e-2)

    def fit(worth: torch.Tensor | None) -> tuple[float, torch.Tensor]:
        rows = TrainingRows(u, torch.ones(600, dtype=torch.bool), held_out, z, z, worth=worth)
        surrogate = Surrogate(1, 1, SurrogateOptions(members=("gaussian",), hidden=(8,)), seed=0)
        loss = surrogate.fit(rows, options, torch.Generator().manual_seed(1))
        return loss, surrogate.member_log_prob(u[held_out], z[held_out])[0].detach()

    def score(log_p: torch.Tensor) -> float:
        return -float(log_p @ worth[held_out] / worth[held_out].sum())

    loss, log_p = fit(worth)
    assert loss == pytest.approx(score(log_p), abs=1e-5)
    # Both go through the same epochs; without weights the one is kept that suits the more frequent law.
    plain_loss, plain_log_p = fit(None)
    assert plain_loss == pytest.approx(-float(plain_log_p.mean()), abs=1e-5)
    assert score(plain_log_p) > loss + 0.1


def real_pairs(shift: float, scale: float, n: int = 4000) -> JointPairs:
    """Of simulations whose theta was drawn from a normal density beside the prior; a pass has 100,000 pairs."""
    proposal = Normal(shift, scale)
    generator = torch.Generator().manual_seed(5)  # not the learner's own, which says what is held out
    theta = shift + scale * torch.randn(n, 1, generator=generator)
    x = theta + torch.randn(n, 1, generator=generator)
    once = SurrogateOptions(hidden=(8,), training=TrainOptions(max_epochs=1))
    found = Learner(PRIOR, (0.1, 2.0), options=LearnerOptions(surrogate=once), source="ratio")
    found.add(Simulations(theta.double(), x.double(), proposal.log_prob(theta)[:, 0].double()))
    found.fit_surrogate()
    [pairs] = found._teaching().joint_pairs(DistillationOptions(pairs=100_000))
    return pairs


def test_real_pairs_are_drawn_as_if_their_theta_came_from_the_prior() -> None:
    u, _, _ = real_pairs(0.7, 1.2).draw(20_000, torch.Generator().manual_seed(2))
    assert float(u.mean()) == pytest.approx(0.0, abs=0.06)
    assert float(u.std()) == pytest.approx(1.0, abs=0.06)


def test_real_pairs_come_twenty_times_a_pass_by_their_effective_number() -> None:
    # From the prior itself all count alike; of draws of a narrow density far away, few do.
    alike = real_pairs(0.0, 1.0, n=1000)
    assert alike.share * 100_000 == pytest.approx(20 * len(alike.weight))
    few = real_pairs(1.5, 0.6, n=1000)
    effective = float(few.weight.sum().square() / few.weight.square().sum())
    assert effective < 0.2 * len(few.weight)
    assert few.share * 100_000 == pytest.approx(20 * effective, rel=1e-4)
