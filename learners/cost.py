r"""The expected cost of a user's distance, regressed: generalized Bayes without a likelihood.

.. math:: c(\theta, x_o) = \mathbb E_{x \sim p(x \mid \theta)}\, d(x, x_o), \qquad
    p_\beta(\theta \mid x_o) \propto p(\theta)\, e^{-\beta\, c(\theta, x_o)}

(Gao, Deistler & Macke 2023, arXiv 2305.15208). A network `h(u, z_o)` is fitted to distances between simulations and
targets, which are other simulations and, where there is one, the observation. Every Bregman divergence has the mean for
its minimum (Banerjee, Guo & Wang 2005), so we may choose how much errors count: with the distance in units `t` from
small (`t = 0`) to typical (`t = 1`), as squares where `t < 0`, and as those of a count where `t > 0`,

.. math:: \phi(t) - \phi(h) - \phi'(h)\,(t - h), \qquad \phi'(t) = \min(t, 0) + \log(1 + \max(t, 0)):

costs are to be right where they are low, for elsewhere `exp(-c)` is nothing.

Pairs of the simulator are *not* draws of the posterior at `beta = 1`. Failures have no distance; they come back as
`p(valid | u)`, as with the other sources.
"""

from __future__ import annotations

__all__ = ["Cost", "Distance", "no_distance"]

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from simulators.errors import DataError

from .packed import copies
from .pair_ensemble import PairEnsemble
from .source import TrainingRows

#: `d(x, x_o)`: rows `(n, k)` of simulated data and of targets -> `(n,)`, finite.
Distance = Callable[[Tensor, Tensor], Tensor]

#: Targets of each simulation, and distances in all, at most.
_TARGETS, _MOST = 32, 2_000_000
#: Share of them that is the observation of a targeted campaign.
_OBSERVED = 0.4
#: Distances computed at once.
_CHUNK = 65536


