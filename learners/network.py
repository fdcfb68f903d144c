r"""The amortized network `q(u | x, beta)`: a neural spline flow whose context is `(z, beta)`.

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
from .flows import spline_flow


@dataclass(frozen=True)
class NetworkOptions:
    """Size of the network.

    Arguments:
        hidden: Widths of the hidden layers.
        transforms: Autoregressive spline transforms.
        bins: Bins of each spline.
    """

    hidden: tuple[int, ...] = (128, 128)
    transforms: int = 3
    bins: int = 8


class PosteriorNetwork(nn.Module):
    """`q(u | x, beta)` over whitened parameters.

    Arguments:
        dim_u: Dimension d of `u`.
        dim_z: Dimension k of the scaled data.
        beta_range: Lowest and highest temperature.
        options: See `NetworkOptions`.
    """

    def __init__(self, dim_u: int, dim_z: int, beta_range: tuple[float, float], options: NetworkOptions) -> None:
        super().__init__()
        self.dim_u, self.dim_z, self.beta_range, self.options = dim_u, dim_z, beta_range, options
        self._gated: tuple[weakref.ref[Tensor], Tensor] | None = None
        self.flow = spline_flow(dim_u, dim_z + 2, options.hidden, options.transforms, options.bins, gate=self._gate)

    def forward(self, z: Tensor, beta: Tensor) -> NormalizingFlow:
        """The distribution over `u` given scaled data `z` `(*, k)` and `beta` `(*,)`."""
        return self.flow(self.context(z, beta))

    def context(self, z: Tensor, beta: Tensor) -> Tensor:
        """`(z, t, t^2)` with `t` the position of `log beta` in its range, in [-1, 1]; shape `(*, k + 2)`."""
        low, high = (math.log(b) for b in self.beta_range)
        t = (2 * (beta.log() - low) / (high - low) - 1).to(z.dtype) if high > low else torch.zeros_like(beta)
        return torch.cat([z, torch.stack([t, t.square()], dim=-1)], dim=-1)

    def _gate(self, context: Tensor) -> Tensor:
        # All transforms of the flow ask for that of the same context.
        kept = self._gated
        if kept is None or kept[0]() is not context:
            low, high = (math.log(b) for b in self.beta_range)
            log_ratio = (context[..., -2:-1] + 1) / 2 * (high - low)
            gate = -torch.expm1(-GATE * log_ratio.exp())
            self._gated = weakref.ref(context), gate
            return gate
        return kept[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_gated": None}

    def as_dict(self) -> dict[str, Any]:
        """JSON form of the architecture, read back by `from_dict`; the weights are saved apart."""
        return {
            "dim_u": self.dim_u,
            "dim_z": self.dim_z,
            "beta_range": list(self.beta_range),
            "options": asdict(self.options),
        }

    @classmethod
    def from_dict(cls, spec: dict[str, Any]) -> PosteriorNetwork:
        options = dict(spec["options"])
        low, high = spec["beta_range"]
        options["hidden"] = tuple(options["hidden"])
        return cls(spec["dim_u"], spec["dim_z"], (low, high), NetworkOptions(**options))
