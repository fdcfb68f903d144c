r"""The likelihood ratio `p(x | theta) / p(x)`, learned by classifiers: for data whose density is hard to learn.

Of `K + 1` parameters a classifier tells which one, if any, the data were simulated with (contrastive neural ratio
estimation, Miller, Weniger & Forre 2022, arXiv 2210.06170; with K = 1 that of Hermans, Begy & Louppe 2020, arXiv
1903.04057). With equal odds for "any" and "none", and `S = K^{-1} \sum_k e^{h(u_k, z)}`,

.. math:: \min_h \; \mathbb E_{x,\, u_k \sim p(u)} \log (1 + S)
    + \mathbb E_{(u_1, x) \sim p(u, x),\, u_{k>1} \sim p(u)} \left[\log (1 + S) - h(u_1, z)\right]

is minimal for `h = log p(x | u) - log p(x)`. Unlike the multi-class loss (Durkan, Murray & Papamakarios 2020, arXiv
2002.03712) it leaves no function of x free, so that members can be compared.

Here `p(u)` is whatever density the simulations were proposed from: that changes `p(x)`, a constant in theta, and
nothing else. Failures are left out, and come back as `p(valid | u)`.
"""

from __future__ import annotations

__all__ = ["Ratio"]

import math

import torch
from torch import Tensor, nn

from .pair_ensemble import PairEnsemble
from .source import TrainingRows
from .training import told_apart

#: Parameters from which that of the simulation is told.
_CONTRASTS = 16


class Ratio(PairEnsemble):
    """Ensemble of classifiers; see the module."""

    def lesson(self, rows: TrainingRows, generator: torch.Generator) -> Contrasts:
        return Contrasts(rows.u[rows.valid], rows.z, rows.held_out[rows.valid], generator)

    def to_log_prob(self, h: Tensor) -> Tensor:
        return h


class Contrasts:
    """Pairs `(u, z)`, and the parameters of other pairs for comparison: fresh ones in training, fixed ones to score.

    Arguments:
        u: `(n, d)`.
        z: `(n, k)`.
        held_out: Which pairs are only scored, boolean `(n,)`.
        generator: Source of randomness on the CPU.
    """

    def __init__(self, u: Tensor, z: Tensor, held_out: Tensor, generator: torch.Generator) -> None:
        # Data of many numbers are not copied: they may be most of what memory holds.
        self.z, (self.learned, scored) = z, told_apart(held_out)
        self.u = u[self.learned]
        self.scored_u, self.scored_z = u[_others(scored, len(u), generator)], z[scored]

    def __len__(self) -> int:
        return len(self.u)

    def loss(self, module: nn.Module, rows: Tensor, generator: torch.Generator) -> Tensor:
        return _contrastive(module(self.u[_others(rows, len(self.u), generator)], self.z[self.learned[rows]][:, None]))

    def score(self, module: nn.Module) -> float:
        parts = zip(self.scored_u.split(4096), self.scored_z.split(4096), strict=True)
        total = sum(float(_contrastive(module(u, z[:, None]))) * len(u) for u, z in parts)
        return total / len(self.scored_z)


def _others(rows: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """`rows` `(b,)` and `K` others of the `n` for each, `(b, K + 1)`."""
    shift = torch.randint(1, n, (len(rows), _CONTRASTS), generator=generator).to(rows.device)
    return torch.cat([rows[:, None], (rows[:, None] + shift) % n], dim=1)


def _contrastive(h: Tensor) -> Tensor:
    """The loss of `h` `(b, K + 1)`, the simulated pair first: "any" among the first K, "none" among the last K."""
    log_k = math.log(h.shape[1] - 1)
    any_, none = h[:, :-1].logsumexp(dim=1) - log_k, h[:, 1:].logsumexp(dim=1) - log_k
    return (nn.functional.softplus(any_) - h[:, 0] + nn.functional.softplus(none)).mean()
