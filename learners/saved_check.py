"""Whether the parts of a saved posterior fit together: damage is told on loading, not by odd draws. Without torch.

Of the networks only that their numbers are numbers; that they have the sizes they say is seen where they are made.
"""

from __future__ import annotations

__all__ = ["check_parts"]

from collections.abc import Mapping
from typing import Any

import numpy as np

#: What is saved: weights, orders and masks. Others would be taken for them with another meaning, or less precise.
_KINDS = {np.dtype(name) for name in ("float32", "float64", "int64", "bool")}

#: A guide takes fewer: a file that says otherwise would keep its reader busy.
_MOST_STEPS = 100


def check_parts(spec: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Looks at what `posterior.json` and `posterior.safetensors` hold.

    Raises:
        ValueError, TypeError, KeyError: What is missing or does not fit.
    """
    network = spec["network"]
    d, m = (_count(network, name) for name in ("dim_u", "dim_z"))
    low, high = _numbers("beta_range", network["beta_range"], 2)
    _expect(0.0 < low <= high, f"beta_range from {low:g} to {high:g}")
    names = spec["names"]
    _expect(isinstance(names, list) and all(isinstance(name, str) for name in names), "names that are no texts")
    _expect(len(names) == d, f"{len(names)} names of {d} parameters")
    _expect(isinstance(spec["metadata"], dict), "metadata that are no object")
    _check_whitening(spec["whitening"], d)
    k = m if spec.get("embedding") is None else len(spec["scaling"]["center"])
    _check_scaling(spec["scaling"], k)
    if spec["default_x"] is not None:
        _numbers("default_x", spec["default_x"], k)
    for name, shape in (("mean", (m,)), ("precision", (m, m)), ("distances", (-1,))):
        found = arrays[f"familiarity.{name}"].shape
        _expect(len(found) == len(shape) and shape in (found, (-1,)), f"familiarity.{name} of shape {found}")
    distances = arrays["familiarity.distances"]
    _expect(distances.size > 0 and bool((np.diff(distances) >= 0).all()), "familiarity.distances not in order")
    steps = network.get("guide", {}).get("steps", 1)
    _expect(type(steps) is int and 0 < steps <= _MOST_STEPS, f"{steps} steps of scoring")
    _check_arrays(spec, arrays)


def _check_arrays(spec: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    # A module of one's own may keep what it likes.
    own = (spec.get("embedding") or {}).get("kind") == "module"
    for name, array in arrays.items():
        if own and name.startswith("embedding."):
            continue
        _expect(array.dtype in _KINDS, f"{name} of {array.dtype}")
        _expect(bool(np.isfinite(array).all()), f"{name} with numbers that are NaN or infinite")
        if name.endswith(".order"):
            _expect(np.array_equal(np.sort(array), np.arange(array.size)), f"{name} is no order")


def _check_scaling(spec: Mapping[str, Any], k: int) -> None:
    _numbers("center", spec["center"], k)
    _expect(bool((_numbers("scale", spec["scale"], k) > 0).all()), "a scale of zero or less")
    for name in ("logarithmic", *(("root",) if "root" in spec else ())):  # saves of format 1 know no roots
        flags = spec[name]
        _expect(isinstance(flags, list) and len(flags) == k, f"expected {k} of scaling's {name}")
        _expect(all(isinstance(flag, bool) for flag in flags), f"scaling's {name} that are not true or false")


def _check_whitening(spec: Mapping[str, Any], d: int) -> None:
    if spec["kind"] == "marginal":
        marginals = spec["marginals"]
        _expect(isinstance(marginals, list) and len(marginals) == d, f"expected {d} marginals")
        for marginal in marginals:
            values = {name: value for name, value in marginal.items() if name != "distribution"}
            _numbers(f"arguments of {marginal['distribution']}", list(values.values()), len(values))
            _expect(values.get("scale", 1.0) > 0, f"a scale of {values.get('scale')}")
            _expect(values.get("low", -np.inf) < values.get("high", np.inf), "bounds with nothing between them")
        return
    _expect(spec["kind"] == "affine", f"a whitening of kind {spec['kind']}")
    _numbers("mean", spec["mean"], d)
    _expect(isinstance(spec["scale"], list) and len(spec["scale"]) == d, f"expected {d} rows of scale")
    scale = np.stack([_numbers("scale", row, d) for row in spec["scale"]])
    _expect(bool((scale.diagonal() > 0).all()), "a whitening that is not invertible")
    for name in ("lower", "upper"):
        bounds = spec[name]
        _expect(isinstance(bounds, list), f"expected {d} of {name}")
        _numbers(name, [0.0 if bound is None else bound for bound in bounds], d)


def _count(spec: Mapping[str, Any], name: str) -> int:
    value = spec[name]
    _expect(isinstance(value, int) and not isinstance(value, bool) and value > 0, f"{name} = {value}")
    return int(value)


def _numbers(name: str, values: Any, count: int) -> np.ndarray:
    """`values` of JSON as `(count,)`, finite."""
    _expect(isinstance(values, list) and len(values) == count, f"expected {count} of {name}")
    plain = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    _expect(plain, f"{name} that are no numbers")
    found = np.array(values, dtype=np.float64)
    _expect(bool(np.isfinite(found).all()), f"{name} that are NaN or infinite")
    return found


def _expect(fits: bool, what: str) -> None:
    if not fits:
        raise ValueError(what)
