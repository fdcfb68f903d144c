"""Distillation: the groups and pairs that are drawn, and the network that they make."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from learners.distillation import DistillationOptions, _Lesson, _log_variance, distill
from learners.guide import Guide, GuideOptions
from learners.network import NetworkOptions, PosteriorNetwork
from learners.pairs import Groups, JointPairs, ParticleBank, Target
from learners.tempering import TemperingOptions, temper
from learners.threads import Threads
from learners.whitening import log_normal

NOISE = 0.5


def log_likelihood(u: Tensor, z: Tensor) -> Tensor:
    """`z ~ N(u, NOISE^2)` in one dimension."""
    return -0.5 * ((z[:, None, 0] - u[..., 0]) / NOISE).square() - math.log(NOISE * math.sqrt(2 * math.pi))


TARGET = Target(log_normal, log_likelihood)


def joint(n: int, share: float = 1.0, seed: int = 0) -> JointPairs:
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(n, 1, generator=generator)
    z = u + NOISE * torch.randn(n, 1, generator=generator)
    return JointPairs(u, z, torch.ones(n), share)


def bank(num_x: int = 64, share: float = 1.0) -> ParticleBank:
    generator = torch.Generator().manual_seed(1)
    z = joint(num_x, seed=2).z
    options = TemperingOptions(particles=32)
    particles = temper(lambda u, i: log_likelihood(u, z[i]), num_x, 1, (0.1, 2.0), options, generator, rungs=(1.0,))
    return ParticleBank(particles, z, share)


def moments(z: float, beta: float) -> tuple[float, float]:
    """Mean and standard deviation of the tempered posterior."""
    precision = 1 + beta / NOISE**2
    return beta / NOISE**2 * z / precision, precision**-0.5


def test_groups_are_of_one_x_and_one_temperature() -> None:
    source = bank()
    groups = source.draw(200, 8, TARGET, torch.Generator().manual_seed(0))
    assert groups.u.shape == (200, 8, 1)
    assert groups.z.shape == (200, 1)
    assert all(len(set(row)) > 1 for row in groups.u[..., 0].tolist())
    expected = log_normal(groups.u) + groups.beta[:, None] * log_likelihood(groups.u, groups.z)
    expected = expected.maximum(expected.amax(dim=1, keepdim=True) - 30)
    torch.testing.assert_close(*(g - g[:, :1] for g in (groups.log_density, expected)), atol=1e-4, rtol=1e-4)


def test_held_out_particles_are_never_drawn() -> None:
    source = bank(4)
    generator = torch.Generator().manual_seed(0)
    drawn = source.draw(4000, 8, TARGET, generator).u.flatten().tolist()
    held_out, _, _ = source.held_out(500, generator)
    # Resampling may have left copies of a particle in other columns of its rung; moves part nearly all of them.
    last = set(source.particles.u[:, -1, 0].tolist())
    others = set(source.particles.u[:, :-1, 0].flatten().tolist())
    assert set(held_out[:, 0].tolist()) <= last
    assert not (set(drawn) & (last - others))


def test_joint_pairs_come_as_often_as_their_weights_say() -> None:
    pairs = JointPairs(torch.arange(4.0)[:, None], torch.zeros(4, 1), torch.tensor([1.0, 0.0, 2.0, 1.0]), 1.0)
    u, _, _ = pairs.draw(400, torch.Generator().manual_seed(0))
    assert torch.bincount(u[:, 0].long(), minlength=4).tolist() == [100, 0, 200, 100]


def test_joint_pairs_of_some_rows_are_those_and_stay_apart_when_split() -> None:
    u = torch.arange(10.0)[:, None]
    pairs = JointPairs(u, -u, torch.tensor([1.0, 3.0, 1.0, 1.0]), 1.0, torch.tensor([2, 5, 7, 9]))
    drawn, z, _ = pairs.draw(600, torch.Generator().manual_seed(0))
    assert torch.equal(z, -drawn)
    assert torch.bincount(drawn[:, 0].long(), minlength=10).tolist() == [0, 0, 100, 0, 0, 300, 0, 100, 0, 100]
    first, second = pairs.split(0.25)
    assert set(first.draw(100, torch.Generator().manual_seed(0))[0][:, 0].tolist()) == {2.0, 5.0, 7.0}
    assert set(second.draw(100, torch.Generator().manual_seed(0))[0][:, 0].tolist()) == {9.0}


def test_what_is_impossible_is_cut_and_stays_finite() -> None:
    u = torch.tensor([[[0.0], [0.1], [0.2]]])
    impossible = torch.tensor([[0.0, float("-inf"), float("nan")]])
    density = TARGET(u, torch.ones(1), impossible)
    assert density[0].tolist() == pytest.approx([log_normal(u)[0, 0].item()] + 2 * [log_normal(u)[0, 0].item() - 30])


def test_where_nothing_is_possible_nothing_is_said() -> None:
    u = torch.randn(2, 3, 1)
    impossible = torch.tensor([3 * [-math.inf], [-1.0, -2.0, -math.inf]])
    density = TARGET(u, torch.ones(2), impossible)
    log_q = torch.randn(2, 3, requires_grad=True)
    _log_variance(log_q - density).backward()
    assert log_q.grad is not None
    assert log_q.grad[0].tolist() == [0.0, 0.0, 0.0]
    assert log_q.grad[1].isfinite().all() and log_q.grad[1].abs().sum() > 0


def test_a_constant_of_the_likelihood_leaves_the_target_alone() -> None:
    u, ell = torch.randn(50, 8, 1), torch.randn(50, 8).double()
    beta = torch.linspace(0.1, 2.0, 50)
    for constant in (1e9, -1e11):
        torch.testing.assert_close(TARGET(u, beta, ell + constant), TARGET(u, beta, ell), atol=1e-3, rtol=0)


@pytest.mark.parametrize("with_joint", [True, False])
def test_the_network_becomes_the_tempered_posterior(with_joint: bool) -> None:
    torch.manual_seed(0)
    network = PosteriorNetwork(1, 1, (0.1, 2.0), NetworkOptions(hidden=(32,), transforms=1))
    options = DistillationOptions(pairs=20_000, epochs=6)
    sources = [joint(5000, 0.5, 3), joint(500, 0.5, 4)] if with_joint else []
    seen: list[int] = []
    distill(
        network,
        [bank()],
        sources,
        TARGET,
        options,
        torch.Generator().manual_seed(0),
        lambda epoch, _: seen.append(epoch),
    )
    assert seen == list(range(6))
    for beta in (0.1, 0.5, 1.0, 2.0):
        for z in (-1.0, 0.3, 1.5):
            with torch.no_grad():
                draws = network(torch.full((4000, 1), z), torch.full((4000,), beta)).sample()
            mean, deviation = moments(z, beta)
            assert draws.mean().item() == pytest.approx(mean, abs=0.15 * deviation)
            assert draws.std().item() == pytest.approx(deviation, rel=0.1)


def test_own_draws_help_where_no_particle_is() -> None:
    """Eight x were walked for: what is known of other x below beta = 1 comes from the network's own draws."""
    errors = {}
    for own in (0.0, 1.0):
        torch.manual_seed(0)
        network = PosteriorNetwork(1, 1, (0.1, 2.0), NetworkOptions(hidden=(32,), transforms=1))
        options = DistillationOptions(pairs=60_000, epochs=6, own_share=own)
        distill(network, [bank(8)], [joint(5000)], TARGET, options, torch.Generator().manual_seed(0))
        gaps = []
        for z in (-2.0, -1.0, 0.0, 1.0, 2.0):
            with torch.no_grad():
                draws = network(torch.full((4000, 1), z), torch.full((4000,), 0.2)).sample()
            mean, deviation = moments(z, 0.2)
            gaps.append(abs(draws.mean().item() - mean) / deviation + abs(draws.std().item() / deviation - 1))
        errors[own] = sum(gaps)
    assert errors[1.0] < 0.5 * errors[0.0]


