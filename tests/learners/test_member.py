"""The members of the ensemble: densities of the data given parameters, each kind in its own way."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from learners.committee import CommitteeMean
from learners.member import KINDS, Member
from learners.source import TrainingRows
from learners.surrogate import Surrogate, SurrogateOptions, _stack
from learners.threads import Threads
from learners.training import TrainOptions

QUICK = TrainOptions(max_epochs=3, patience=3)


def curve(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """`z = (sin 2 u_1, u_1 + u_2) + 0.1 noise` at normal `u` `(n, 2)`."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(n, 2, generator=generator)
    mean = torch.stack([torch.sin(2 * u[:, 0]), u.sum(dim=1)], dim=1)
    return u, mean + 0.1 * torch.randn(n, 2, generator=generator)


def fitted(kind: str, options: TrainOptions = QUICK, n: int = 300) -> tuple[Member, float]:
    torch.manual_seed(0)
    member = Member(kind, 2, 2, (16, 16))
    u, z = curve(n, 1)
    loss = member.fit(u, z, torch.arange(n) % 10 == 0, options, torch.Generator().manual_seed(2))
    return member, loss


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "rounded"])  # that of data on a lattice
def test_every_kind_is_a_density_from_which_it_draws(kind: str) -> None:
    member, loss = fitted(kind)
    u, z = curve(300, 1)
    held_out = torch.arange(300) % 10 == 0
    with torch.no_grad():
        assert -float(member.log_prob(u[held_out], z[held_out]).mean()) == pytest.approx(loss, abs=1e-4)
        point = u[:1].expand(20_000, 2)
        draws = member.sample(point)
        # E_p[h / p] = 1 for a density h with lighter tails than p.
        center, spread = draws.mean(dim=0), 0.6 * draws.std(dim=0)
        narrow = torch.distributions.Independent(torch.distributions.Normal(center, spread), 1)
        ratio = torch.exp(narrow.log_prob(draws) - member.log_prob(point, draws))
    assert float(ratio.mean()) == pytest.approx(1.0, abs=5 * float(ratio.std()) / len(draws) ** 0.5)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "rounded"])
def test_its_slope_is_that_of_its_density(kind: str) -> None:
    member, _ = fitted(kind)
    member = member.double()  # for the differences
    u, z = (column.double() for column in curve(20, 7))
    at = u.requires_grad_()
    (slope,) = torch.autograd.grad(member.log_prob(at, z).sum(), at)
    step = 1e-5
    with torch.no_grad():
        for i in range(2):
            moved = step * torch.eye(2, dtype=torch.float64)[i]
            difference = (member.log_prob(u + moved, z) - member.log_prob(u - moved, z)) / (2 * step)
            torch.testing.assert_close(slope[:, i], difference, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["linear", "gaussian", "committee", "committee-gaussian", "process"])
def test_the_middle_of_what_is_symmetric_is_its_mean(kind: str) -> None:
    member, _ = fitted(kind)
    u = curve(3, 5)[0]
    with torch.no_grad():
        draws = torch.stack([member.sample(u) for _ in range(4000)])
        error = (member.middle(u) - draws.mean(dim=0)) / draws.std(dim=0)
    assert error.abs().max() < (0.1 if kind != "process" else 0.5)  # its noise need not be symmetric


def test_the_linear_kind_is_least_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(2000, 2, generator=generator)
    noise = torch.randn(2000, 2, generator=generator) @ torch.tensor([[0.5, 0.3], [0.0, 0.4]])
    z = 1 + u @ torch.tensor([[2.0, -1.0], [0.5, 1.0]]) + noise
    member = Member("linear", 2, 2, (16,))
    loss = member.fit(u, z, torch.arange(2000) < 1000, QUICK, generator)
    covariance = torch.tensor([[0.34, 0.12], [0.12, 0.16]])
    entropy = 0.5 * math.log((2 * math.pi * math.e) ** 2 * float(torch.linalg.det(covariance)))
    assert loss == pytest.approx(entropy, abs=0.06)


LONG = TrainOptions(max_epochs=200, patience=200)


def committee(u: Tensor, z: Tensor, networks: int = 4, threads: int = 1) -> tuple[CommitteeMean, Tensor]:
    torch.manual_seed(0)
    made = CommitteeMean(u.shape[1], z.shape[1], (64, 64), networks)
    nothing, generator = torch.zeros(len(u), dtype=torch.bool), torch.Generator().manual_seed(0)
    with Threads(threads) as sharing:
        return made, made.fit(u, z, nothing, torch.arange(len(u)), LONG, generator, sharing)


