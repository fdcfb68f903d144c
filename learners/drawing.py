r"""A saved posterior that does nothing but draw, and does so without torch.

Importing torch takes longer than everything else before a first draw, and a service needs no gradients. The formulas
are those of `PosteriorNetwork`, `Guide`, `DataScaling`, `Familiarity` and `Whitening`, in NumPy; draws with a seed are
those of `TemperedPosterior`, but for rounding.

.. math:: \theta = T^{-1}\big(f^{-1}(\epsilon \mid z(x), \beta)\big), \qquad \epsilon \sim \mathcal N(0, I)
"""

from __future__ import annotations

__all__ = ["DrawingPosterior"]

import math
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from threadpoolctl import ThreadpoolController

from .asking import check_beta, check_x, noise, pieces, unlike
from .constants import FIRST_SCORING_STEPS, GATE, KNEE, LOG_DEGREES, MAX_LOG_SCALE, OLD_MIN_POSITIVE
from .laplace import tempered
from .saved_check import check_parts
from .saved_files import DAMAGE, TENSORS, damaged, read_spec
from .scoring import ROWS, hints
from .spline_inverse import invert_spline
from .stepwise import Plan, degrees_of, invert, silu, spread
from .unwhitening import Unwhitening, unwhitening_from_dict

Arrays = dict[str, np.ndarray]
#: The number of threads is the process's: who draws meanwhile must wait.
_ONE_THREAD = threading.Lock()


