r"""How an autoregressive transform is inverted for the price of one evaluation. Without torch.

The inverse of `z_i = g(v_i; phi_i(v_{<i}, c))` finds `v_1, v_2, ...` one after the other. Evaluating the whole network
for each of them, as is usual, makes a draw `d` times as costly as a density. But a hidden unit that sees `v_{<i}` only
is final as soon as those are known: each step computes just the units that have become computable, and the parameters
of its own feature. In NumPy, whose calls cost a third of torch's: for few draws they are most of the time.
"""

from __future__ import annotations

__all__ = ["Inverse", "Plan", "Step", "degrees_of", "invert", "silu", "spread"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

#: Arrays, or torch's tensors.
Numbers = TypeVar("Numbers")
#: `g^{-1}(z; phi)` of parameters `(total, n)` and values `(n,)`.
Inverse = Callable[[np.ndarray, np.ndarray], np.ndarray]
#: Writes the product of the first two arrays into the third.
Multiply = Callable[[np.ndarray, np.ndarray, np.ndarray], object]


@dataclass(frozen=True)
class Step(Generic[Numbers]):
    """One feature: which units of every hidden layer have become computable, and what gives the parameters.

    The first layer's bias depends on the context, and is None.
    """

    feature: int
    hidden: list[tuple[slice, Numbers, Numbers | None]]
    weight: Numbers
    bias: Numbers


@dataclass(frozen=True)
class Plan(Generic[Numbers]):
    """The network with its units in the order in which they become computable.

    Attributes:
        context, bias: What the context adds to the first layer, `(h, k)` and `(h, 1)`.
        units: Units of each hidden layer.
        steps: One a feature, in their order.
    """

    context: Numbers
    bias: Numbers
    units: list[int]
    steps: list[Step[Numbers]]

    @classmethod
    def of(
        cls, weights: Sequence[Any], biases: Sequence[Any], degrees: Sequence[np.ndarray], order: np.ndarray
    ) -> Plan[Any]:
        """Sorts the layers' weights `(out, in)`, which are zero where their masks are; see `degrees_of`."""
        features = len(order)
        sorting = [degree.argsort(kind="stable") for degree in degrees]
        known = order.argsort()
        first, *deeper, last = weights
        sorted_weights = [first[sorting[0]][:, known]]
        sorted_weights += [w[rows][:, columns] for w, columns, rows in zip(deeper, sorting, sorting[1:], strict=False)]
        sorted_biases = [bias[rows][:, None] for bias, rows in zip(biases, sorting, strict=False)]
        total = len(last) // features
        last = last[:, sorting[-1]].reshape(features, total, -1)
        last_bias = biases[-1].reshape(features, total, 1)
        steps = []
        done = [0] * len(sorting)
        for step, feature in enumerate(known.tolist()):
            hidden, seen = [], step
            for k, degree in enumerate(degrees):
                rows = slice(done[k], int((degree <= step).sum()))
                hidden.append((rows, sorted_weights[k][rows, :seen], None if k == 0 else sorted_biases[k][rows]))
                done[k] = seen = rows.stop
            steps.append(Step(feature, hidden, last[feature][:, :seen], last_bias[feature]))
        return cls(first[sorting[0]][:, features:], sorted_biases[0], [len(rows) for rows in sorting], steps)

    def map(self, change: Callable[[Any], Any]) -> Plan[Any]:
        """The same of changed weights."""
        steps = [
            Step(
                step.feature,
                [(rows, change(w), None if b is None else change(b)) for rows, w, b in step.hidden],
                change(step.weight),
                change(step.bias),
            )
            for step in self.steps
        ]
        return Plan(change(self.context), change(self.bias), self.units, steps)


def invert(
    plan: Plan[np.ndarray],
    z: np.ndarray,
    told: np.ndarray,
    gate: np.ndarray | np.float32 | None,
    inverse: Inverse,
    multiply: Multiply = np.matmul,
) -> np.ndarray:
    """`v` of `z` `(d, n)`, in the order of the steps; the activation is SiLU.

    Arguments:
        plan: The network.
        z: Values to invert.
        told: What the context adds to the first layer, `(h, n)` or `(h, 1)`.
        gate: Factor on all parameters, `(1, n)`, `(1, 1)` or a number.
        inverse: Of the elementwise transform.
        multiply: Makes the products.
    """
    n = z.shape[1]
    v, units = np.empty_like(z), [np.empty((size, n), z.dtype) for size in plan.units]
    with np.errstate(over="ignore"):  # of exponentials whose reciprocal is then zero
        for i, step in enumerate(plan.steps):
            known = v[:i]
            for unit, (rows, weight, bias) in zip(units, step.hidden, strict=True):
                new = unit[rows]
                multiply(weight, known, new)
                new += told[rows] if bias is None else bias
                silu(new)
                known = unit[: rows.stop]
            phi = np.empty((len(step.weight), n), z.dtype)
            multiply(step.weight, known, phi)
            phi += step.bias
            if gate is not None:
                phi *= gate
            v[i] = inverse(phi, z[step.feature])
    return v


def silu(x: np.ndarray) -> np.ndarray:
    """`x / (1 + exp(-x))`, in place."""
    x /= np.exp(-x) + 1
    return x


def spread(values: Any, shape: Sequence[int], batch: Sequence[int]) -> Any:
    """Values `(m, b)` of contexts of a shape `(*b,)` for the flattened batch: `(m, n)`, or `(m, 1)` for one context."""
    if values.shape[-1] == 1:
        return values
    missing = [1] * (len(batch) - len(shape))
    wide = values.reshape(len(values), *missing, *shape)
    whole = (len(values), *batch)
    wide = np.broadcast_to(wide, whole) if isinstance(wide, np.ndarray) else wide.expand(whole)
    return wide.reshape(len(values), -1)


def degrees_of(masks: Sequence[np.ndarray], order: np.ndarray) -> list[np.ndarray]:
    """How many features must be known before each unit of every hidden layer can be computed.

    Arguments:
        masks: Which weights of each layer are used, `(out, in)`; those of the context come last.
        order: Place of every feature, `(d,)`.
    """
    seen = np.eye(len(order), dtype=np.float32)
    degrees = []
    for k, mask in enumerate(masks[:-1]):
        reaches = mask[:, : len(order)] if k == 0 else mask
        seen = (reaches.astype(np.float32) @ seen > 0).astype(np.float32)
        degrees.append((seen * (order + 1)).max(axis=-1).astype(np.int64))
    return degrees
