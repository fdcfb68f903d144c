r"""Robust scaling of data `x`: a fixed bijection per column, so that heavy tails do not dominate training.

.. math:: z_j = c\left(\frac{g_j(x_j) - m_j}{s_j}\right), \quad
    c(t) = \begin{cases} t & |t| \le k \\ \operatorname{sign}(t)\,(k + \log(1 + |t| - k)) & |t| > k \end{cases}

with `g_j` the logarithm for positive columns that span orders of magnitude, `sqrt(x + 1/2)` for other counts, whose
noise it makes nearly constant (Bartlett 1936), else the identity, `m_j` the median and `s_j` half of the central 68 %.
A bijection of `x` does not change `p(theta) p(x | theta)^beta`: its Jacobian is free of theta.
"""

from __future__ import annotations

__all__ = ["DataScaling", "long_tails"]

import math
from typing import Any

import torch
from torch import Tensor

from .constants import KNEE, MIN_POSITIVE, OLD_MIN_POSITIVE

_CENTRAL = torch.tensor([0.16, 0.5, 0.84], dtype=torch.float64)
_WIDE = torch.tensor([0.01, 0.99], dtype=torch.float64)
#: Positive columns whose central 68 % spans more than this factor are taken on the log scale.
_LOG_RATIO = 4.0


class DataScaling:
    """The bijection `x -> z`, both `(*, k)`; fitted once, kept while data are added.

    Arguments:
        logarithmic: Which columns are taken on the log scale, boolean `(k,)`.
        center: Median of each column (after the logarithm), `(k,)`.
        scale: Half of the central 68 % of each column, `(k,)`.
        root: Which columns are counts, taken on the square root scale, boolean `(k,)`; none if not given.
        floor: What stands for zero, and for less, before a logarithm.
    """

    def __init__(
        self,
        logarithmic: Tensor,
        center: Tensor,
        scale: Tensor,
        root: Tensor | None = None,
        *,
        floor: float = MIN_POSITIVE,
    ) -> None:
        self.logarithmic, self.center, self.scale = logarithmic.bool(), center.double(), scale.double()
        self.root = torch.zeros_like(self.logarithmic) if root is None else root.bool()
        self.floor = floor
        self._any_logarithmic, self._any_root = bool(self.logarithmic.any()), bool(self.root.any())

    @classmethod
    def fit(cls, x: Tensor) -> DataScaling:
        """Chooses the bijection from data `x` `(n, k)`."""
        x = x.double()
        safe = x.clamp(min=MIN_POSITIVE).log()
        spread = torch.quantile(safe[:100_000], _CENTRAL, dim=0)
        logarithmic = (x > 0).all(dim=0) & (spread[2] - spread[0] > math.log(_LOG_RATIO))
        counts = ((x >= 0) & (x == x.round())).all(dim=0) & (x.amax(dim=0) > 1)
        root = counts & ~logarithmic
        value = torch.where(logarithmic, safe, torch.where(root, _root(x), x))
        quantiles = torch.quantile(value[:100_000], _CENTRAL, dim=0)
        scale = (quantiles[2] - quantiles[0]) / 2
        # Where most values are equal, all others set the scale: by their standard deviation, but by no more than two
        # thirds of them are away, for single outliers must not.
        wide = torch.quantile(value[:100_000], _WIDE, dim=0).diff(dim=0)[0]
        equal = scale <= 1e-6 * wide
        scale = torch.where(equal, value.std(dim=0).nan_to_num(0.0), scale)
        for j in equal.nonzero().flatten().tolist():
            away = (value[:100_000, j] - quantiles[1, j]).abs()
            away = away[away > 1e-6 * wide[j]]
            if len(away):
                scale[j] = scale[j].minimum(torch.quantile(away, 0.68))
        # A constant column carries no information; scale one keeps it finite. Units may be as small as they like.
        scale = torch.where(scale > 1e-12 * quantiles[1].abs(), scale, torch.ones_like(scale))
        return cls(logarithmic, quantiles[1], scale, root)

    @classmethod
    def fit_series(cls, x: Tensor, channels: int) -> DataScaling:
        """One bijection for all numbers of a series; `x` `(n, channels * length)` has one series after the other."""
        one = cls.fit(x.unflatten(1, (channels, -1)).movedim(1, 2).flatten(0, 1))
        length = x.shape[1] // channels
        parts = (one.logarithmic, one.center, one.scale, one.root)
        return cls(*(part.repeat_interleave(length) for part in parts))

    @property
    def dim(self) -> int:
        return self.center.shape[0]

    def __call__(self, x: Tensor) -> Tensor:
        """`z`, `(*, k)` float32."""
        x = x.double()
        value = torch.where(self.root, _root(x), x) if self._any_root else x
        if self._any_logarithmic:
            value = torch.where(self.logarithmic, x.clamp(min=self.floor).log(), value)
        t = (value - self.center) / self.scale
        return long_tails(t).float()

    def inverse(self, z: Tensor) -> Tensor:
        """`x`, `(*, k)` in double precision."""
        z = z.double()
        excess = (z.abs() - KNEE).clamp(0.0, 50.0)
        t = torch.where(z.abs() <= KNEE, z, z.sign() * (KNEE + torch.expm1(excess)))
        value = t * self.scale + self.center
        value = torch.where(self.root, value.clamp(min=0.0).square() - 0.5, value)
        return torch.where(self.logarithmic, value.clamp(max=700.0).exp(), value)

    def log_slope(self, z: Tensor) -> Tensor:
        """`log |dx/dz|` of each column at `z` `(*, k)`, in double precision; finite where `x` is at its bound."""
        z = z.double()
        excess = (z.abs() - KNEE).clamp(0.0, 50.0)
        t = torch.where(z.abs() <= KNEE, z, z.sign() * (KNEE + torch.expm1(excess)))
        value = t * self.scale + self.center
        slope = excess + self.scale.log()
        slope = torch.where(self.root, slope + (2 * value).clamp(min=1e-6).log(), slope)
        return torch.where(self.logarithmic, slope + value.clamp(max=700.0), slope)

    def to(self, device: torch.device | str) -> DataScaling:
        parts = (self.logarithmic, self.center, self.scale, self.root)
        return DataScaling(*(part.to(device) for part in parts), floor=self.floor)

    def as_dict(self) -> dict[str, Any]:
        """JSON form, read back by `from_dict`."""
        return {
            "logarithmic": self.logarithmic.tolist(),
            "center": self.center.tolist(),
            "scale": self.scale.tolist(),
            "root": self.root.tolist(),
            "floor": self.floor,
        }

    @classmethod
    def from_dict(cls, spec: dict[str, Any]) -> DataScaling:
        center, scale = (torch.tensor(spec[k], dtype=torch.float64) for k in ("center", "scale"))
        # Saves of format 1 know no roots.
        root = torch.tensor(spec["root"]) if "root" in spec else None
        floor = float(spec.get("floor", OLD_MIN_POSITIVE))
        return cls(torch.tensor(spec["logarithmic"]), center, scale, root, floor=floor)


def long_tails(t: Tensor) -> Tensor:
    """`c(t)`: values beyond the knee grow like a logarithm."""
    tail = t.sign() * (KNEE + torch.log1p((t.abs() - KNEE).clamp(min=0.0)))
    return torch.where(t.abs() <= KNEE, t, tail)


def _root(x: Tensor) -> Tensor:
    return (x + 0.5).clamp(min=0.0).sqrt()