class DrawingPosterior:
    """Made by `load`.

    Arguments:
        spec: What `posterior.json` holds.
        arrays: What `posterior.safetensors` holds.
        to_theta: The whitening's inverse.
    """

    def __init__(self, spec: dict[str, Any], arrays: Arrays, to_theta: Unwhitening) -> None:
        network, scaling = spec["network"], spec["scaling"]
        self.names = tuple(spec["names"])
        low, high = network["beta_range"]
        self.beta_range: tuple[float, float] = (low, high)
        self.dim_theta, self.dim_x = int(network["dim_u"]), int(network["dim_z"])
        self._to_theta = to_theta
        self._logarithmic = np.array(scaling["logarithmic"], dtype=bool)
        self._root = np.array(scaling.get("root", np.zeros(self.dim_x)), dtype=bool)
        self._floor = float(scaling.get("floor", OLD_MIN_POSITIVE))
        self._center, self._scale = (np.array(scaling[key], dtype=np.float64) for key in ("center", "scale"))
        self._mean, self._precision, self._distances = (
            arrays[f"familiarity.{key}"] for key in ("mean", "precision", "distances")
        )
        guide = network.get("guide")
        self._guide = None if guide is None else _Guide(_part(arrays, "network.guide."), guide)
        flow = "network.flow.transform.transforms."
        self._regression = _Regression(_part(arrays, f"{flow}0."))
        count = network["options"]["transforms"]
        self._trunk = _layers(_part(arrays, "network.flow."), "trunk.")
        self._transforms = [_Transform(_part(arrays, f"{flow}{i}.")) for i in range(1, count + 1)]
        self._threads = ThreadpoolController()

    @classmethod
    def load(cls, source: str | Path) -> DrawingPosterior | None:
        """What `TemperedPosterior.save` wrote, or None where it takes torch: an embedding, an unusual prior.

        Raises:
            SavedModelError: Nothing there, damaged, or written by a newer version.
        """
        directory, spec = read_spec(source)
        try:
            arrays = load_file(directory / TENSORS)
            check_parts(spec, arrays)
            to_theta = None if spec.get("embedding") else unwhitening_from_dict(spec["whitening"])
            return None if to_theta is None else cls(spec, arrays, to_theta)
        except DAMAGE as error:
            raise damaged(directory, error) from error

    def sample_batched(self, count: int, x: np.ndarray, beta: float = 1.0, seed: int | None = None) -> np.ndarray:
        """Draws of `q(theta | x, beta)` for observations `x` `(b, k)`: `(count, b, d)`, float32.

        Raises:
            TemperatureError: `beta` outside the trained range.
            ObservationError: x of another shape, or not finite.
        """
        x = np.asarray(x, dtype=np.float64)
        check_x(x.shape, int(np.count_nonzero(~np.isfinite(x))), self.dim_x)
        beta = check_beta(beta, self.beta_range)
        generator, rows = noise(seed), len(x)
        draws = np.empty((count, rows, self.dim_theta), dtype=np.float32)
        with _ONE_THREAD, self._threads.limit(limits=1, user_api="blas"):
            z = self._scaled(x)
            warning = unlike(self._p_value(z))
            said, frames = (None, None) if self._guide is None else self._guide(z)
            context, gate = self._context(z if said is None else np.concatenate([z, said], axis=-1), beta)
            regression, unwhitened = self._regression.at(context, gate), _unwhitening(said, frames, beta)
            of_contexts = [transform.told(context) for transform in self._transforms]
            done = 0
            for n in pieces(count, rows):
                noisy = generator.standard_normal((n, rows, self.dim_theta), dtype=np.float32)
                v = noisy.reshape(-1, self.dim_theta).T.copy()
                for transform, of_context in zip(reversed(self._transforms), reversed(of_contexts), strict=True):
                    v = transform.invert(v, spread(of_context, (rows,), (n, rows)), gate)
                u = unwhitened(regression(v.reshape(self.dim_theta, n, rows)))
                draws[done : done + n] = self._to_theta(u)
                done += n
        if warning is not None:
            warnings.warn(warning, stacklevel=2)
        return draws

    def _scaled(self, x: np.ndarray) -> np.ndarray:
        """`DataScaling`: `(b, k)` float32."""
        with np.errstate(invalid="ignore"):  # of what the masks leave out
            value = np.where(self._root, np.sqrt(np.maximum(x + 0.5, 0.0)), x)
            value = np.where(self._logarithmic, np.log(np.maximum(x, self._floor)), value)
        t = (value - self._center) / self._scale
        beyond = np.maximum(np.abs(t) - KNEE, 0.0)
        return np.where(beyond == 0.0, t, np.sign(t) * (KNEE + np.log1p(beyond))).astype(np.float32)

    def _p_value(self, z: np.ndarray) -> np.ndarray:
        """`Familiarity`: `(b,)`."""
        centered = z.astype(np.float64) - self._mean
        distance = ((centered @ self._precision) * centered).sum(axis=-1)
        return 1 - np.searchsorted(self._distances, distance) / len(self._distances)

    def _context(self, told: np.ndarray, beta: float) -> tuple[np.ndarray, np.float32]:
        """Of what the network is told of x its context, and the factor on everything it says."""
        low, high = (math.log(bound) for bound in self.beta_range)
        t = np.float32(2 * (math.log(beta) - low) / (high - low) - 1 if high > low else 0.0)
        of_beta = np.broadcast_to(np.array([t, t * t], dtype=np.float32), (len(told), 2))
        gate = np.float32(-math.expm1(-GATE * math.exp((float(t) + 1) / 2 * (high - low))))
        context = np.concatenate([told, of_beta], axis=-1)
        return self._shared(context), gate

    def _shared(self, context: np.ndarray) -> np.ndarray:
        """`Trunked`: what all transforms are told, of contexts `(b, k)`."""
        if not self._trunk:
            return context
        told = context
        with np.errstate(over="ignore"):  # of the exponential in SiLU, which is then zero
            for weight, bias in self._trunk:
                told = silu(told @ weight.T + bias)
        return np.concatenate([told, context], axis=-1)