def test_own_draws_that_overflow_leave_the_rest_of_their_group() -> None:
    class Half:
        """A teacher, every second draw of which is infinite."""

        def __call__(self, context: Tensor) -> Half:
            return self

        @property
        def transform(self) -> Half:
            return self

        def inv(self, noise: Tensor) -> Tensor:
            return torch.where(torch.arange(len(noise))[:, None] % 2 == 0, torch.inf, 0.5).expand(noise.shape)

    network = PosteriorNetwork(1, 1, (0.1, 2.0), NetworkOptions(hidden=(8,), transforms=1))
    options = DistillationOptions(pairs=2000)
    lesson = _Lesson(network, [bank(4)], [joint(100)], TARGET, options, torch.Generator().manual_seed(0))
    own = lesson._own(Half())  # type: ignore[arg-type]
    assert own.u.isfinite().all() and own.log_density.isfinite().all()
    assert (own.u == 0.5).float().mean() > 0.4


@pytest.mark.parametrize("count", [1, 3])
def test_same_generator_same_network(count: int) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        network = PosteriorNetwork(1, 1, (0.1, 2.0), NetworkOptions(hidden=(8,), transforms=1))
        torch.manual_seed(len(states))
        options = DistillationOptions(pairs=2000, epochs=2)
        generator = torch.Generator().manual_seed(0)
        with Threads(count) as threads:
            distill(network, [bank(4)], [joint(100)], TARGET, options, generator, threads=threads)
        states.append(network.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))


def test_groups_are_put_together() -> None:
    source = bank(4)
    one = source.draw(3, 4, TARGET, torch.Generator().manual_seed(0))
    both = Groups.concatenate([one, one])
    assert len(both) == 6
    assert torch.equal(both.take(torch.tensor([4])).u, one.take(torch.tensor([1])).u)


@pytest.mark.parametrize(("guided", "drawn"), [(False, 9), (True, 3)])
def test_joint_pairs_are_drawn_anew_for_every_pass_or_where_there_is_a_guide_for_every_fourth(
    guided: bool, drawn: int
) -> None:
    made = []

    def pairs() -> JointPairs:
        made.append(joint(2000, seed=len(made)))
        return replace(made[-1], others=pairs)

    guide = Guide(1, 1, GuideOptions((8,), (8,), (8,))) if guided else None
    network = PosteriorNetwork(1, 1, (0.1, 2.0), NetworkOptions(hidden=(8,), transforms=1, bins=4), guide)
    first = pairs()
    kept, held_out = first.split(0.25)
    assert not torch.equal(kept.renewed().u, first.u)
    assert len(held_out.draw(100, torch.Generator())[0]) == 100
    made.clear()
    options = DistillationOptions(pairs=2000, epochs=9)
    distill(network, [bank()], [pairs()], TARGET, options, torch.Generator().manual_seed(0))
    assert len(made) == drawn
