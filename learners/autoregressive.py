r"""The masked autoregressive transform of all our flows: gated, and inverted for the price of one evaluation.

.. math:: z_i = g(v_i;\, \phi_i(v_{<i}, c))

The inverse finds `v_1, v_2, ...` one after the other. Evaluating the whole network for each of them, as is usual, makes
a draw `d` times as costly as a density. But a hidden unit that sees `v_{<i}` only is final as soon as those are known:
each step computes just the units that have become computable, and the parameters of its own feature.
"""

from __future__ import annotations

__all__ = ["Gate", "Gated", "Inverse"]

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Transform
from torch.nn.functional import linear
from zuko.flows import MaskedAutoregressiveTransform
from zuko.nn import MaskedLinear
from zuko.transforms import AutoregressiveTransform, DependentTransform

Gate = Callable[[Tensor], Tensor]
#: `g^{-1}(z; phi)` of parameters `(total, n)` and values `(n,)`, in NumPy.
Inverse = Callable[[np.ndarray, np.ndarray], np.ndarray]
Numbers = TypeVar("Numbers", Tensor, np.ndarray)


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
        self._degrees = _degrees(self._layers()[:-1], self.order)
        self._kept: tuple[list[tuple[Tensor, int, int]], _Plan] | None = None

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
        plan = self._plan()
        told = _spread(torch.addmm(plan.bias, plan.context, c.reshape(-1, c.shape[-1]).mT), c, batch)
        gate = None if self.gate is None else _spread(self.gate(c).reshape(1, -1), c, batch)
        quick = self.inverse is not None and z.device.type == "cpu"
        v = self._invert_quickly(flat, plan, told, gate) if quick else self._invert(flat, plan, told, gate)
        return v[self.order].mT.reshape(*batch, features)

    def train(self, mode: bool = True) -> Gated:
        self._kept = None
        super().train(mode)
        return self

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_kept": None}

    def _invert(self, z: Tensor, plan: _Plan, told: Tensor, gate: Tensor | None) -> Tensor:
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

    def _invert_quickly(self, z: Tensor, plan: _Plan, told: Tensor, gate: Tensor | None) -> Tensor:
        """The same in NumPy: its calls cost a third of torch's, and for few draws they are most of the time.

        Products are left to torch: NumPy's are made by threads that `torch.set_num_threads` does not know, and that
        wait for each other by spinning. Where other work shares the cores, draws then take thirty times as long.
        """
        assert self.inverse is not None
        values, first, factor = z.numpy(), told.numpy(), None if gate is None else gate.numpy()
        v, units = torch.empty_like(z), [z.new_empty(size, z.shape[1]) for size in plan.units]
        found, outputs = v.numpy(), [unit.numpy() for unit in units]
        with np.errstate(over="ignore"):  # of exponentials whose reciprocal is then zero
            for i, (step, arrays) in enumerate(zip(plan.steps, plan.arrays, strict=True)):
                known = v[:i]
                for unit, output, (rows, weight, _), (*_, bias) in zip(
                    units, outputs, step.hidden, arrays.hidden, strict=True
                ):
                    torch.mm(weight, known, out=unit[rows])
                    new = output[rows]
                    new += first[rows] if bias is None else bias
                    _silu(new)
                    known = unit[: rows.stop]
                phi = torch.mm(step.weight, known).numpy()
                phi += arrays.bias
                if factor is not None:
                    phi *= factor
                found[i] = self.inverse(phi, values[step.feature])
        return v

    def _plan(self) -> _Plan:
        """The weights as `invert` needs them; sorted anew while they are trained, kept afterwards."""
        if self._kept is not None:
            states, plan = self._kept
            if all(p._version == version and p.data_ptr() == place for p, version, place in states):
                return plan
        plan = _sorted(self._layers(), self._degrees, self.order, self.total)
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


@dataclass(frozen=True)
class _Step(Generic[Numbers]):
    """One feature: which units of every hidden layer have become computable, and what gives the parameters.

    The first layer's bias depends on the context, and is None.
    """

    feature: int
    hidden: list[tuple[slice, Numbers, Numbers | None]]
    weight: Numbers
    bias: Numbers


@dataclass(frozen=True)
class _Plan:
    """The network with its units in the order in which they become computable.

    Attributes:
        context, bias: What the context adds to the first layer.
        units: Units of each hidden layer.
        steps: One a feature, in their order.
    """

    context: Tensor
    bias: Tensor
    units: list[int]
    steps: list[_Step[Tensor]]

    @cached_property
    def arrays(self) -> list[_Step[np.ndarray]]:
        """The steps in NumPy, for weights on the CPU."""
        return [
            _Step(
                step.feature,
                [(rows, _array(w), None if b is None else _array(b)) for rows, w, b in step.hidden],
                _array(step.weight),
                _array(step.bias),
            )
            for step in self.steps
        ]


@torch.no_grad()
def _sorted(layers: list[MaskedLinear], degrees: list[Tensor], order: Tensor, total: int) -> _Plan:
    features = len(order)
    sorting = [degree.argsort(stable=True).to(order.device) for degree in degrees]
    known = order.argsort()
    first, *deeper, last = (layer.weight * layer.mask for layer in layers)
    weights = [first[sorting[0]][:, known]]
    weights += [w[rows][:, columns] for w, columns, rows in zip(deeper, sorting, sorting[1:], strict=False)]
    biases = [layer.bias[rows][:, None] for layer, rows in zip(layers, sorting, strict=False)]
    last = last[:, sorting[-1]].reshape(features, total, -1)
    last_bias = layers[-1].bias.reshape(features, total, 1)
    steps = []
    done = [0] * len(sorting)
    for step, feature in enumerate(known.tolist()):
        hidden, seen = [], step
        for k, degree in enumerate(degrees):
            rows = slice(done[k], int((degree <= step).sum()))
            hidden.append((rows, weights[k][rows, :seen], None if k == 0 else biases[k][rows]))
            done[k] = seen = rows.stop
        steps.append(_Step(feature, hidden, last[feature][:, :seen], last_bias[feature]))
    return _Plan(first[sorting[0]][:, features:], biases[0], [len(rows) for rows in sorting], steps)


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().numpy())


def _silu(x: np.ndarray) -> None:
    """`x / (1 + exp(-x))`, in place."""
    x /= np.exp(-x) + 1


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
