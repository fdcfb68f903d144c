r"""What the network is taught: draws of tempered posteriors, alone or in groups of one x and one temperature.

Particles are draws for few x at every temperature. Joint draws `(u, x)` are draws for as many x as wanted at
`beta = 1`, and keep the network from remembering the few: fresh ones of the surrogate, and the real simulations, which
anchor it to the simulator itself.
"""

from __future__ import annotations

__all__ = ["Groups", "JointPairs", "ParticleBank", "Target", "together"]

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .rows import RowView
from .tempered_density import ladder_weights
from .tempering import IMPOSSIBLE, TemperedParticles

#: Nats below the best of its group at which a target is cut: how improbable the impossible is does not matter.
_DEEPEST = 30.0


@dataclass(frozen=True)
class Target:
    """`p_beta(u | x)` up to a constant.

    Attributes:
        log_prior: `log p(u)` of whitened parameters `(*, d)`, `(*,)`.
        log_likelihood: `l(u, x)` of `u` `(n, g, d)` and what the source sees of x `(n, k)`, `(n, g)`.
    """

    log_prior: Callable[[Tensor], Tensor]
    log_likelihood: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, u: Tensor, beta: Tensor, log_likelihood: Tensor) -> Tensor:
        """`log p(u) + beta (l - max l)`, `(n, g)`, cut where a point is much worse than the best of its group.

        Minus infinity where no point of a group can have made x: it says nothing.
        """
        possible = (log_likelihood > IMPOSSIBLE) & (log_likelihood < math.inf)
        ell = log_likelihood.where(possible, -math.inf)
        # Of a group only differences count; a constant may be larger than single precision resolves.
        ell = (ell - ell.amax(dim=1, keepdim=True)).float()
        density = (self.log_prior(u) + beta[:, None] * ell).nan_to_num(-math.inf, posinf=-math.inf, neginf=-math.inf)
        return density.maximum(density.amax(dim=1, keepdim=True) - _DEEPEST).float()


@dataclass(frozen=True)
class Groups:
    """Points of one x and one temperature each row.

    Attributes:
        u: `(n, g, d)`.
        z: `(n, k)`.
        beta: `(n,)`.
        log_density: `log p_beta(u | x)` up to a constant of each row, `(n, g)`; not finite where nothing is known.
        x: The same data as they are, if the source sees x itself, `(n, m)`; else None.
    """

    u: Tensor
    z: Tensor
    beta: Tensor
    log_density: Tensor
    x: Tensor | None = None

    def __len__(self) -> int:
        return len(self.u)

    def take(self, rows: Tensor | slice) -> Groups:
        """The groups of `rows`."""
        x = None if self.x is None else self.x[rows.cpu() if isinstance(rows, Tensor) else rows]
        return Groups(self.u[rows], self.z[rows], self.beta[rows], self.log_density[rows], x)

    @classmethod
    def concatenate(cls, parts: Sequence[Groups]) -> Groups:
        """One after another."""
        columns = zip(*((p.u, p.z, p.beta, p.log_density) for p in parts), strict=True)
        u, z, beta, log_density = (torch.cat(column) for column in columns)
        return cls(u, z, beta, log_density, together([p.x for p in parts]))


@dataclass(frozen=True)
class JointPairs:
    """Draws of `p(u, x)`: posterior draws at beta = 1.

    Attributes:
        u: `(m, d)`.
        z: `(m, k)`.
        weight: Importance weights towards `p(u, x)`, `(n,)`.
        share: Share of all pairs that are drawn from here; zero where they are no posterior draws, and only give points
            of x to compare.
        rows: Rows of `u` and `z` that the weights are of, `(n,)`; all of them if None.
        others: Gives as many other draws; None where there are no others.
        x: The same data as they are, if the source sees x itself, `(m, k)`; else None.
    """

    u: Tensor
    z: Tensor
    weight: Tensor
    share: float
    rows: Tensor | None = None
    others: Callable[[], JointPairs] | None = None
    x: Tensor | RowView | None = None

    def renewed(self) -> JointPairs:
        """Other draws, if there are any: what is seen a few times only cannot be learned by heart."""
        return self if self.others is None else self.others()

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        """`n` rows of `u`, `z` and `x`, each as often as its weight says (systematic resampling), in any order."""
        cumulative = self.weight.double().cpu().cumsum(0)
        position = (
            torch.randperm(n, generator=generator) + torch.rand(1, generator=generator, dtype=torch.float64)
        ) / n
        chosen = torch.searchsorted(cumulative / cumulative[-1], position).clamp(max=len(self.weight) - 1)
        rows = chosen.to(self.u.device) if self.rows is None else self.rows[chosen.to(self.rows.device)]
        return self.u[rows], self.z[rows], None if self.x is None else self.x[rows.cpu()]

    def split(self, share: float) -> tuple[JointPairs, JointPairs]:
        """All but the last `share` of the rows, and those; of fewer than one, all rows twice."""
        total = len(self.weight)
        n = total - int(share * total)
        rows = torch.arange(total, device=self.u.device) if self.rows is None else self.rows
        parts = (slice(0, n), slice(n, None) if n < total else slice(0, n))
        first, second = (replace(self, weight=self.weight[p], rows=rows[p]) for p in parts)
        return first, second


@dataclass(frozen=True)
class ParticleBank:
    """Tempered particles of a set of x, and how much they count.

    Attributes:
        particles: Particles at the rungs of every x.
        z: The scaled data of those x, `(n_x, k)`.
        share: Share of the particles drawn from this bank.
        x: The same data as they are, if the source sees x itself, `(n_x, m)`; else None.
    """

    particles: TemperedParticles
    z: Tensor
    share: float
    x: Tensor | None = None

    def draw(self, n: int, size: int, target: Target, generator: torch.Generator) -> Groups:
        """`n` groups of `size` different particles, the last of each rung excepted; temperatures log-uniform."""
        p, rows = self.particles, self._rows(n, generator)
        columns = torch.rand(n, p.u.shape[1] - 1, generator=generator).argsort(dim=1)[:, :size].to(p.u.device)
        u = p.u[rows].gather(1, columns[..., None].expand(-1, -1, p.u.shape[-1]))
        beta = p.beta.to(u.device)[rows].float()
        x = None if self.x is None else self.x[p.index.cpu()[rows.cpu()]]
        return Groups(u, self._z(rows), beta, target(u, beta, p.log_likelihood[rows].gather(1, columns)), x)

    def held_out(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """`n` pairs `u` `(n, d)`, `z` `(n, k)`, `beta` `(n,)` that `draw` never gives: the last of each rung."""
        rows = self._rows(n, generator)
        return self.particles.u[rows, -1], self._z(rows), self.particles.beta.to(self.z.device)[rows].float()

    def _rows(self, n: int, generator: torch.Generator) -> Tensor:
        chosen = torch.multinomial(ladder_weights(self.particles), n, replacement=True, generator=generator)
        return chosen.to(self.particles.u.device)

    def _z(self, rows: Tensor) -> Tensor:
        return self.z[self.particles.index.to(self.z.device)[rows]]


def together(parts: Sequence[Tensor | None]) -> Tensor | None:
    """One after another; None if there are none."""
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None
