"""Why simulations run nowhere: hosts that die while they start, and needs that no node has to spare."""

from __future__ import annotations

__all__ = ["FailedStarts", "nowhere"]

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .placement import Reservation

logger = logging.getLogger(__name__)

_SHORTEST_PAUSE, _LONGEST_PAUSE = 2.0, 60.0


@dataclass(frozen=True)
class _Failed:
    name: str
    reason: str
    pause: float
    until: float


class FailedStarts:
    """Nodes where hosts die while they start: none is tried there for a while, longer each time."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Failed] = {}

    def add(self, node: str, name: str, reason: str, now: float) -> None:
        """A host died on `node`, which people know by `name`; warns of the first one there."""
        before = self._nodes.get(node)
        if before is None:
            logger.warning("a worker for simulations died on %s while it started, others are tried: %s", name, reason)
        elif now < before.until:
            return  # It was started together with the one before.
        pause = _SHORTEST_PAUSE if before is None else min(2 * before.pause, _LONGEST_PAUSE)
        self._nodes[node] = _Failed(name, reason, pause, now + pause)

    def forget(self, node: str) -> None:
        """A host has started there."""
        self._nodes.pop(node, None)

    def __contains__(self, node: str) -> bool:
        """Whether hosts have died there, and none has started since."""
        return node in self._nodes

    def pausing(self, node: str, now: float) -> bool:
        """Whether none should be tried there yet."""
        return node in self._nodes and now < self._nodes[node].until

    def __str__(self) -> str:
        """What happened where, and what to do; empty if nothing did."""
        if not self._nodes:
            return ""
        died = "; ".join(f"on {failed.name} one died: {failed.reason}" for failed in self._nodes.values())
        return (
            f"no worker for simulations could be started: {died}. Every node needs the same Python, Ray and "
            "temperflow; Ray's logs there say more"
        )


def nowhere(
    need: Mapping[str, float],
    labels: Mapping[str, str],
    nodes: Sequence[Mapping[str, Any]],
    reserved: Reservation | None,
) -> str:
    """Which needs of a simulation no node meets, and what to do.

    Arguments:
        need: Resource to amount.
        labels: Labels that a node must have.
        nodes: Those of the cluster, as Ray describes them.
        reserved: What the trainer has for itself.
    """
    needs = ", ".join(f"{amount:g} {name}" for name, amount in need.items())
    needs += "".join(f", label {name}={value}" for name, value in labels.items())
    have = "; ".join(", ".join(f"{node['Resources'].get(name, 0):g} {name}" for name in need) for node in nodes)
    kept = [] if reserved is None else _kept(need, nodes, reserved)
    settings = ", ".join(f"{name.lower()}s: 0" for name in kept)
    trainer = f"set `learner: {{{settings}}}`, for the trainer keeps {' and '.join(kept)} for itself; " if kept else ""
    return (
        f"a simulation needs {needs}, but no node of the cluster has that to spare (in all they have: {have}); "
        f"{trainer}lower simulator.resources, or wait until the cluster is free"
    )


def _kept(need: Mapping[str, float], nodes: Sequence[Mapping[str, Any]], reserved: Reservation) -> list[str]:
    """Resources of which the trainer's node has enough for a simulation, but not beside the trainer."""
    [total] = [node["Resources"] for node in nodes if node["NodeID"] == reserved.node] or [{}]
    left = {name: total.get(name, 0.0) - reserved.resources.get(name, 0.0) for name in need}
    return [name for name, amount in need.items() if left[name] < amount <= total.get(name, 0.0)]
