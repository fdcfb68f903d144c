r"""The masked autoregressive transform of all our flows: gated, and inverted for the price of one evaluation.

.. math:: z_i = g(v_i;\, \phi_i(v_{<i}, c))

How it is inverted is in `stepwise.py`.
"""

from __future__ import annotations

__all__ = ["Gate", "Gated"]

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Transform
from torch.nn.functional import linear
from zuko.flows import MaskedAutoregressiveTransform
from zuko.nn import MaskedLinear
from zuko.transforms import AutoregressiveTransform, DependentTransform

from .stepwise import Inverse, Plan, degrees_of, invert, spread

Gate = Callable[[Tensor], Tensor]


class Gated(MaskedAutoregressiveTransform):
    """zuko's masked autoregressive transform with parameters multiplied by `gate(c)` and handed over `(total, *)`.

    Parameters of zero are the identity for affine and spline transforms alike, and so is the start: the
    last layer begins at (almost) zero. `inverse` is the inverse of `univariate` in NumPy, for draws on a CPU; the
    activation is then SiLU.
    """

    def __new__(cls, *args: object, **options: object) -> Gated:
        # zuko would build another class, one without a gate, for a single feature.
        return object.__new__(cls)

    def __init__(
        self,
        features: int,
        context: int,
        gate: Gate | None = None,
        inverse: Inverse | None = None,
        **options: object,
    ) -> None:
        super().__init__(features, context, **options)
        self.gate, self.inverse = gate, inverse
        with torch.no_grad():
            for parameter in self.hyper[-1].parameters():
                parameter.mul_(0.1)
        self._degrees = degrees_of([layer.mask.numpy() for layer in self._layers()], self.order.numpy())
        self._kept: tuple[list[tuple[Tensor, int, int]], Plan[Any]] | None = None

    def forward(self, c: Tensor | None = None) -> Transform:
        assert c is not None, "the transform is conditional"
        return _SequentialTransform(self, c)

    def meta(self, c: Tensor, x: Tensor) -> Transform:
        first, *others = self.hyper
        weight = first.mask * first.weight
        # Apart, for the context is often the same for many x.
        told = linear(c, weight[:, x.shape[-1] :], first.bias)
        phi = linear(x, weight[:, : x.shape[-1]]) + told
        for layer in others:
            phi = layer(phi)
        if self.gate is not None:
            phi = phi * self.gate(c)
        # Parameters first: what follows works on long contiguous rows.
        phi = phi.unflatten(-1, (-1, self.total)).movedim(-1, 0).contiguous()
        return DependentTransform(self.univariate(phi), 1)

    def invert(self, z: Tensor, c: Tensor) -> Tensor:
        """`v` `(*, d)` with `f(v | c) = z`; no gradients."""
        batch = torch.Size(np.broadcast_shapes(z.shape[:-1], c.shape[:-1]))
        flat = z.expand(*batch, z.shape[-1]).reshape(-1, z.shape[-1]).mT.contiguous()
        features = len(flat)
        inverse = self.inverse if z.device.type == "cpu" else None
        plan = self._plan(quick=inverse is not None)
        context, bias = (torch.as_tensor(part) for part in (plan.context, plan.bias))
        told = spread(torch.addmm(bias, context, c.reshape(-1, c.shape[-1]).mT), c.shape[:-1], batch)
        gate = None if self.gate is None else spread(self.gate(c).reshape(1, -1), c.shape[:-1], batch)
        if inverse is None:
            v = self._invert(flat, plan, told, gate)
        else:
            factor = None if gate is None else gate.numpy()
            v = torch.from_numpy(invert(plan, flat.numpy(), told.numpy(), factor, inverse, _multiply))
        return v[self.order].mT.reshape(*batch, features)

    def train(self, mode: bool = True) -> Gated:
        self._kept = None
        super().train(mode)
        return self

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_kept": None}

    def _invert(self, z: Tensor, plan: Plan[Tensor], told: Tensor, gate: Tensor | None) -> Tensor:
        """`v` of `z` `(d, n)`, in the order of the steps."""
        activations = [layer for layer in self.hyper if not isinstance(layer, MaskedLinear)]
        v = torch.empty_like(z)
        units = [z.new_empty(size, z.shape[1]) for size in plan.units]
        for i, step in enumerate(plan.steps):
            known = v[:i]
            for unit, activation, (rows, weight, bias) in zip(units, activations, step.hidden, strict=True):
                unit[rows] = activation(torch.addmm(told[rows] if bias is None else bias, weight, known))
                known = unit[: rows.stop]
            phi = torch.addmm(step.bias, step.weight, known)
            v[i] = self.univariate(phi if gate is None else phi * gate).inv(z[step.feature])
        return v

    def _plan(self, quick: bool) -> Plan[Any]:
        """The weights as `invert` needs them, arrays if it is quick; sorted anew while trained, kept afterwards."""
        if self._kept is not None:
            states, plan = self._kept
            if all(p._version == version and p.data_ptr() == place for p, version, place in states):
                return plan
        layers = self._layers()
        with torch.no_grad():
            weights, biases = [layer.weight * layer.mask for layer in layers], [layer.bias for layer in layers]
            plan = Plan.of(weights, biases, self._degrees, self.order.cpu().numpy())
        if quick:
            plan = plan.map(_array)
        states = [(p, p._version, p.data_ptr()) for p in self.hyper.parameters()]
        self._kept = None if self.training else (states, plan)
        return plan

    def _layers(self) -> list[MaskedLinear]:
        return [layer for layer in self.hyper if isinstance(layer, MaskedLinear)]


class _SequentialTransform(AutoregressiveTransform):
    def __init__(self, lazy: Gated, c: Tensor) -> None:
        super().__init__(partial(lazy.meta, c), lazy.passes)
        self._lazy, self._c = lazy, c

    def _inverse(self, y: Tensor) -> Tensor:
        # What is written in place cannot be differentiated.
        return super()._inverse(y) if torch.is_grad_enabled() else self._lazy.invert(y, self._c)


def _multiply(left: np.ndarray, right: np.ndarray, out: np.ndarray) -> None:
    """By torch: NumPy's products are made by threads that `torch.set_num_threads` does not know.

    They wait for each other by spinning. Where other work shares the cores, draws then take thirty times as long.
    """
    torch.mm(torch.from_numpy(left), torch.from_numpy(right), out=torch.from_numpy(out))


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().numpy())
