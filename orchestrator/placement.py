"""The trainer's place in the cluster, kept free for it from the start, also while it is being restarted."""

from __future__ import annotations

__all__ = ["Reservation", "TrainerPlace"]

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from .config_learner import LearnerConfig
from .ray_calls import NoAnswerError, answered
from .ray_cluster import actor_state

logger = logging.getLogger(__name__)

#: A trainer that has no place by then is worth a warning: starting takes less.
_PLACE_SECONDS = 60.0

Resources = Mapping[str, float]


@dataclass(frozen=True)
class Reservation:
    """Resources of a node that are not for simulations, whether or not they are in use yet."""

    node: str
    resources: Resources


class TrainerPlace:
    """A node for the trainer, and what it needs there: by the configuration, or what a small cluster can spare.

    Another node is chosen when it is gone. Not a placement group: to remove one can block for ever while an actor in
    it is being killed (Ray 2.60).

    Arguments:
        config: The learner's configuration.

    Attributes:
        reservation: What simulations must leave alone; None while no node has it to spare.
        waits: Whether the trainer has been started, and is not known to have got its place.
    """

    def __init__(self, config: LearnerConfig) -> None:
        self._config = config
        self.cpus = self.gpus = 0.0
        self.reservation: Reservation | None = None
        self.waits = False
        self._trainer: Any = None
        self._since, self._told = 0.0, False

    @property
    def options(self) -> dict[str, Any]:
        """Ray's options for the actor."""
        options: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        if self.reservation is not None:
            # Should the node be lost, another one will do.
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(self.reservation.node, soft=True)
        return options

    def taken_by(self, trainer: Any) -> None:
        """A trainer has been started with these options."""
        self._trainer, self.waits, self._since, self._told = trainer, True, time.monotonic(), False

    def look(
        self, nodes: Sequence[Mapping[str, Any]], free: Mapping[str, Resources], held: Mapping[str, Resources]
    ) -> None:
        """Chooses a node if there is none, or if it is gone; warns if the trainer gets no place.

        Arguments:
            nodes: Those of the cluster, as Ray describes them.
            free: Node to what it has to spare.
            held: Node to what simulations hold there, and could make room with.
        """
        if self.waits:
            with contextlib.suppress(NoAnswerError):
                self._follow()
        here = {node["NodeID"]: node["Resources"] for node in nodes}
        if self.reservation is None or self.reservation.node not in here:
            self._choose(here, free, held)
        if self.waits and not self._told and time.monotonic() - self._since > _PLACE_SECONDS:
            self._told = True
            logger.warning(
                "the trainer waits for %s, which no node of the cluster has to spare: free it, add a node, or lower "
                "learner.cpus and learner.gpus",
                _listed(self._need),
            )

    @property
    def _need(self) -> dict[str, float]:
        return {name: amount for name, amount in (("CPU", self.cpus), ("GPU", self.gpus)) if amount > 0}

    def _choose(
        self, nodes: Mapping[str, Resources], free: Mapping[str, Resources], held: Mapping[str, Resources]
    ) -> None:
        total = {name: sum(node.get(name, 0.0) for node in nodes.values()) for name in ("CPU", "GPU")}
        if self.reservation is not None and not total["CPU"]:
            return  # All are gone: what the next ones have to spare is not known yet.
        gpus = self._config.gpus
        self.gpus = (1.0 if total["GPU"] >= 1 else 0.0) if gpus is None else gpus
        self.cpus = min(self._config.cpus, max(0.0, total["CPU"] - 1))
        spare = {node: free.get(node, {}) for node in nodes}
        # Rather than nowhere, in the place of simulations.
        cleared = {node: _sum(spare[node], held.get(node, {})) for node in nodes}
        for room in (spare, cleared):
            fitting = [node for node in room if all(room[node].get(name, 0.0) >= n for name, n in self._need.items())]
            if fitting:
                node = max(fitting, key=lambda node: room[node].get("CPU", 0.0))
                if self.reservation is not None:
                    logger.info("the trainer's node %s is gone: %s is its place now", self.reservation.node, node)
                self.reservation = Reservation(node, self._need)
                return

    def _follow(self) -> None:
        """Whether the trainer has got its place: Ray may have chosen another node than ours."""
        state = answered(lambda: actor_state(self._trainer))
        if state.get("State") in ("ALIVE", "DEAD"):
            self.waits = False
        if state.get("State") == "ALIVE":
            self.reservation = Reservation(state["Address"]["NodeID"], self._need)


def _sum(one: Resources, other: Resources) -> dict[str, float]:
    return {name: one.get(name, 0.0) + other.get(name, 0.0) for name in {**one, **other}}


def _listed(need: Resources) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in need.items()) or "a node"
