"""The likelihood ratio that classifiers learn, on problems whose posteriors are known."""

from __future__ import annotations

import math

import pytest
import torch
from problems import LinearGaussian
from torch import Tensor, nn

from learners import LearnerOptions, TemperedPosterior
from learners.learner import Learner
from learners.pair_ensemble import PairNetwork
from learners.ratio import Contrasts, Ratio
from learners.simulations import Simulations
from learners.source import TrainingRows
from learners.training import TrainOptions

X_O = torch.tensor([1.0, -0.5])
NOISE = 0.6


@pytest.fixture(scope="module")
def trained(linear_gaussian: LinearGaussian, paired: LearnerOptions) -> tuple[Learner, TemperedPosterior]:
    learner = Learner(linear_gaussian.prior, (0.3, 2.0), options=paired, source="ratio")
    learner.add_prior_draws(*linear_gaussian.draw(2000, seed=1))
    learner.fit_surrogate()
    learner.fit_posterior()
    return learner, learner.posterior()


@pytest.mark.parametrize("beta", [0.3, 1.0, 2.0])
def test_every_temperature_of_a_gaussian_problem(
    trained: tuple[Learner, TemperedPosterior], linear_gaussian: LinearGaussian, beta: float
) -> None:
    for x_o in (X_O, torch.tensor([-2.0, 1.5])):
        exact = linear_gaussian.posterior(x_o, beta)
        deviation = exact.covariance_matrix.diagonal().sqrt()
        draws = trained[1].sample((4000,), x=x_o, beta=beta, seed=0)
        assert ((draws.mean(dim=0) - exact.mean).abs() < 0.35 * deviation).all()
        assert (draws.std(dim=0) / deviation).log().abs().max() < 0.2


def test_the_walk_agrees_and_the_network_is_close_to_it(
    trained: tuple[Learner, TemperedPosterior], linear_gaussian: LinearGaussian
) -> None:
    learner, posterior = trained
    deviation = linear_gaussian.posterior(X_O, 0.3).covariance_matrix.diagonal().sqrt()
    walked, drawn = learner.walk(X_O, 0.3, 2000), posterior.sample((2000,), x=X_O, beta=0.3, seed=0)
    assert ((walked.mean(dim=0) - drawn.mean(dim=0)).abs() < 0.2 * deviation).all()


def test_each_member_is_the_ratio_itself(
    trained: tuple[Learner, TemperedPosterior], linear_gaussian: LinearGaussian
) -> None:
    """Nothing that depends on x alone is left free: `log p(x | theta) - log p(x)`, with the exact evidence."""
    learner, _ = trained
    assert learner.source is not None
    theta, x = linear_gaussian.draw(500, seed=9)
    matrix = linear_gaussian.matrix
    evidence = torch.distributions.MultivariateNormal(
        torch.zeros(2), 4 * matrix @ matrix.T + linear_gaussian.noise.square().diag()
    )
    exact = linear_gaussian.log_likelihood(theta, x) - evidence.log_prob(x)
    u, z = learner.whitening.to_u(theta).float(), learner.features(x)
    with torch.no_grad():
        members = learner.source.member_log_prob(u, z)
    assert members.shape == (3, 500)
    assert ((members - exact).abs().median(dim=1).values < 0.25).all()
    torch.testing.assert_close(learner.source.log_prob(u, z), members.mean(dim=0))


def test_the_loss_of_the_exact_ratio_is_lowest() -> None:
    """`z ~ N(u, NOISE^2)`, of whose ratio anything else is worse."""

    class Exact(nn.Module):
        def __init__(self, scale: float, shift: float) -> None:
            super().__init__()
            self.scale, self.shift = scale, shift

        def forward(self, u: Tensor, z: Tensor) -> Tensor:
            variance = 1 + NOISE**2
            log_ratio = -0.5 * ((z - u) / NOISE).square() - math.log(NOISE)
            log_ratio = log_ratio + 0.5 * z.square() / variance + 0.5 * math.log(variance)
            return self.scale * log_ratio.squeeze(-1) + self.shift

    generator = torch.Generator().manual_seed(0)
    u = torch.randn(20_000, 1, generator=generator)
    z = u + NOISE * torch.randn(20_000, 1, generator=generator)
    contrasts = Contrasts(u, z, torch.arange(20_000) % 2 == 0, generator)
    best = contrasts.score(Exact(1.0, 0.0))
    for other in (Exact(0.7, 0.0), Exact(1.3, 0.0), Exact(1.0, 0.4), Exact(1.0, -0.4)):
        assert contrasts.score(other) > best
    assert contrasts.score(Exact(1.0, 0.0)) == best


