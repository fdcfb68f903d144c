r"""The amortized network `q(u | x, beta)`: a neural spline flow whose context is `(z, beta)`, and hints of a guide.

.. math:: q(u \mid x, \beta) = \mathcal N(f(u); 0, I)\, |\partial f / \partial u|

Everything that `f` does is multiplied by `1 - exp(-3 beta / beta_low)`, so that at `beta -> 0` the flow is the
identity and `q` is the whitened prior itself.
"""

from __future__ import annotations

__all__ = ["NetworkOptions", "PosteriorNetwork"]

import math
import weakref
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from zuko.distributions import NormalizingFlow

from .constants import GATE
from .flows import Trunked, spline_flow
from .guide import Guide
from .laplace_flow import LaplaceFlow
from .surroundings import as_usual


@dataclass(frozen=True)
class NetworkOptions:
    """Size of the network.

    Arguments:
        hidden: Widths of the hidden layers.
        transforms: Autoregressive spline transforms.
        bins: Bins of each spline.
        trunk: Widths of the layers before the transforms, which share them, of a network without a guide.
    """

    hidden: tuple[int, ...] = (128, 128)
    transforms: int = 3
    bins: int = 8
    trunk: tuple[int, ...] = (128, 128, 128)


class PosteriorNetwork(nn.Module):
    """`q(u | x, beta)` over whitened parameters.

    Arguments:
        dim_u: Dimension d of `u`.
        dim_z: Dimension k of the scaled data.
        beta_range: Lowest and highest temperature.
        options: See `NetworkOptions`.
        guide: What says where the posterior lies, or None.
    """

    def __init__(
        self,
        dim_u: int,
        dim_z: int,
        beta_range: tuple[float, float],
        options: NetworkOptions,
        guide: Guide | None = None,
    ) -> None:
        super().__init__()
        self.dim_u, self.dim_z, self.beta_range, self.options = dim_u, dim_z, beta_range, options
        self._gated: tuple[weakref.ref[Tensor], Tensor] | None = None
        context = dim_z + 2 + (0 if guide is None else guide.dim)
        sizes = options.hidden, options.transforms, options.bins
        # Hints leave little of the question that the trunk is for.
        trunk = options.trunk if guide is None else ()
        flow = spline_flow(dim_u, context, *sizes, gate=self._gate, trunk=trunk)
        self.flow = LaplaceFlow(flow, dim_u, beta_range) if guide is not None and guide.framed else flow
        self.guide = guide

    def forward(self, z: Tensor, beta: Tensor) -> NormalizingFlow:
        """The distribution over `u` given scaled data `z` `(*, k)` and `beta` `(*,)`."""
        return self.given(self.told(z), beta)

    def given(self, told: Tensor, beta: Tensor) -> NormalizingFlow:
        """The same, of what `told` made of `z`: it may serve many temperatures."""
        return self.flow(self.context(told, beta))

    def told(self, z: Tensor) -> Tensor:
        """`z` `(*, k)` with what the guide says behind it; no gradients."""
        return z if self.guide is None else torch.cat([z, self.guide(z)], dim=-1)

    def context(self, told: Tensor, beta: Tensor) -> Tensor:
        """`(told, t, t^2)` with `t` the position of `log beta` in its range, in [-1, 1]; shape `(*, m + 2)`."""
        low, high = (math.log(b) for b in self.beta_range)
        t = (2 * (beta.log() - low) / (high - low) - 1).to(told.dtype) if high > low else torch.zeros_like(beta)
        return torch.cat([told, torch.stack([t, t.square()], dim=-1)], dim=-1)

    @property
    def has_trunk(self) -> bool:
        """Whether layers before the transforms are shared by them."""
        return isinstance(self.flow, Trunked)

    def _gate(self, context: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return self._gate_of(context)
        # All transforms of the flow ask for that of the same context.
        kept = self._gated
        if kept is None or kept[0]() is not context:
            gate = self._gate_of(context)
            self._gated = weakref.ref(context), gate
            return gate
        return kept[1]

    def _gate_of(self, context: Tensor) -> Tensor:
        low, high = (math.log(b) for b in self.beta_range)
        log_ratio = (context[..., -2:-1] + 1) / 2 * (high - low)
        return -torch.expm1(-GATE * log_ratio.exp())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_gated": None}

    def as_dict(self) -> dict[str, Any]:
        """JSON form of the architecture, read back by `from_dict`; the weights are saved apart."""
        options = asdict(self.options)
        if not self.has_trunk:
            del options["trunk"]
        return {
            "dim_u": self.dim_u,
            "dim_z": self.dim_z,
            "beta_range": list(self.beta_range),
            "options": options,
            **({} if self.guide is None else {"guide": self.guide.as_dict()}),
        }

    @classmethod
    @as_usual()
    def from_dict(cls, spec: dict[str, Any]) -> PosteriorNetwork:
        options = dict(spec["options"])
        low, high = spec["beta_range"]
        # Formats before 5 had no trunk.
        options = options | {key: tuple(options.get(key, ())) for key in ("hidden", "trunk")}
        sizes = spec["dim_u"], spec["dim_z"]
        guide = Guide.from_dict(*sizes, spec["guide"]) if "guide" in spec else None
        if guide is not None:
            guide.eval().requires_grad_(False)
        return cls(*sizes, (low, high), NetworkOptions(**options), guide)
