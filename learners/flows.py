r"""Building blocks of all our networks: zuko's lazy transforms, started at the identity.

Every transform maps data to noise, `z = f(v | c)`, with the density
`log p(v | c) = log N(f(v | c); 0, I) + log |df/dv|` (Papamakarios et al. 2021, arXiv 1912.02762).
"""

from __future__ import annotations

__all__ = ["LocationScale", "affine_flow", "gaussian_flow", "spline_flow"]

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints
from zuko.distributions import DiagNormal
from zuko.flows import Flow, UnconditionalDistribution
from zuko.lazy import LazyTransform
from zuko.nn import MLP
from zuko.transforms import MonotonicAffineTransform

from .autoregressive import Gate, Gated
from .spline import RationalQuadraticSpline


class LocationScale(LazyTransform):
    r"""`z = L ((v - m(c)) exp(-s(c)))`, with networks `m`, `s` and a constant unit lower triangular `L`.

    Alone it is a heteroscedastic Gaussian regression; below a flow, the flow describes what the regression
    leaves. A linear path beside the network makes linear-Gaussian models exact from the start.

    Arguments:
        features: Dimension of `v`.
        context: Dimension of `c`.
        hidden: Widths of the hidden layers.
        gate: Factor `(*, 1)` on everything learned, computed from `c`: zero gives the identity.
    """

    def __init__(self, features: int, context: int, hidden: Sequence[int], gate: Gate | None = None) -> None:
        super().__init__()
        self.features, self.gate = features, gate
        self.network = MLP(context, 2 * features, hidden, activation=nn.SiLU)
        self.linear = nn.Linear(context, 2 * features)
        nn.init.zeros_(self.network[-1].weight)
        nn.init.zeros_(self.network[-1].bias)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.lower = nn.Parameter(torch.zeros(features, features))

    def forward(self, c: Tensor | None = None) -> Transform:
        assert c is not None, "LocationScale is conditional"
        phi = self.network(c) + self.linear(c)
        lower = self.lower.tril(-1)
        if self.gate is not None:
            gate = self.gate(c)
            phi = phi * gate
            lower = lower * gate.unsqueeze(-1)
        shift, log_scale = phi.chunk(2, dim=-1)
        return _LocationScaleTransform(shift, log_scale.clamp(-12.0, 12.0), lower)


class _LocationScaleTransform(Transform):
    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, shift: Tensor, log_scale: Tensor, lower: Tensor) -> None:
        super().__init__()
        self.shift, self.log_scale, self.lower = shift, log_scale, lower

    def _call(self, v: Tensor) -> Tensor:
        r = (v - self.shift) * torch.exp(-self.log_scale)
        if self.lower.ndim == 2:
            return r + r @ self.lower.mT
        return r + (self.lower @ r.unsqueeze(-1)).squeeze(-1)

    def _inverse(self, z: Tensor) -> Tensor:
        eye = torch.eye(self.lower.shape[-1], dtype=z.dtype, device=z.device)
        r = torch.linalg.solve_triangular(self.lower + eye, z.unsqueeze(-1), upper=False).squeeze(-1)
        return r * torch.exp(self.log_scale) + self.shift

    def log_abs_det_jacobian(self, v: Tensor, z: Tensor) -> Tensor:
        total: Tensor = -self.log_scale.sum(dim=-1)
        return total.expand(z.shape[:-1])

    def call_and_ladj(self, v: Tensor) -> tuple[Tensor, Tensor]:
        z = self._call(v)
        return z, self.log_abs_det_jacobian(v, z)


def gaussian_flow(features: int, context: int, hidden: Sequence[int]) -> Flow:
    """Heteroscedastic Gaussian regression with constant correlations."""
    return _flow(features, [LocationScale(features, context, hidden)])


def affine_flow(
    features: int, context: int, hidden: Sequence[int], transforms: int = 2, gate: Gate | None = None
) -> Flow:
    """A masked autoregressive flow (Papamakarios et al. 2017, arXiv 1705.07057) on regression residuals."""
    if features == 1:
        return _flow(features, [LocationScale(features, context, hidden, gate)])
    blocks = _autoregressive(features, context, hidden, transforms, gate, _affine, 2)
    return _flow(features, [LocationScale(features, context, hidden, gate), *blocks])


def spline_flow(
    features: int,
    context: int,
    hidden: Sequence[int],
    transforms: int = 3,
    bins: int = 8,
    gate: Gate | None = None,
) -> Flow:
    """A neural spline flow (Durkan et al. 2019, arXiv 1906.04032) on regression residuals."""
    total = 3 * bins - 1
    blocks = _autoregressive(features, context, hidden, transforms, gate, RationalQuadraticSpline, total)
    return _flow(features, [LocationScale(features, context, hidden, gate), *blocks])


def _autoregressive(
    features: int,
    context: int,
    hidden: Sequence[int],
    transforms: int,
    gate: Gate | None,
    univariate: Callable[[Tensor], Transform],
    total: int,
) -> list[LazyTransform]:
    ascending = torch.arange(features)
    return [
        Gated(
            features,
            context,
            gate,
            order=ascending if i % 2 == 0 else ascending.flip(0),
            univariate=univariate,
            shapes=[(total,)],
            # The regression below is deep; what it leaves is simple.
            hidden_features=tuple(hidden[:2]),
            activation=nn.SiLU,
        )
        for i in range(transforms)
    ]


def _affine(phi: Tensor) -> Transform:
    return MonotonicAffineTransform(phi[0], phi[1])


def _flow(features: int, transforms: Sequence[LazyTransform]) -> Flow:
    zero, one = torch.zeros(features), torch.ones(features)
    return Flow(list(transforms), UnconditionalDistribution(DiagNormal, zero, one, buffer=True))
