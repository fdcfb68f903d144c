"""The trainer's place in the cluster, kept free for it from the start, also while it is being restarted."""

from __future__ import annotations

__all__ = ["TrainerPlace"]

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from .config_learner import LearnerConfig
from .ray_hosts import Reservation, free_resources


class TrainerPlace:
    """A node for the trainer, and what it needs there: by the configuration, or what a small cluster can spare.

    Not a placement group: to remove one can block for ever while an actor in it is being killed (Ray 2.60).

    Arguments:
        config: The learner's configuration.
    """

    def __init__(self, config: LearnerConfig) -> None:
        total = ray.cluster_resources()
        gpus = config.gpus
        if gpus is None:
            gpus = 1.0 if total.get("GPU", 0) >= 1 else 0.0
        self.cpus, self.gpus = min(config.cpus, max(0.0, total.get("CPU", 1.0) - 1)), gpus
        self._need = {name: amount for name, amount in (("CPU", self.cpus), ("GPU", self.gpus)) if amount > 0}
        free = free_resources()
        fitting = [node for node in free if all(free[node].get(name, 0.0) >= n for name, n in self._need.items())]
        self._node = max(fitting, key=lambda node: free[node].get("CPU", 0.0), default=None)

    @property
    def options(self) -> dict[str, Any]:
        """Ray's options for the actor."""
        options: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        if self._node is not None:
            # Should the node be lost, another one will do.
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(self._node, soft=True)
        return options

    @property
    def reservation(self) -> Reservation | None:
        """What simulations must leave alone."""
        return None if self._node is None else Reservation(self._node, self._need)
