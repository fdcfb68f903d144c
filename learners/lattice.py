r"""Counts, codes and constants have no density: a flow fitted to them collapses onto single values.

Before a density is fitted, each such value is spread evenly over its cell,

.. math:: x' = x + h\,(w - \tfrac12), \quad w \sim U[0, 1)
    \qquad \Rightarrow \qquad \int_\text{cell} p(x' \mid \theta)\, dx' = P(x \mid \theta)

(Theis et al. 2016, arXiv 1511.01844), so that the density at an observed value is its probability over the cell's
width `h`, which is free of theta.
"""

from __future__ import annotations

__all__ = ["Lattice", "lattice_steps", "spread"]

from dataclasses import dataclass

import torch
from torch import Tensor

from .scaling import DataScaling

#: Gaps below this share of a column's range are rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Lattice:
    """Where data lie on a lattice, and how they are scaled.

    Attributes:
        step: Width of a cell of each column, zero where there are none, `(k,)`.
        origin: A value of each column, in the middle of its cell, `(k,)`.
        scaling: The bijection `x -> z`.
    """

    step: Tensor
    origin: Tensor
    scaling: DataScaling


def spread(x: Tensor, steps: Tensor, generator: torch.Generator) -> Tensor:
    """`x` `(n, k)` with each value spread evenly over a cell of the column's width, `steps` `(k,)`; zero for none."""
    if not steps.any():
        return x
    return x + steps * (torch.rand(x.shape, generator=generator, dtype=x.dtype) - 0.5)


def lattice_steps(x: Tensor) -> Tensor:
    """Smallest gap between the values of each column of `x` `(n, k)` whose values mostly repeat, else zero, `(k,)`."""
    return torch.stack([_step(column) for column in x.unbind(-1)])


def _step(column: Tensor) -> Tensor:
    values = column.unique()
    if 2 * len(values) > len(column):
        return column.new_zeros(())
    gaps = values.diff()
    gaps = gaps[gaps > _ROUNDING * (values[-1] - values[0])]
    # A constant carries no information; any width serves.
    return gaps.min() if len(gaps) else column.new_ones(())
