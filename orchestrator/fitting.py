"""Which hosts fit on a node, beside those that are there and what is kept for the trainer."""

from __future__ import annotations

__all__ = ["fitting_widths", "needs"]

import math
from collections.abc import Iterator, Mapping
from typing import Any

from .config_simulator import ResourcesConfig
from .placement import Reservation

#: Slots of one host: many share a Ray worker, few are lost with it.
_WIDEST = 16


def needs(resources: ResourcesConfig) -> dict[str, float]:
    """Amounts of Ray's resources that one simulation takes."""
    need = {"CPU": resources.cpus, "GPU": resources.gpus, **resources.custom}
    if resources.memory:
        need["memory"] = float(resources.memory)
    return {name: amount for name, amount in need.items() if amount > 0}


def fitting_widths(
    resources: ResourcesConfig,
    node: Mapping[str, Any],
    free: Mapping[str, float],
    reserved: Reservation | None,
    ours: int,
    starting: int,
) -> Iterator[int]:
    """Widths of the hosts that fit on a node beside those that are there.

    Arguments:
        resources: What one simulation needs.
        node: The node, as Ray describes it.
        free: What it has to spare.
        reserved: The trainer's place, here or elsewhere.
        ours: Slots of our hosts there.
        starting: Those of them whose resources may not have been taken yet.
    """
    labels = node.get("Labels", {})
    if any(labels.get(name) != value for name, value in resources.labels.items()):
        return
    free, need = dict(free), needs(resources)
    if reserved is not None and reserved.node == node["NodeID"]:
        # What is reserved may not have been taken yet; it is not free all the same.
        for name, amount in reserved.resources.items():
            others = node["Resources"].get(name, 0.0) - amount - ours * need.get(name, 0.0)
            free[name] = min(free.get(name, 0.0), others)
    fits = min((free.get(name, 0.0) / amount for name, amount in need.items()), default=0.0)
    left = math.floor(fits + 1e-9) - starting
    gpus = resources.gpus
    # Ray has whole GPUs, or a share of one.
    widest = min(_WIDEST, math.floor(1 / gpus + 1e-9)) if 0 < gpus < 1 else _WIDEST
    while left > 0:
        yield min(left, widest)
        left -= widest