class Cost(PairEnsemble):
    """Ensemble of regressions; see the module.

    Arguments:
        distance: See `Distance`; gets double precision on the CPU.
        dim_u, dim_z, hidden, seed: As for `PairEnsemble`.
    """

    pairs_are_draws = False

    def __init__(self, distance: Distance, dim_u: int, dim_z: int, hidden: Sequence[int], seed: int) -> None:
        super().__init__(dim_u, dim_z, hidden, seed)
        self.distance = distance
        self.register_buffer("low", torch.tensor(0.0))
        self.register_buffer("unit", torch.tensor(0.0))
        self.low: Tensor
        self.unit: Tensor

    def lesson(self, rows: TrainingRows, generator: torch.Generator) -> Distances:
        """Targets are drawn anew in every fit.

        Raises:
            DataError: The distance returns something of another shape, or not finite.
        """
        u, held_out = rows.u[rows.valid], rows.held_out[rows.valid]
        if held_out.sum() < 2:
            held_out = torch.ones_like(held_out)
        some = ~held_out if (~held_out).any() else held_out
        learned, scored = (self._distances(rows, chosen, generator) for chosen in (some, held_out))
        if not self.unit:
            # The networks' units: kept while simulations are added, or their weights would mean something else.
            low, middle = learned[2][:100_000].quantile(torch.tensor([0.1, 0.5]).to(u)).tolist()
            self.low.fill_(low)
            self.unit.fill_(middle - low if middle > low else max(1e-12, abs(middle), float(learned[2].std())))
        z = rows.z if rows.z_o is None else torch.cat([rows.z, rows.z_o])
        parts = ((u[i], target, (d - self.low) / self.unit) for i, target, d in (learned, scored))
        return Distances(z, *parts)

    def to_log_prob(self, h: Tensor) -> Tensor:
        return -(self.low + self.unit * h)

    def frozen(self) -> Cost:
        """Without the distance, which may be anything."""
        small = Cost(no_distance, self.dim_u, self.dim_z, self.hidden, seed=0)
        small.resume(copies(self.state_dict()))
        return small.eval().requires_grad_(False)

    def _distances(
        self, rows: TrainingRows, chosen: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The chosen simulations `(n,)`, targets of each `(n, t)`, and the distances `(n, t)`.

        Targets are rows of the simulations, with the observations after them.
        """
        index = chosen.nonzero().squeeze(-1).cpu()
        n, num_targets = len(index), max(1, min(_TARGETS, _MOST // len(index)))
        # A target must be independent of what is compared with it: never the simulation itself.
        shift = torch.randint(1, max(2, n), (n, num_targets), generator=generator)
        target = index[(torch.arange(n)[:, None] + shift) % n]
        if rows.x_o is not None:
            observed = torch.rand(n, num_targets, generator=generator) < _OBSERVED
            which = torch.randint(len(rows.x), len(rows.x) + len(rows.x_o), (n, num_targets), generator=generator)
            target = target.where(~observed, which)
        pairs = torch.stack([index[:, None].expand_as(target), target]).flatten(1).split(_CHUNK, dim=1)
        distances = [self._measured(rows.x[i], _targets(rows, j)) for i, j in pairs]
        distance = torch.cat(distances).reshape(n, num_targets)
        device = rows.u.device
        return index.to(device), target.to(device), distance.float().to(device)

    def _measured(self, x: Tensor, target: Tensor) -> Tensor:
        value = torch.as_tensor(self.distance(x, target))
        if value.shape != (len(x),):
            raise DataError(
                f"distance: expected {len(x)} numbers for two arrays of shape {tuple(x.shape)}, row by row, "
                f"got shape {tuple(value.shape)}"
            )
        bad = int((~value.isfinite()).sum())
        if bad:
            raise DataError(
                f"distance: expected finite numbers, but {bad} of {len(x)} are NaN or infinite; their mean is what is "
                "learned: return a large number where data are worlds apart"
            )
        return value.double()


def no_distance(x: Tensor, target: Tensor) -> Tensor:
    """Stands where the distance was, in a cost that is only evaluated."""
    raise DataError("this cost is only evaluated: it has no distance to learn from; fit anew with one")


def _targets(rows: TrainingRows, index: Tensor) -> Tensor:
    """Data of targets: simulations, and after them the observations."""
    n, x_o = len(rows.x), rows.x_o
    x = rows.x[index.where(index < n, 0)]
    if x_o is not None:
        x[index >= n] = x_o.to(x)[index[index >= n] - n]
    return x


class Distances:
    """Distances of simulations to targets, learned from and scored.

    Arguments:
        z: Data of all targets, `(m, k)`.
        learned: `u` `(n, d)` of the simulations, rows of their targets `(n, t)`, and the distances `(n, t)`.
        scored: The same of those kept apart.
    """

    def __init__(
        self, z: Tensor, learned: tuple[Tensor, Tensor, Tensor], scored: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        self.z, self.scored = z, scored
        self.u, self.target, self.t = learned

    def __len__(self) -> int:
        return len(self.u)

    def loss(self, module: nn.Module, rows: Tensor, generator: torch.Generator) -> Tensor:
        return _divergence(self.t[rows], module(self.u[rows][:, None], self.z[self.target[rows]])).mean()

    def score(self, module: nn.Module) -> float:
        parts = zip(*(column.split(2048) for column in self.scored), strict=True)
        total = sum(float(_divergence(t, module(u[:, None], self.z[j])).mean(dim=1).sum()) for u, j, t in parts)
        return total / len(self.scored[0])


def _divergence(t: Tensor, h: Tensor) -> Tensor:
    """Bregman's divergence of `t` from its prediction `h`, both `(*,)`."""
    above, below = h.clamp(min=0.0), h.clamp(max=0.0)
    slope = below + above.log1p()
    return _phi(t) - _phi(h) - slope * (t - h)


def _phi(t: Tensor) -> Tensor:
    above, below = t.clamp(min=0.0), t.clamp(max=0.0)
    return 0.5 * below.square() + (1 + above) * above.log1p() - above