def test_simulations_from_a_narrow_proposal_give_the_same_posterior(
    linear_gaussian: LinearGaussian, paired: LearnerOptions
) -> None:
    generator = torch.Generator().manual_seed(0)
    proposal = torch.distributions.MultivariateNormal(torch.tensor([1.5, -1.0]), 1.5 * torch.eye(2))
    theta = proposal.mean + 1.5**0.5 * torch.randn(2000, 2, generator=generator)
    x = theta @ linear_gaussian.matrix.T + linear_gaussian.noise * torch.randn(2000, 2, generator=generator)
    learner = Learner(linear_gaussian.prior, (0.3, 2.0), X_O, paired, source="ratio")
    # No density is known: a ratio needs none.
    learner.add(Simulations.from_tensors(theta, x))
    learner.fit_surrogate()
    exact = linear_gaussian.posterior(X_O, 1.0)
    deviation = exact.covariance_matrix.diagonal().sqrt()
    draws = learner.walk(X_O, 1.0, 2000)
    assert ((draws.mean(dim=0) - exact.mean).abs() < 0.3 * deviation).all()
    assert (draws.std(dim=0) / deviation).log().abs().max() < 0.25


def test_pairs_broadcast_and_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    source = Ratio(2, 3, (16, 16), seed=1)
    for parameter in source.parameters():
        nn.init.normal_(parameter, std=0.3)
    u, z = torch.randn(6, 5, 2), torch.randn(6, 1, 3)
    with torch.no_grad():
        whole = source.log_prob(u, z)
        assert whole.shape == (6, 5)
        one_by_one = torch.stack([source.log_prob(u[:, j], z[:, 0]) for j in range(5)], dim=1)
        torch.testing.assert_close(whole, one_by_one)
        torch.testing.assert_close(source.log_prob(u[:, :, None], z[0, 0].expand(4, 3)).shape, (6, 5, 4))
        monkeypatch.setattr("learners.pair_ensemble._CHUNK", 7)
        torch.testing.assert_close(source.log_prob(u, z), whole)
        torch.testing.assert_close(source.log_prob(u[:, 0], z[:, 0]), whole[:, 0])


def test_many_data_have_no_products(linear_gaussian: LinearGaussian) -> None:
    assert PairNetwork(2, 40, (8,)).square_z is None
    assert PairNetwork(2, 40, (8,))(torch.randn(3, 2), torch.randn(3, 40)).tolist() == [0.0, 0.0, 0.0]


def test_a_later_fit_goes_on_and_the_same_seed_is_the_same_ratio(linear_gaussian: LinearGaussian) -> None:
    theta, x = linear_gaussian.draw(600, seed=1)
    u = theta / 2
    rows = TrainingRows(u, torch.ones(600, dtype=torch.bool), torch.arange(600) % 10 == 0, x, x.double())
    options = TrainOptions(max_epochs=8, patience=8)
    sources = [Ratio(2, 2, (24,), seed=3) for _ in range(2)]
    losses = [source.fit(rows, options, torch.Generator().manual_seed(0)) for source in sources]
    assert losses[0] == losses[1]
    with torch.no_grad():
        assert torch.equal(*(source.log_prob(u, x) for source in sources))
    again = sources[0].fit(rows, TrainOptions(max_epochs=4, patience=4), torch.Generator().manual_seed(1))
    assert again < losses[0] + 0.02