def test_a_committee_finds_a_curve_and_knows_what_it_leaves() -> None:
    u, z = curve(300, 1)
    mean, left = committee(u, z)
    fresh_u, fresh_z = curve(1000, 5)
    with torch.no_grad():
        error = (fresh_z - mean(fresh_u)).abs().quantile(0.68)
        fitted = (z - mean(u)).abs().quantile(0.68)
    assert float(error) == pytest.approx(0.1, rel=0.3)
    # What is left of simulations that were not shown tells the error at new points, of three quarters of the data.
    assert 0.85 < float(left.abs().quantile(0.68) / error) < 1.3
    assert float(fitted) < float(left.abs().quantile(0.68))


def test_a_committee_is_not_flattered_by_what_it_has_learned_by_heart() -> None:
    generator = torch.Generator().manual_seed(3)
    u, z = torch.randn(60, 5, generator=generator), torch.randn(60, 1, generator=generator)
    mean, left = committee(u, z)
    with torch.no_grad():
        assert float((z - mean(u)).std()) < 0.8 * float(z.std())
    assert float(left.std()) > 0.9 * float(z.std())


def test_each_of_eight_networks_leaves_out_simulations_of_its_own() -> None:
    """By heart: what a network was shown it repeats, and what it was not it cannot know."""
    generator = torch.Generator().manual_seed(3)
    u, z = torch.randn(80, 5, generator=generator), torch.randn(80, 1, generator=generator)
    mean, left = committee(u, z, networks=8)
    with torch.no_grad():
        error = (mean.each(u) * mean.spread + mean.center - z).squeeze(-1).abs()
        blind = (error - left.squeeze(-1).abs()).abs() < 1e-5
    assert (blind.sum(dim=0) == 1).all() and (blind.sum(dim=1) > 0).all()
    assert float(error[blind].mean()) > 1.5 * float(error[~blind].mean())


def test_how_many_threads_a_committee_has_changes_nothing() -> None:
    u, z = curve(200, 1)
    (one, left_one), (two, left_two) = (committee(u, z, 8, threads) for threads in (1, 2))
    assert torch.equal(left_one, left_two)
    with torch.no_grad():
        assert torch.equal(one(u), two(u))


