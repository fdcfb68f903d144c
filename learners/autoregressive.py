r"""The masked autoregressive transform of all our flows: gated, and inverted for the price of one evaluation.

.. math:: z_i = g(v_i;\, \phi_i(v_{<i}, c))

The inverse finds `v_1, v_2, ...` one after the other. Evaluating the whole network for each of them, as is usual, makes
a draw `d` times as costly as a density. But a hidden unit that sees `v_{<i}` only is final as soon as those are known:
each step computes just the units that have become computable, and the parameters of its own feature.
"""

from __future__ import annotations

__all__ = ["Gate", "Gated"]

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.distributions import Transform
from zuko.flows import MaskedAutoregressiveTransform
from zuko.nn import MaskedLinear
from zuko.transforms import AutoregressiveTransform, DependentTransform

Gate = Callable[[Tensor], Tensor]


class Gated(MaskedAutoregressiveTransform):
    """zuko's masked autoregressive transform with parameters multiplied by `gate(c)` and handed over `(total, *)`.

    Parameters of zero are the identity for affine and spline transforms alike, and so is the start: the
    last layer begins at (almost) zero.
    """

    def __new__(cls, *args: object, **options: object) -> Gated:
        # zuko would build another class, one without a gate, for a single feature.
        return object.__new__(cls)

    def __init__(self, features: int, context: int, gate: Gate | None = None, **options: object) -> None:
        super().__init__(features, context, **options)
        self.gate = gate
        with torch.no_grad():
            for parameter in self.hyper[-1].parameters():
                parameter.mul_(0.1)
        self._degrees = _degrees(self._layers()[:-1], self.order)

    def forward(self, c: Tensor | None = None) -> Transform:
        assert c is not None, "the transform is conditional"
        return _SequentialTransform(self, c)

    def meta(self, c: Tensor, x: Tensor) -> Transform:
        batch = torch.broadcast_shapes(x.shape[:-1], c.shape[:-1])
        phi = self.hyper(torch.cat([x.expand(*batch, x.shape[-1]), c.expand(*batch, c.shape[-1])], dim=-1))
        if self.gate is not None:
            phi = phi * self.gate(c)
        # Parameters first: what follows works on long contiguous rows.
        phi = phi.unflatten(-1, (-1, self.total)).movedim(-1, 0).contiguous()
        return DependentTransform(self.univariate(phi), 1)

    def invert(self, z: Tensor, c: Tensor) -> Tensor:
        """`v` `(*, d)` with `f(v | c) = z`; no gradients."""
        batch = torch.broadcast_shapes(z.shape[:-1], c.shape[:-1])
        flat = z.expand(*batch, z.shape[-1]).reshape(-1, z.shape[-1]).mT
        features, count = flat.shape
        layers = self._layers()
        # Units first, in the order in which they become computable.
        sorting = [degree.argsort(stable=True).to(z.device) for degree in self._degrees]
        order = self.order.argsort()
        first, *deeper, last = (layer.weight * layer.mask for layer in layers)
        weights = [first[sorting[0]][:, order]]
        weights += [w[rows][:, columns] for w, columns, rows in zip(deeper, sorting, sorting[1:], strict=False)]
        last = last[:, sorting[-1]].reshape(features, self.total, -1)
        biases = [layer.bias[rows][:, None] for layer, rows in zip(layers, sorting, strict=False)]
        biases[0] = _spread(first[sorting[0]][:, features:] @ c.reshape(-1, c.shape[-1]).mT + biases[0], c, batch)
        gate = None if self.gate is None else _spread(self.gate(c).reshape(1, -1), c, batch)
        v = z.new_empty(features, count)
        units = [z.new_empty(len(rows), count) for rows in sorting]
        done = [0] * len(units)
        for step, feature in enumerate(order.tolist()):
            known = v[:step]
            for k, unit in enumerate(units):
                rows = slice(done[k], int((self._degrees[k] <= step).sum()))
                value = biases[k][rows] + weights[k][rows, : len(known)] @ known
                unit[rows] = self.hyper[2 * k + 1](value)
                done[k] = rows.stop
                known = unit[: rows.stop]
            bias = layers[-1].bias.reshape(features, self.total, 1)[feature]
            phi = torch.addmm(bias, last[feature][:, : len(known)], known)
            v[step] = self.univariate(phi if gate is None else phi * gate).inv(flat[feature])
        return v[self.order].mT.reshape(*batch, features)

    def _layers(self) -> list[MaskedLinear]:
        return [layer for layer in self.hyper if isinstance(layer, MaskedLinear)]


class _SequentialTransform(AutoregressiveTransform):
    def __init__(self, lazy: Gated, c: Tensor) -> None:
        super().__init__(partial(lazy.meta, c), lazy.passes)
        self._lazy, self._c = lazy, c

    def _inverse(self, y: Tensor) -> Tensor:
        # What is written in place cannot be differentiated.
        return super()._inverse(y) if torch.is_grad_enabled() else self._lazy.invert(y, self._c)


def _degrees(layers: list[MaskedLinear], order: Tensor) -> list[Tensor]:
    """How many features must be known before each unit of every hidden layer can be computed."""
    seen = torch.eye(len(order))
    degrees = []
    for k, layer in enumerate(layers):
        mask = layer.mask[:, : len(order)] if k == 0 else layer.mask
        seen = (mask.float() @ seen > 0).float()
        degrees.append((seen * (order.cpu() + 1)).amax(dim=-1).long())
    return degrees


def _spread(values: Tensor, c: Tensor, batch: torch.Size) -> Tensor:
    """Values `(m, b)` of the contexts `(*b, k)` for the flattened batch: `(m, n)`, or `(m, 1)` for a single context."""
    if values.shape[-1] == 1:
        return values
    missing = [1] * (len(batch) + 1 - c.ndim)
    return values.reshape(len(values), *missing, *c.shape[:-1]).expand(-1, *batch).reshape(len(values), -1)
