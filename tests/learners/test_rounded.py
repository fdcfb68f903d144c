"""The regression of counts and other data on a lattice: probabilities of cells."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Poisson

from learners.lattice import Lattice, lattice_steps, spread
from learners.member import Member
from learners.rounded import Rounded
from learners.scaling import DataScaling
from learners.source import TrainingRows
from learners.surrogate import Surrogate, SurrogateOptions
from learners.training import TrainOptions
from simulators.errors import DataError

LONG = TrainOptions(max_epochs=60, patience=60, learning_rate=5e-3)


def columns(n: int = 1000) -> Tensor:
    """Counts near zero, a continuous column, codes, counts over orders of magnitude, large counts, a constant."""
    generator = torch.Generator().manual_seed(0)
    rate = 3 * torch.rand(n, generator=generator, dtype=torch.float64)
    large = torch.poisson(4000 + 100 * rate, generator=generator)
    wide = torch.exp(2 * rate).round() + 1
    codes = (3 * torch.randint(0, 5, (n,), generator=generator) - 7).double()
    continuous = torch.randn(n, generator=generator, dtype=torch.float64)
    few = torch.poisson(rate, generator=generator)
    return torch.stack([few, continuous, codes, wide, large, torch.full_like(few, 2.5)], dim=1)


@pytest.fixture(scope="module")
def any_weights() -> tuple[Rounded, DataScaling, Tensor]:
    """With weights that say something else for every context."""
    x = columns()
    scaling = DataScaling.fit(x)
    torch.manual_seed(1)
    rounded = Rounded(x.shape[1], 1, (8,))
    rounded.set_lattice(Lattice(lattice_steps(x), x[0], scaling), scaling(x))
    for parameter in rounded.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.3)
    return rounded, scaling, x


def test_kinds_of_columns(any_weights: tuple[Rounded, DataScaling, Tensor]) -> None:
    rounded, scaling, _ = any_weights
    assert rounded.step.tolist() == [1, 0, 3, 1, 1, 1]
    assert scaling.root.tolist() == [True, False, False, False, True, False]
    assert scaling.logarithmic.tolist() == [False, False, False, True, False, False]


@pytest.mark.parametrize("column", [0, 1, 2, 5])
def test_the_density_integrates_to_one(any_weights: tuple[Rounded, DataScaling, Tensor], column: int) -> None:
    rounded, scaling, x = any_weights
    z = scaling(x[:1])
    log_density = rounded(torch.zeros(1, 1)).log_prob(z)
    lower, upper = float(scaling(torch.zeros_like(x[:1]) - 0.4999)[0, column]), 30.0
    along = torch.linspace(-30.0 if column in (1, 2, 5) else lower, upper, 200_001)
    line = z.expand(len(along), -1).clone()
    line[:, column] = along
    with torch.no_grad():
        # The other columns are the same everywhere; what this one adds at z follows from a point of its own.
        relative = rounded(torch.zeros(len(along), 1)).log_prob(line) - log_density
        own = column_log_density(rounded, z, column)
    total = float(torch.trapezoid((relative + own).exp().double(), along.double()))
    assert total == pytest.approx(1.0, abs=2e-3)


def column_log_density(rounded: Rounded, z: Tensor, column: int) -> float:
    """`log p(z_j)` of one column at `z` `(1, k)`, written out."""
    distribution = rounded(torch.zeros(len(z), 1))
    lower, upper, _, slope = rounded.cells(z)
    m, s = distribution.mean[0, column], distribution.log_scale[0, column].exp()
    if rounded.step[column] == 0:
        return float(torch.distributions.Normal(m, s).log_prob(z[0, column]))
    below = torch.special.ndtr((lower[0, column] - m) / s)
    return float((torch.special.ndtr((upper[0, column] - m) / s) - below).log() + slope[0, column])


def test_counts_have_probabilities_that_sum_to_one(any_weights: tuple[Rounded, DataScaling, Tensor]) -> None:
    rounded, scaling, x = any_weights
    counts = x[:1].expand(200, -1).clone()
    counts[:, 0] = torch.arange(200)
    z = scaling(counts)
    with torch.no_grad():
        # Over a cell the density is P / h |dx/dz|; the slope is taken off again.
        p = torch.tensor([math.exp(column_log_density(rounded, row[None], 0)) for row in z])
        p = p * torch.exp(-rounded.cells(z)[3][:, 0])
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-4)


def test_tails_are_finite_and_have_gradients(any_weights: tuple[Rounded, DataScaling, Tensor]) -> None:
    rounded, scaling, x = any_weights
    far = torch.cat([x, 1e3 * x, torch.zeros_like(x[:1])])
    c = torch.linspace(-30, 30, len(far))[:, None]
    log_p = rounded(c).log_prob(scaling(far))
    assert log_p.isfinite().all()
    rounded.zero_grad()
    log_p.mean().backward()
    gradients = [p.grad for p in rounded.parameters() if p.grad is not None]
    assert gradients
    assert all(g.isfinite().all() for g in gradients)


def test_narrow_cells_join_wide_ones_smoothly() -> None:
    """At the width where the density of the middle takes over, both agree."""
    rounded = Rounded(1, 1, (4,))
    x = torch.arange(100, dtype=torch.float64)[:, None] - 50
    scaling = DataScaling(torch.tensor([False]), torch.zeros(1), torch.ones(1))
    rounded.set_lattice(Lattice(torch.ones(1).double(), torch.zeros(1).double(), scaling), scaling(x))
    z = scaling(torch.tensor([[3.0]]).double())
    found = []
    for width in (0.0499, 0.0501):
        with torch.no_grad():
            rounded.linear.bias.copy_(torch.tensor([1.0, -math.log(width)]))
            found.append(float(rounded(torch.zeros(1, 1)).log_prob(z) - math.log(width)))
    assert found[0] == pytest.approx(found[1], abs=1e-3)


def counting(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Counts of three Poisson laws whose logarithms are lines in u, many of them near zero."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(n, 2, generator=generator)
    return u, torch.poisson(rates(u), generator=generator).double()


def rates(u: Tensor) -> Tensor:
    return torch.exp(torch.stack([2 * u[:, 0] - 2, u[:, 0] + u[:, 1] - 1, 0.5 * u[:, 1] + 3], dim=1))


def member(kind: str, n: int = 1000) -> tuple[Member, DataScaling]:
    u, x = counting(n, 1)
    scaling, steps, generator = DataScaling.fit(x), lattice_steps(x), torch.Generator().manual_seed(2)
    torch.manual_seed(0)
    found = Member(kind, 3, 2, (32, 32))
    z = scaling(spread(x, steps, generator))
    found.fit(u, z, torch.arange(n) % 10 == 0, LONG, generator, lattice=Lattice(steps, x[0], scaling))
    return found, scaling


def test_it_learns_poisson_counts_of_any_mean_and_better_than_a_density() -> None:
    """The likelihood ratio of two parameters that both explain the data, which is all that a posterior needs."""
    error = {}
    for kind in ("rounded", "gaussian"):
        found, scaling = member(kind)
        u, x = counting(500, 3)
        near = u + 0.3 * torch.randn(u.shape, generator=torch.Generator().manual_seed(4))
        with torch.no_grad():
            ratio = found.log_prob(near, scaling(x)) - found.log_prob(u, scaling(x))
        exact = (Poisson(rates(near).double()).log_prob(x) - Poisson(rates(u).double()).log_prob(x)).sum(dim=1)
        error[kind] = float((ratio - exact).abs().median())
    assert error["rounded"] < 0.3
    assert error["rounded"] < 0.7 * error["gaussian"]


def test_draws_are_counts_with_their_probabilities() -> None:
    found, scaling = member("rounded")
    u = torch.tensor([[0.0, 0.5]]).expand(20_000, 2)
    with torch.no_grad():
        x = scaling.inverse(found.sample(u))
    torch.testing.assert_close(x, x.round(), atol=1e-3, rtol=1e-4)
    assert float(x.min()) > -1e-6
    exact = rates(u[:1])[0].double()
    torch.testing.assert_close(x.mean(dim=0), exact, rtol=0.15, atol=0.05)
    none = float((x[:, 0] < 0.5).double().mean())
    assert none == pytest.approx(math.exp(-float(exact[0])), abs=0.05)


def surrogate_of(u: Tensor, z: Tensor, lattice: Lattice | None) -> Surrogate:
    surrogate = Surrogate(2, z.shape[1], SurrogateOptions(members=("rounded", "gaussian"), hidden=(16, 16)), seed=0)
    rows = TrainingRows(u, torch.ones(len(u), dtype=torch.bool), torch.arange(len(u)) % 10 == 0, z, z, lattice=lattice)
    surrogate.fit(rows, TrainOptions(max_epochs=20, patience=20), torch.Generator().manual_seed(0))
    return surrogate


def test_without_a_lattice_it_does_not_count() -> None:
    u, x = counting(300, 1)
    z = x.log1p().float() + 0.1 * torch.randn(x.shape)
    surrogate = surrogate_of(u, z, None)
    assert surrogate.weights.tolist() == [0.0, 1.0]
    assert surrogate.log_prob(u, z).isfinite().all()
    assert surrogate.member_log_prob(u, z).shape == (1, 300)
    again = Surrogate(2, 3, surrogate.options, seed=5)
    again.resume(surrogate.state_dict())
    assert not again.members[0].fitted
    assert torch.equal(again.log_prob(u, z), surrogate.log_prob(u, z))
    assert torch.equal(surrogate.frozen().log_prob(u, z), surrogate.log_prob(u, z))


def test_alone_it_is_refused_without_a_lattice() -> None:
    u, x = counting(300, 1)
    z = x.log1p().float() + 0.1 * torch.randn(x.shape)
    surrogate = Surrogate(2, 3, SurrogateOptions(members=("rounded",), hidden=(16,)), seed=0)
    rows = TrainingRows(u, torch.ones(300, dtype=torch.bool), torch.arange(300) % 10 == 0, z, z)
    with pytest.raises(DataError, match="choose other members"):
        surrogate.fit(rows, TrainOptions(max_epochs=1), torch.Generator())


def test_of_counts_it_takes_the_weight_and_goes_on_after_a_restart() -> None:
    u, x = counting(600, 1)
    scaling, steps = DataScaling.fit(x), lattice_steps(x)
    z = scaling(spread(x, steps, torch.Generator().manual_seed(2)))
    lattice = Lattice(steps, x[0], scaling)
    surrogate = surrogate_of(u, z, lattice)
    assert float(surrogate.weights[0]) > 0.5
    again = Surrogate(2, 3, surrogate.options, seed=5)
    again.resume(surrogate.state_dict())
    assert again.members[0].fitted
    assert torch.equal(again.log_prob(u, z), surrogate.log_prob(u, z))
    rows = TrainingRows(u, torch.ones(600, dtype=torch.bool), torch.arange(600) % 10 == 0, z, z, lattice=lattice)
    before = surrogate.fit(rows, TrainOptions(max_epochs=0), torch.Generator().manual_seed(1))
    assert again.fit(rows, TrainOptions(max_epochs=0), torch.Generator().manual_seed(1)) == pytest.approx(before)