def test_the_voices_of_a_committee_differ_as_its_mean_does_from_others() -> None:
    """The spread of one committee's voices against that of the means of many committees of other beginnings."""
    u, z = curve(200, 1)
    far, nothing = torch.tensor([[2.5, 2.5]]), torch.zeros(200, dtype=torch.bool)
    means, spreads = [], []
    for seed in range(8):
        torch.manual_seed(seed)
        made = CommitteeMean(2, 2, (32, 32))
        options = TrainOptions(max_epochs=30, patience=30)
        made.fit(u, z, nothing, torch.arange(200), options, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            means.append(made(far)[0])
            spreads.append(made.voices(far)[:, 0].var(dim=0))
            torch.testing.assert_close(made.voices(far).mean(dim=0), made(far))
    said, seen = torch.stack(spreads).mean(dim=0), torch.stack(means).var(dim=0)
    assert (said / seen).log().abs().max() < math.log(4), (said, seen)


def test_single_simulations_that_go_wrong_do_not_move_a_committee() -> None:
    u, z = curve(300, 1)
    wrong = torch.arange(300) % 15 == 0
    mean, _ = committee(u, torch.where(wrong[:, None], z + 20.0, z))
    fresh_u, fresh_z = curve(1000, 5)
    with torch.no_grad():
        assert float((fresh_z - mean(fresh_u)).abs().quantile(0.68)) < 0.2


def test_graded_correlations_are_where_there_are_some() -> None:
    """What two columns share is large on one side of u and nothing on the other: constant ones fit neither."""

    def draw(n: int, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        u = torch.randn(n, 2, generator=generator)
        shared = torch.sigmoid(8 * u[:, :1]) * torch.randn(n, 1, generator=generator)
        return u, shared + 0.5 * torch.randn(n, 2, generator=generator)

    def member(graded: bool) -> Member:
        torch.manual_seed(0)
        made = Member("committee-graded" if graded else "committee-gaussian", 2, 2, (32, 32))
        rows = torch.arange(4000)
        options = TrainOptions(max_epochs=40, patience=10)
        made.fit(*draw(4000, 1), rows % 10 == 0, options, torch.Generator().manual_seed(2))
        return made

    def correlation(made: Member, u_1: float) -> float:
        with torch.no_grad():
            draws = made.sample(torch.tensor([[u_1, 0.0]]).expand(20_000, 2))
        return float(torch.corrcoef(draws.T)[0, 1])

    graded, constant = member(True), member(False)
    assert correlation(graded, -1.5) < 0.15 < 0.6 < correlation(graded, 1.5)  # 0 and 0.8
    assert correlation(constant, -1.5) > 0.3
    u, z = draw(4000, 3)
    with torch.no_grad():
        assert graded.log_prob(u, z).mean() > constant.log_prob(u, z).mean() + 0.03


@pytest.mark.parametrize(("kind", "networks", "layers"), [("committee-graded", 4, 2), ("committee", 8, 3)])
def test_saved_committees_keep_their_sizes(kind: str, networks: int, layers: int) -> None:
    """Weights by name, number of networks and of layers: other ones, and saved surrogates could not be read."""
    weights = {k: tuple(v.shape) for k, v in Member(kind, 5, 3, (16, 16)).mean.state_dict().items()}  # type: ignore[union-attr]
    sizes = [3, *(16 for _ in range(layers)), 5]
    expected = {f"weights.{i}": (networks, sizes[i], sizes[i + 1]) for i in range(layers + 1)}
    expected |= {f"biases.{i}": (networks, 1, sizes[i + 1]) for i in range(layers + 1)}
    assert weights == expected | {"log_scale": (5,), "center": (5,), "spread": (5,), "standardized": ()}


@pytest.mark.parametrize(("n", "d", "k"), [(60, 1, 1), (60, 30, 2), (1500, 2, 3)])
def test_a_committee_of_any_size(n: int, d: int, k: int) -> None:
    u = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    z = u[:, :1].expand(n, k).clone()
    z[:, -1] = 3.0  # a constant
    mean, left = committee(u, z)
    assert left.isfinite().all()
    with torch.no_grad():
        torch.testing.assert_close(mean(u)[:, -1], z[:, -1], rtol=0, atol=0.05)
        assert float((mean(u) - z).abs().mean()) < 0.2
        assert mean(u.reshape(n // 2, 2, d)).shape == (n // 2, 2, k)


def steep(kind: str) -> tuple[Surrogate, Tensor, Tensor]:
    """A line and a member that counts alone, for the data are no line; `u` and `z` `(400, 2)`."""
    u, z = curve(400, 1)
    z = z + 5 * torch.sin(2 * u)
    surrogate = Surrogate(2, 2, SurrogateOptions(members=("linear", kind), hidden=(16, 16)), seed=0)
    rows = TrainingRows(u, torch.ones(400, dtype=torch.bool), torch.arange(400) % 10 == 0, z, z)
    surrogate.fit(rows, LONG, torch.Generator().manual_seed(0))
    assert surrogate.weights.tolist() == [0.0, 1.0]
    return surrogate, u, z


def test_members_that_do_not_count_are_left_out() -> None:
    surrogate, u, z = steep("committee-gaussian")
    with torch.no_grad():
        torch.testing.assert_close(surrogate.log_prob(u, z), surrogate.members[1].log_prob(u, z))


def test_a_committee_that_counts_alone_disagrees_by_its_networks() -> None:
    surrogate, u, z = steep("committee")
    with torch.no_grad():
        said, pooled = surrogate.member_log_prob(u[:50], z[:50]), surrogate.log_prob(u[:50], z[:50])
    assert said.shape == (8, 50)
    spread = said.std(dim=0)
    assert (spread > 0).all()
    assert float(((said.mean(dim=0) - pooled).abs() / spread).median()) < 1


# A row's worth is for equal weights.
@pytest.mark.parametrize(("least", "weights"), [(0.01, [190.5 / 201, 10.5 / 201]), (0.1, [1.0, 0.0])])
def test_weights_below_the_least_are_none(least: float, weights: list[float]) -> None:
    # The second member alone explains one simulation in twenty.
    log_p = torch.zeros(2, 200)
    log_p[0, :10], log_p[1, 10:] = -50.0, -50.0
    torch.testing.assert_close(
        _stack(log_p, ["a", "b"], least, torch.ones(200)), torch.tensor(weights), rtol=0, atol=1e-3
    )


def test_rows_count_as_they_are_worth() -> None:
    # Half of the rows, each explained by one member only; the first half counts three times as much.
    log_p = torch.zeros(2, 200)
    log_p[0, :100], log_p[1, 100:] = -50.0, -50.0
    worth = torch.cat([torch.full((100,), 3.0), torch.ones(100)])
    torch.testing.assert_close(_stack(log_p, ["a", "b"], 0.01, worth), torch.tensor([0.25, 0.75]), rtol=0, atol=2e-3)


def test_few_rows_do_not_choose_a_single_member() -> None:
    # One of ten members is a third of a nat better.
    log_p = torch.zeros(10, 1)
    log_p[3] = 1 / 3
    kinds = [str(i) for i in range(10)]

    def weights(rows: int) -> Tensor:
        return _stack(log_p.expand(-1, rows), kinds, 0.01, torch.ones(rows))

    assert 0.1 < float(weights(5)[3]) < 0.6
    assert float(weights(2000)[3]) > 0.99
    # One that is absurd has no weight, however few rows there are.
    log_p[0] = -1000.0
    assert weights(5)[0] == 0 and (weights(5)[1:] > 0).all()


def test_members_of_one_kind_weigh_the_same() -> None:
    log_p = torch.randn(3, 200, generator=torch.Generator().manual_seed(0))
    log_p[0] += 0.5
    weights = _stack(log_p, ["a", "a", "b"], 0.01, torch.ones(200))
    assert float(weights[0]) == pytest.approx(float(weights[1]))
    # As if they were one member, a mixture of both in equal parts.
    one = torch.stack([log_p[:2].logsumexp(dim=0) - math.log(2), log_p[2]])
    torch.testing.assert_close(weights[2], _stack(one, ["a", "b"], 0.01, torch.ones(200))[1], rtol=0, atol=1e-3)


def test_the_pool_is_the_mean_of_logarithms() -> None:
    u, z = curve(400, 1)
    surrogate = Surrogate(2, 2, SurrogateOptions(members=("gaussian", "gaussian"), hidden=(16, 16)), seed=0)
    everything = torch.ones(400, dtype=torch.bool)
    rows = TrainingRows(u, everything, torch.arange(400) % 10 == 0, z, z)
    surrogate.fit(rows, QUICK, torch.Generator().manual_seed(0))
    surrogate.weights.copy_(torch.tensor([0.25, 0.75]))
    with torch.no_grad():
        first, second = surrogate.member_log_prob(u, z)
        torch.testing.assert_close(surrogate.log_prob(u, z), 0.25 * first + 0.75 * second)
        one, other = (member.middle(u) for member in surrogate.members)  # type: ignore[operator]
        torch.testing.assert_close(surrogate.middle(u), 0.25 * one + 0.75 * other)


def test_a_simulator_that_is_a_line_in_a_uniform_parameter_is_one_for_least_squares() -> None:
    """`z = 3 t + noise` with `t` uniform, whose whitened `u = Phi^{-1}((t + 1) / 2)` is no line."""
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(500, 1, generator=generator)
    noise = 0.1 * torch.randn(500, 1, generator=generator)
    z = 3 * (2 * torch.special.ndtr(u) - 1) + noise
    held_out = torch.arange(500) % 5 == 0
    straight, plain = (Member("linear", 1, 1, (8,), curved) for curved in ([0], []))
    best = 0.5 * math.log(2 * math.pi * math.e * 0.01)
    assert straight.fit(u, z, held_out, QUICK, generator) < best + 0.15
    assert plain.fit(u, z, held_out, QUICK, generator) > best + 0.5


def test_members_without_weight_wait_until_there_is_more_to_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[str] = []
    plain = Member.fit

    def fit(member: Member, *arguments: Any, **options: Any) -> float:
        fits.append(member.kind.flow)
        return plain(member, *arguments, **options)

    monkeypatch.setattr(Member, "fit", fit)
    surrogate = Surrogate(2, 2, SurrogateOptions(members=("linear", "gaussian"), hidden=(16, 16)), seed=0)

    def learn(n: int) -> list[str]:
        fits.clear()
        u, z = curve(n, 1)
        rows = TrainingRows(u, torch.ones(n, dtype=torch.bool), torch.arange(n) % 10 == 0, z, z)
        surrogate.fit(rows, QUICK, torch.Generator().manual_seed(0))
        return sorted(fits)

    assert learn(400) == ["gaussian", "linear"]
    surrogate.weights.copy_(torch.tensor([0.0, 1.0]))
    assert learn(500) == ["gaussian"]
    surrogate.weights.copy_(torch.tensor([0.0, 1.0]))
    assert learn(600) == ["gaussian", "linear"]