class _Guide:
    """`Guide`."""

    def __init__(self, arrays: Arrays, spec: dict[str, Any]) -> None:
        self.framed, self.steps = spec.get("framed") is True, spec.get("steps", FIRST_SCORING_STEPS)
        self.guess, self.middle, self.log_scale = (
            _layers(arrays, f"{name}.") for name in ("guess", "middle", "log_scale")
        )
        self.degrees = np.exp(np.clip(arrays["log_degrees"], *LOG_DEGREES))

    def __call__(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Of scaled data `(b, k)` the hints `(b, 2 d)` and the frames, if the network has them."""
        parts = np.array_split(z, max(1, math.ceil(len(z) / ROWS)))
        with np.errstate(over="ignore", invalid="ignore"):  # of what is far from everything
            networks = self.guess, self.middle, self.log_scale
            told = [hints(np, part, *networks, self.degrees, self.steps) for part in parts]
        d = self.middle[0][0].shape[1]
        said, frames = np.split(np.concatenate(told), [2 * d], axis=-1)
        return said, frames if self.framed else None


def _unwhitening(said: np.ndarray | None, frames: np.ndarray | None, beta: float) -> Callable[[np.ndarray], np.ndarray]:
    """The inverse of `LaplaceFlow`'s own transform, of `v` `(n, b, d)`; without frames `v` itself."""
    if said is None or frames is None:
        return lambda v: v
    mode = said[:, : said.shape[-1] // 2]
    normal = tempered(mode, frames, np.float32(beta))
    root = normal.root(-0.5)
    return lambda v: (v.swapaxes(0, 1) @ root).swapaxes(0, 1) + normal.mean


class _Regression:
    """The inverse of `LocationScale`."""

    def __init__(self, arrays: Arrays) -> None:
        self.arrays, self.layers = arrays, _layers(arrays, "network.")

    def at(self, context: np.ndarray, gate: np.float32) -> Callable[[np.ndarray], np.ndarray]:
        """Of values `(d, n, b)`, for the contexts `(b, k)`: `(n, b, d)`."""
        phi = context
        for weight, bias in self.layers[:-1]:
            phi = silu(phi @ weight.T + bias)
        weight, bias = self.layers[-1]
        phi = phi @ weight.T + bias + context @ self.arrays["linear.weight"].T + self.arrays["linear.bias"]
        shift, log_scale = np.split(phi * gate, 2, axis=-1)
        scale = np.exp(np.clip(log_scale, -MAX_LOG_SCALE, MAX_LOG_SCALE))
        lower = np.tril(self.arrays["lower"], -1) * gate + np.eye(shift.shape[-1], dtype=np.float32)
        inverse = np.linalg.inv(lower)
        return lambda v: np.tensordot(v, inverse, (0, 1)) * scale + shift


class _Transform:
    """The inverse of `Gated` with a spline."""

    def __init__(self, arrays: Arrays) -> None:
        self.order = arrays["order"]
        layers, masks = _layers(arrays, "hyper."), [arrays[key] for key in _numbered(arrays, "hyper.", "mask")]
        weights = [weight * mask for (weight, _), mask in zip(layers, masks, strict=True)]
        degrees = degrees_of(masks, self.order)
        self.plan = Plan.of(weights, [bias for _, bias in layers], degrees, self.order).map(np.ascontiguousarray)

    def told(self, context: np.ndarray) -> np.ndarray:
        return self.plan.context @ context.T + self.plan.bias

    def invert(self, z: np.ndarray, told: np.ndarray, gate: np.float32) -> np.ndarray:
        return invert(self.plan, z, told, gate, invert_spline)[self.order]


def _part(arrays: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _numbered(arrays: Arrays, prefix: str, what: str) -> list[str]:
    """Names such as `hyper.0.weight`, in the order of the numbers."""
    names = [name for name in arrays if name.startswith(prefix) and name.endswith(f".{what}")]
    return sorted(names, key=lambda name: int(name.split(".")[1]))


def _layers(arrays: Arrays, prefix: str) -> list[tuple[np.ndarray, np.ndarray]]:
    weights, biases = _numbered(arrays, prefix, "weight"), _numbered(arrays, prefix, "bias")
    return [(arrays[weight], arrays[bias]) for weight, bias in zip(weights, biases, strict=True)]
