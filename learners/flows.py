r"""Building blocks of all our networks: zuko's lazy transforms, started at the identity.

Every transform maps data to noise, `z = f(v | c)`, with the density
`log p(v | c) = log N(f(v | c); 0, I) + log |df/dv|` (Papamakarios et al. 2021, arXiv 1912.02762).
"""

from __future__ import annotations

__all__ = ["LocationScale", "Trunked", "affine_flow", "gaussian_flow", "spline_flow"]

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints
from torch.nn.functional import silu
from zuko.distributions import DiagNormal, NormalizingFlow
from zuko.flows import Flow, UnconditionalDistribution
from zuko.lazy import LazyTransform
from zuko.nn import MLP
from zuko.transforms import MonotonicAffineTransform

from .autoregressive import Gate, Gated
from .constants import MAX_LOG_SCALE
from .spline import RationalQuadraticSpline, TailedSpline
from .spline_inverse import invert_spline
from .stepwise import Inverse


class LocationScale(LazyTransform):
    r"""`z = L ((v - m(c)) exp(-s(c)))`, with networks `m`, `s` and a unit lower triangular `L`, constant or `L(c)`.

    Alone it is a heteroscedastic Gaussian regression; below a flow, the flow describes what the regression
    leaves. A linear path beside the network makes linear-Gaussian models exact from the start.

    Arguments:
        features: Dimension of `v`.
        context: Dimension of `c`.
        hidden: Widths of the hidden layers.
        gate: Factor `(*, 1)` on everything learned, computed from `c`: zero gives the identity.
        full: Whether the correlations depend on `c`: the regression then has a full covariance.
        graded: Whether they do by a factor only, `sigmoid(g(c)) L` off the diagonal. What a mean has not learned yet is
            correlated, and is much in some places and next to nothing in others.
    """

    def __init__(
        self,
        features: int,
        context: int,
        hidden: Sequence[int],
        gate: Gate | None = None,
        full: bool = False,
        graded: bool = False,
    ) -> None:
        super().__init__()
        self.features, self.gate, self.full, self.graded = features, gate, full, graded
        entries = features * (features - 1) // 2 if full else int(graded)
        self.network = MLP(context, 2 * features + entries, hidden, activation=nn.SiLU)
        self.linear = nn.Linear(context, 2 * features)
        nn.init.zeros_(self.network[-1].weight)
        nn.init.zeros_(self.network[-1].bias)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.lower = nn.Parameter(torch.zeros(features, features))

    def forward(self, c: Tensor | None = None) -> Transform:
        assert c is not None, "LocationScale is conditional"
        phi, entries = self.network(c).tensor_split([2 * self.features], dim=-1)
        phi = phi + self.linear(c)
        lower = self.lower.tril(-1)
        if self.full:
            row, column = torch.tril_indices(self.features, self.features, -1, device=c.device)
            varying = lower.new_zeros(*c.shape[:-1], *lower.shape)
            varying[..., row, column] = entries
            lower = lower + varying
        elif self.graded:
            lower = lower * torch.sigmoid(entries).unsqueeze(-1)
        if self.gate is not None:
            gate = self.gate(c)
            phi = phi * gate
            lower = lower * gate.unsqueeze(-1)
        shift, log_scale = phi.chunk(2, dim=-1)
        return _LocationScaleTransform(shift, log_scale.clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE), lower)

    @torch.no_grad()
    def set_least_squares(self, v: Tensor, c: Tensor) -> None:
        """Sets the linear path to the least-squares fit of `v` `(n, k)` on `c` `(n, m)` with its residual covariance.

        The maximum of the likelihood where the model is linear and Gaussian.
        """
        ones = torch.ones(len(c), 1, dtype=torch.float64, device=c.device)
        design = torch.cat([ones, c.double()], dim=-1)
        # A little ridge: columns may be constant, or fewer rows than columns.
        gram = design.mT @ design + 1e-6 * len(c) * torch.eye(design.shape[1], dtype=torch.float64, device=c.device)
        coefficients = torch.linalg.solve(gram, design.mT @ v.double())
        residual = v.double() - design @ coefficients
        free = max(1, len(c) - design.shape[1])
        covariance = residual.mT @ residual / free + 1e-8 * torch.eye(v.shape[1], dtype=torch.float64, device=v.device)
        factor = torch.linalg.cholesky(covariance)
        eye = torch.eye(len(factor), dtype=torch.float64, device=v.device)
        whitener = torch.linalg.solve_triangular(factor, eye, upper=False)
        scale = whitener.diagonal()
        self.linear.weight.zero_()
        self.linear.weight[: self.features] = coefficients[1:].mT.float()
        self.linear.bias.copy_(torch.cat([coefficients[0], -scale.log()]).float())
        self.lower.copy_((whitener / scale).tril(-1).float())


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


def gaussian_flow(features: int, context: int, hidden: Sequence[int], full: bool = False, graded: bool = False) -> Flow:
    """Heteroscedastic Gaussian regression with constant correlations, graded ones, or a full covariance."""
    return _flow(features, [LocationScale(features, context, hidden, full=full, graded=graded)])


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
    full: bool = False,
    tailed: bool = False,
    constant: bool = False,
    trunk: Sequence[int] = (),
) -> Flow:
    """A neural spline flow (Durkan et al. 2019, arXiv 1906.04032) on regression residuals.

    `full` gives the regression a full covariance, `tailed` the splines affine tails; with `constant` the splines are
    the same for every context. `trunk` are the widths of layers that all transforms share, see `Trunked`.
    """
    bare, context = context, context + (trunk[-1] if trunk else 0)
    spline, total = (TailedSpline, 3 * bins + 1) if tailed else (RationalQuadraticSpline, 3 * bins - 1)
    inverse = None if tailed else invert_spline
    blocks = _autoregressive(features, 1 if constant else context, hidden, transforms, gate, spline, total, inverse)
    if constant:
        blocks = [_Constant(block) for block in blocks]
    flow = _flow(features, [LocationScale(features, context, hidden, gate, full), *blocks])
    return Trunked(flow, bare, trunk) if trunk else flow


class Trunked(Flow):
    """A flow whose transforms are told, before the context itself, what layers that they share make of it.

    How the answer depends on x is mostly the same question for all of them, and layers of their own are only two.

    Arguments:
        flow: The flow for contexts of dimension `context + trunk[-1]`; becomes part of this one.
        context: Dimension of the context.
        trunk: Widths of the shared layers.
    """

    def __init__(self, flow: Flow, context: int, trunk: Sequence[int]) -> None:
        super().__init__(flow.transform, flow.base)
        self.trunk = MLP(context, trunk[-1], trunk[:-1], activation=nn.SiLU)

    def forward(self, c: Tensor | None = None) -> NormalizingFlow:
        assert c is not None, "the trunk is told something"
        return super().forward(torch.cat([silu(self.trunk(c)), c], dim=-1))


class _Constant(LazyTransform):
    """A conditional transform that is told nothing."""

    def __init__(self, inner: LazyTransform) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, c: Tensor | None = None) -> Transform:
        assert c is not None, "the batch is that of the context"
        return self.inner(torch.zeros_like(c[..., :1]))


def _autoregressive(
    features: int,
    context: int,
    hidden: Sequence[int],
    transforms: int,
    gate: Gate | None,
    univariate: Callable[[Tensor], Transform],
    total: int,
    inverse: Inverse | None = None,
) -> list[LazyTransform]:
    ascending = torch.arange(features)
    return [
        Gated(
            features,
            context,
            gate,
            inverse,
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
