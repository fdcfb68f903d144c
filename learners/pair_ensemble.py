r"""An ensemble of networks `h_e(u, z)`, each a number for a pair of parameters and data.

.. math:: h(u, z) = \operatorname{MLP}(A u + B z) +
    \tfrac12 u^\top P u + u^\top Q z + \tfrac12 z^\top R z + a^\top u + b^\top z

The quadratic path starts at zero. It alone can be the ratio of a linear-Gaussian model, or its expected squared
distance; the network learns what it leaves. A sum in the first layer, and not a concatenation, lets many `u` meet one
`z` at the cost of one.
"""

from __future__ import annotations

__all__ = ["PairEnsemble", "PairNetwork"]

import abc
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .memory import Parts
from .source import OnEpoch, Source, TrainingRows
from .threads import Threads
from .training import Lesson, TrainOptions, fit_module
from .validity import Validity

#: Above this number of data, products of two of them are left to the network.
_WIDE = 32
#: Networks of an ensemble.
_MEMBERS = 3
#: Pairs evaluated at once.
_CHUNK = 65536


class PairNetwork(nn.Module):
    """See the module.

    Arguments:
        dim_u: Dimension d of `u`.
        dim_z: Dimension k of `z`.
        hidden: Widths of the hidden layers.
    """

    def __init__(self, dim_u: int, dim_z: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.of_u, self.of_z = nn.Linear(dim_u, hidden[0]), nn.Linear(dim_z, hidden[0], bias=False)
        layers: list[nn.Module] = [nn.SiLU()]
        for before, after in pairwise(hidden):
            layers += [nn.Linear(before, after), nn.SiLU()]
        last = nn.Linear(hidden[-1], 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)
        self.square_u = nn.Parameter(torch.zeros(dim_u, dim_u))
        self.square_z = nn.Parameter(torch.zeros(dim_z, dim_z)) if dim_z <= _WIDE else None
        self.product = nn.Linear(dim_z, dim_u)
        self.line_z = nn.Linear(dim_z, 1, bias=False)
        for parameter in (self.product.weight, self.product.bias, self.line_z.weight):
            nn.init.zeros_(parameter)

    def forward(self, u: Tensor, z: Tensor) -> Tensor:
        """`h(u, z)` for broadcastable `u` `(*, d)` and `z` `(*, k)`, shape `(*,)`."""
        bent = self.layers(self.of_u(u) + self.of_z(z)).squeeze(-1)
        of_u = 0.5 * ((u @ self.square_u) * u).sum(dim=-1)
        of_z = self.line_z(z).squeeze(-1)
        if self.square_z is not None:
            of_z = of_z + 0.5 * ((z @ self.square_z) * z).sum(dim=-1)
        return bent + of_u + of_z + (u * self.product(z)).sum(dim=-1)


class PairEnsemble(Source):
    """A source whose members are pair networks; what they learn from is up to the kind of source.

    Arguments:
        dim_u: Dimension d of `u`.
        dim_z: Dimension k of `z`.
        hidden: Widths of the hidden layers.
        seed: Seed of the initial weights.
    """

    validity: Validity

    def __init__(self, dim_u: int, dim_z: int, hidden: Sequence[int], seed: int) -> None:
        super().__init__()
        self.dim_u, self.dim_z, self.hidden = dim_u, dim_z, tuple(hidden)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.members = nn.ModuleList([PairNetwork(dim_u, dim_z, hidden) for _ in range(_MEMBERS)])
            self.validity = Validity(dim_u)
        self._parts = Parts("evaluating the source")

    @abc.abstractmethod
    def lesson(self, rows: TrainingRows, generator: torch.Generator) -> Lesson:
        """What the members learn from `rows`."""

    @abc.abstractmethod
    def to_log_prob(self, h: Tensor) -> Tensor:
        """`l` of a member whose network says `h`, both `(*,)`."""

    def fit(
        self,
        rows: TrainingRows,
        training: TrainOptions,
        generator: torch.Generator,
        on_epoch: OnEpoch | None = None,
        threads: int = 1,
    ) -> float:
        """Fits every member and `p(valid | u)`; returns the mean of the members' held-out losses."""
        lesson = self.lesson(rows, generator)
        seeds = torch.randint(2**31, (len(self.members),), generator=generator).tolist()

        def fit_member(member: nn.Module, seed: int) -> float:
            own = torch.Generator().manual_seed(seed)
            return fit_module(member, lesson, rows.u.device, training, own, on_epoch)

        with Threads(threads) as sharing:
            losses = sharing.map(fit_member, self.members, seeds)
        self.validity.fit(rows.u, rows.valid, generator)
        self.fitted = True
        return sum(losses) / len(losses)

    def log_prob(self, u: Tensor, z: Tensor) -> Tensor:
        return self.member_log_prob(u, z).mean(dim=0) + self.validity.log_prob(u)

    def member_log_prob(self, u: Tensor, z: Tensor) -> Tensor:
        batch = torch.broadcast_shapes(u.shape[:-1], z.shape[:-1])
        # Rows go in pieces; what one x shares within a row is not copied.
        pieces = max(1, -(-batch.numel() // _CHUNK)) if batch else 1
        if u.ndim != z.ndim or u.shape[:1] != z.shape[:1] or not batch:
            return torch.stack([self.to_log_prob(member(u, z)).expand(batch) for member in self.members])

        def evaluate(count: int) -> Tensor:
            pairs = list(zip(u.tensor_split(pieces * count), z.tensor_split(pieces * count), strict=True))
            rows = [torch.cat([self.to_log_prob(member(*pair)) for pair in pairs]) for member in self.members]
            return torch.stack(rows)

        return self._parts.run(evaluate, max(1, len(u) // pieces))

    def as_dict(self) -> dict[str, Any]:
        sizes = {"dim_u": self.dim_u, "dim_z": self.dim_z, "hidden": list(self.hidden)}
        return {"source": type(self).__name__, "members": len(self.members), **sizes}
