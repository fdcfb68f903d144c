r"""A regression of data on a lattice, such as counts: what is observed is a cell, and has a probability.

.. math:: P(x_j \mid u) = \Phi\!\left(\frac{b_j - m_j(u)}{s_j(u)}\right)
    - \Phi\!\left(\frac{a_j - m_j(u)}{s_j(u)}\right)

with the ends `a_j < b_j` of the cell of `x_j` in scaled data; those of a count of zero are minus infinity and its upper
end (rounded Gaussian kernels, Canale & Dunson 2011, JASA 106). On the root scale this is close to Poisson and binomial
counts of any mean, those near zero included, where a density of spread values (`lattice.py`) has steps that no flow
learns from few simulations. For counts on that scale `m` and `s` start from those of a Poisson count with the mean
`lambda_j(u)`, whose logarithm is what the network says: where next to nothing is counted, nothing is learned of
`lambda`, and a logarithm goes on as it was going. In units of the root of the count, before they are scaled,

.. math:: m_j = \sqrt{\lambda_j + 0.3 - 0.1\, e^{-\lambda_j}}, \qquad s_j = (0.5 - 0.2\, e^{-\lambda_j})\, e^{r_j(u)}

Columns that are not on a lattice have the normal density.
"""

from __future__ import annotations

__all__ = ["Rounded"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.special import log_ndtr
from zuko.nn import MLP

from .constants import KNEE, MAX_LOG_SCALE
from .lattice import Lattice
from .scaling import DataScaling, long_tails

#: Cells narrower than this many standard deviations have the density in their middle.
_NARROW = 0.05
#: Standard deviations beyond which nothing gets less probable: in single precision the gradient would overflow.
_FARTHEST = 1e3
#: How fast the logarithm of a count follows the network, and where it may go.
_LINK, _LOG_COUNTS = 2.0, (-12.0, 25.0)
_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class Rounded(nn.Module):
    """Called with contexts `c` `(n, m)`, it gives a distribution over scaled data `z` `(n, k)`.

    Arguments:
        features: Dimension k of `z`.
        context: Dimension m of `c`.
        hidden: Widths of the hidden layers.
    """

    def __init__(self, features: int, context: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.network = MLP(context, 2 * features, hidden, activation=nn.SiLU)
        self.linear = nn.Linear(context, 2 * features)
        for parameter in (self.network[-1].weight, self.network[-1].bias, self.linear.weight, self.linear.bias):
            nn.init.zeros_(parameter)
        self.register_buffer("log_count", torch.zeros(features))
        self.register_buffer("step", torch.zeros(features, dtype=torch.float64))
        self.register_buffer("origin", torch.zeros(features, dtype=torch.float64))
        self.register_buffer("center", torch.zeros(features, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(features, dtype=torch.float64))
        self.register_buffer("logarithmic", torch.zeros(features, dtype=torch.bool))
        self.register_buffer("root", torch.zeros(features, dtype=torch.bool))
        self.log_count: Tensor
        self.step: Tensor
        self.origin: Tensor
        self.center: Tensor
        self.scale: Tensor
        self.logarithmic: Tensor
        self.root: Tensor

    def set_lattice(self, lattice: Lattice, z: Tensor) -> None:
        """Takes the cells of the data, and a first guess from data `z` `(n, k)`."""
        scaling = lattice.scaling
        self.step.copy_(lattice.step)
        self.origin.copy_(lattice.origin)
        self.center.copy_(scaling.center)
        self.scale.copy_(scaling.scale)
        self.logarithmic.copy_(scaling.logarithmic)
        self.root.copy_(scaling.root)
        mean = self.scaling.inverse(z).clamp(min=0.0).mean(dim=0)
        self.log_count.copy_((mean + 0.5).log())

    @property
    def has_lattice(self) -> bool:
        return bool((self.step > 0).any())

    @property
    def scaling(self) -> DataScaling:
        """The bijection `x -> z`."""
        return DataScaling(self.logarithmic, self.center, self.scale, self.root)

    def forward(self, c: Tensor) -> _RoundedNormal:
        said, log_scale = (self.network(c) + self.linear(c)).chunk(2, dim=-1)
        log_scale = log_scale.clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE)
        count = torch.exp((_LINK * said + self.log_count).clamp(*_LOG_COUNTS))
        none = torch.exp(-count)
        center, scale = self.center.to(said.dtype), self.scale.to(said.dtype)
        root = (torch.sqrt(count + 0.3 - 0.1 * none) - center) / scale
        log_root = log_scale + torch.log(0.5 - 0.2 * none) - scale.log() - torch.log1p((root.abs() - KNEE).clamp(min=0))
        mean = torch.where(self.root, long_tails(root), said)
        return _RoundedNormal(self, mean, torch.where(self.root, log_root, log_scale))

    @torch.no_grad()
    def cells(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Lower and upper ends, middles in x, and `log |dx/dz| - log h`, of the cells of `z`: each `(*, k)`.

        Where there is no lattice the ends are `z` itself, and the last is zero.
        """
        scaling, on = self.scaling, self.step > 0
        step = self.step.where(on, 1.0)
        x = scaling.inverse(z)
        middle = torch.where(on, self.origin + step * ((x - self.origin) / step).round(), x)
        lower, upper = scaling(middle - step / 2), scaling(middle + step / 2)
        lower = lower.masked_fill(self.root & (middle < step / 2), -math.inf)
        slope = (scaling.log_slope(z) - step.log()).to(z.dtype)
        return torch.where(on, lower, z), torch.where(on, upper, z), middle, torch.where(on, slope, 0.0)


class _RoundedNormal:
    """See `Rounded`."""

    def __init__(self, cells: Rounded, mean: Tensor, log_scale: Tensor) -> None:
        self.cells, self.mean, self.log_scale = cells, mean, log_scale

    def log_prob(self, z: Tensor) -> Tensor:
        """The density `P h^{-1} |dx/dz|` of values spread over their cells, `(n,)`."""
        lower, upper, _, slope = self.cells.cells(z)
        inverse = torch.exp(-self.log_scale)
        # What is not chosen must be finite, or its gradient would not be.
        open_ = lower == -math.inf
        lower = torch.where(open_, upper - 1, lower)
        a, b = (((end - self.mean) * inverse).clamp(-_FARTHEST, _FARTHEST) for end in (lower, upper))
        narrow = ~open_ & (b - a <= _NARROW)
        log_cell = _log_cell(a.where(~narrow, -1.0), b.where(~narrow, 1.0), open_)
        middle = ((lower + upper) / 2 - self.mean) * inverse
        on = self.cells.step > 0
        width = torch.where(on, (upper - lower).clamp(min=1e-30).log(), 0.0)
        log_density = -0.5 * middle.square() - _LOG_SQRT_2PI - self.log_scale + width
        return (torch.where(narrow, log_density, log_cell) + slope).sum(dim=-1)

    def sample(self) -> Tensor:
        """One draw `z` `(n, k)`: on a lattice, as real data, in the middle of a cell."""
        z = self.mean + self.log_scale.exp() * torch.randn_like(self.mean)
        on = self.cells.step > 0
        middle = self.cells.cells(z)[2]
        # A root has no negative counts.
        middle = torch.where(self.cells.root, middle.clamp(min=0.0), middle)
        return torch.where(on, self.cells.scaling(middle), z)


def _log_cell(a: Tensor, b: Tensor, open_: Tensor) -> Tensor:
    """`log (Phi(b) - Phi(a))` of `a < b`, without cancellation in either tail; where `open_`, a is minus infinity."""
    above = a + b > 0
    near, far = torch.where(above, -a, b), torch.where(above, -b, a)
    log_near, log_far = log_ndtr(near), log_ndtr(far)
    inside = log_near + torch.log(-torch.expm1((log_far - log_near).clamp(max=-1e-7)))
    return torch.where(open_, log_ndtr(b), inside)
