"""Places: a density and its draws belong together, and a walk that knows places is right whether they are or not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from learners.laplace import framed
from learners.places import Places
from learners.tempering import TemperedParticles, TemperingOptions, temper


def places(mode: Tensor, information: Tensor) -> Places:
    """Of modes `(m, d)` and the information `(m, d, d)` of the likelihood."""
    eye = torch.eye(mode.shape[1])
    return Places(mode, framed(torch, information + eye, eye)[0])


def random(d: int, m: int = 3) -> Places:
    torch.manual_seed(0)
    root = torch.randn(m, d, d)
    return places(torch.randn(m, d), 5 * root @ root.mT)


@pytest.mark.parametrize("d", [1, 2, 6])
def test_densities_and_draws_of_a_place_belong_together(d: int) -> None:
    """Of draws of `q` the mean of `p / q` is one, for any density p; the prior bounds it where p is the prior."""
    place = random(d).at(torch.arange(3), torch.tensor([0.1, 0.5, 2.0]))
    u = place.sample(50_000, torch.randn, torch.rand)
    assert u.shape == (3, 50_000, d)
    log_p = -u.square().sum(-1) / 2 - d / 2 * math.log(2 * math.pi)
    torch.testing.assert_close((log_p - place.log_prob(u)).exp().mean(dim=1), torch.ones(3), atol=0.05, rtol=0)
    root = place.normal.root(0.5)
    near = ((u - place.normal.mean[:, None]) @ root).square().sum(-1)
    log_p = -near / 2 + place.normal.precision.log().sum(-1, keepdim=True) / 2 - d / 2 * math.log(2 * math.pi)
    torch.testing.assert_close((log_p - place.log_prob(u)).exp().mean(dim=1), torch.ones(3), atol=0.05, rtol=0)


def test_rows_are_those_asked_for() -> None:
    known, beta = random(2), torch.tensor([0.3, 2.0])
    both = known.at(torch.tensor([2, 0]), beta).normal
    for k, row in enumerate([2, 0]):
        alone = known.at(torch.tensor([row]), beta[k : k + 1]).normal
        torch.testing.assert_close(both.mean[k], alone.mean[0])
        torch.testing.assert_close(both.root(0.5)[k], alone.root(0.5)[0])
    assert (both.mean[0] - both.mean[1]).abs().max() > 0.1


def walk(log_likelihood: object, dim: int, known: Places | None, particles: int = 256, x: int = 4) -> TemperedParticles:
    options, generator = TemperingOptions(particles=particles, moves=6), torch.Generator().manual_seed(0)
    return temper(
        log_likelihood,  # type: ignore[arg-type]
        x,
        dim,
        (0.1, 2.0),
        options,
        generator,
        rungs=(0.3, 1.0),
        places=known,
    )


def at(particles: TemperedParticles, beta: float) -> Tensor:
    return particles.u[(particles.beta - beta).abs() < 1e-9].flatten(0, 1)


@pytest.mark.parametrize("off", [0.0, 0.5])
@pytest.mark.parametrize("wide", [0.3, 1.0, 10.0])
def test_places_that_are_wrong_do_no_harm(off: float, wide: float) -> None:
    """The likelihood is `N(x; u, 0.5^2)`; places are beside it, too narrow or too wide."""
    x = torch.tensor([1.0, -2.0])
    eye = torch.eye(2).expand(4, 2, 2)
    known = places((0.8 * x + off).expand(4, 2), 4 * eye / wide)
    found = walk(lambda u, _: -2 * (u - x).square().sum(-1), 2, known)
    for beta in (0.1, 1.0, 2.0):
        draws, variance = at(found, beta), 1 / (1 + 4 * beta)
        assert (draws.mean(dim=0) - 4 * beta * variance * x).abs().max() < 0.2 * variance**0.5
        assert (draws.std(dim=0) / variance**0.5).log().abs().max() < 0.15


def test_a_narrow_place_that_the_prior_hardly_meets_is_found() -> None:
    """A tenth of the prior's width in six dimensions, on a plateau that explains the data as noise: as beta rises the
    posterior leaves the plateau for it at once, where a walk from the prior stays behind."""
    d, width, gain, centre = 6, 0.1, 30.0, 0.5

    def log_likelihood(u: Tensor, _: Tensor) -> Tensor:
        near = gain - ((u - centre) / width).square().sum(-1) / 2
        return torch.logaddexp(near, torch.zeros(()))

    def expected(beta: float) -> float:
        """The share near the centre at beta, by draws around it and of the prior."""
        torch.manual_seed(1)
        scale = width / beta**0.5 * 1.5
        u = torch.cat([centre + scale * torch.randn(100_000, d), torch.randn(100_000, d)])
        prior = -u.square().sum(-1) / 2
        normal = -((u - centre) / scale).square().sum(-1) / 2 - d * math.log(scale)
        weight = torch.softmax(prior + beta * log_likelihood(u, u) - torch.logaddexp(normal, prior), dim=0)
        return float((weight * is_near(u)).sum())

    def is_near(u: Tensor) -> Tensor:
        return (u - centre).norm(dim=-1) < 1.5

    information = torch.eye(d).expand(4, d, d) / width**2
    known = places(torch.full((4, d), centre / (1 + width**2)), information)
    # 24 particles at a time, as of each x that a network learns from.
    found, lost = (walk(log_likelihood, d, what, particles=24, x=4) for what in (known, None))
    for beta in (1.0, 2.0):
        assert abs(float(is_near(at(found, beta)).float().mean()) - expected(beta)) < 0.1
    assert float(is_near(at(lost, 1.0)).float().mean()) < expected(1.0) - 0.2
