r"""A flow of what Laplace's approximation leaves of a posterior: it begins as the approximation, at every temperature.

.. math:: v = (I + \beta H)^{1/2} (u - \mu_\beta), \qquad
    \log q(u) = \log q_v(v) + \tfrac12 \log \det (I + \beta H)

with `mu_beta` and `H` as in `laplace.py`. Of a linear simulator with normal noise `v` is standard normal, whatever x
and beta; elsewhere the flow has to learn how the posterior differs from that, in units of its own width.
"""

from __future__ import annotations

__all__ = ["LaplaceFlow"]

import math

import torch
from torch import Tensor
from torch.distributions import Transform, constraints
from zuko.distributions import NormalizingFlow
from zuko.flows import Flow
from zuko.transforms import ComposedTransform

from .laplace import Normal, frame_size, tempered


class LaplaceFlow(Flow):
    """`q(u | c)` for contexts `c` of which the frame is split off: the flow within is not told of it.

    Arguments:
        flow: The flow of `v`, for contexts `(told, mode, log sd, t, t^2)`; becomes part of this one.
        dim: Dimension d of `u`; the frame, `d + d^2` numbers, comes before `t`.
        beta_range: Lowest and highest temperature, -1 and 1 in `t`.
    """

    def __init__(self, flow: Flow, dim: int, beta_range: tuple[float, float]) -> None:
        super().__init__(flow.transform, flow.base)
        self.dim, self.log_range = dim, tuple(math.log(bound) for bound in beta_range)

    def forward(self, c: Tensor | None = None) -> NormalizingFlow:
        assert c is not None, "the frame is part of the context"
        told, frame, t = c.split([c.shape[-1] - frame_size(self.dim) - 2, frame_size(self.dim), 2], dim=-1)
        low, high = self.log_range
        # With a single temperature t is zero.
        beta = torch.exp(low + (t[..., :1] + 1) / 2 * (high - low))
        normal = tempered(told[..., -2 * self.dim : -self.dim], frame, beta)
        rest = super().forward(torch.cat([told, t], dim=-1))
        return NormalizingFlow(ComposedTransform(_Whitening(normal), rest.transform), rest.base)


class _Whitening(Transform):
    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, normal: Normal) -> None:
        super().__init__()
        self.normal = normal

    def _call(self, u: Tensor) -> Tensor:
        centred = (u - self.normal.mean).unsqueeze(-1)
        v: Tensor = (self.normal.root(0.5) @ centred).squeeze(-1)
        return v

    def _inverse(self, v: Tensor) -> Tensor:
        u: Tensor = (self.normal.root(-0.5) @ v.unsqueeze(-1)).squeeze(-1) + self.normal.mean
        return u

    def log_abs_det_jacobian(self, u: Tensor, v: Tensor) -> Tensor:
        total: Tensor = self.normal.precision.log().sum(dim=-1) / 2
        return total.expand(v.shape[:-1])

    def call_and_ladj(self, u: Tensor) -> tuple[Tensor, Tensor]:
        v = self._call(u)
        return v, self.log_abs_det_jacobian(u, v)
