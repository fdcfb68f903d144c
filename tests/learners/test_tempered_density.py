"""Where simulations should go has a density, whatever the particles look like."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from learners.tempered_density import TemperedDensity
from learners.tempering import TemperedParticles


def particles_at(u: Tensor) -> TemperedParticles:
    """One rung at beta = 1 of one x, with particles `u` `(p, d)`."""
    one = torch.ones(1)
    return TemperedParticles(u[None], torch.zeros(1, dtype=torch.long), one, torch.zeros(1, len(u)), one, one)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def ridge(width: float) -> Tensor:
    along, across = normal(512, 2).split(1, dim=1)
    return torch.cat([along, width * across - along], dim=1)


@pytest.mark.parametrize(
    "u",
    [normal(24, 30), normal(24, 24), ridge(1e-3), ridge(1e-5), normal(1, 1).expand(24, 3)],
    ids=["fewer-than-dimensions", "as-many", "ridge", "narrow-ridge", "one-point"],
)
def test_few_or_degenerate_particles_have_a_density(u: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    density = TemperedDensity.from_particles(particles_at(u), 100, generator)
    draws = density.sample(50, generator)[0]
    assert draws.isfinite().all()
    assert density.log_prob(draws).isfinite().all()
    # Draws stay where the particles are: across a ridge as well.
    reach = (u.max(dim=0).values - u.min(dim=0).values).max() + 1
    assert ((draws - u.mean(dim=0)).abs() < 2 * reach).all()


def test_many_points_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    density = TemperedDensity.from_particles(particles_at(normal(64, 3)), 100, torch.Generator().manual_seed(0))
    u, sizes = normal(25_000, 3), []
    log_prob = torch.distributions.MultivariateNormal.log_prob

    def noting(self: torch.distributions.MultivariateNormal, value: Tensor) -> Tensor:
        sizes.append(len(value))
        return log_prob(self, value)

    monkeypatch.setattr(torch.distributions.MultivariateNormal, "log_prob", noting)
    found = density.log_prob(u)
    assert max(sizes) <= 8192
    assert torch.equal(found[:8192], density.log_prob(u[:8192]))
    torch.testing.assert_close(found[-100:], density.log_prob(u[-100:]))
    assert density.log_prob(u[:0]).shape == (0,)
