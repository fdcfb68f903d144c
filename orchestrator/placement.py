"""The trainer's place in the cluster, kept free for it from the start, also while it is being restarted."""

from __future__ import annotations

__all__ = ["TrainerPlace"]

from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from .config import LearnerConfig
from .ray_hosts import Reservation

_PATIENCE = 30.0


class TrainerPlace:
    """Resources for one trainer: those of the configuration, or what a small cluster can spare.

    Arguments:
        config: The learner's configuration.
    """

    def __init__(self, config: LearnerConfig) -> None:
        total = ray.cluster_resources()
        gpus = config.gpus
        if gpus is None:
            gpus = 1.0 if total.get("GPU", 0) >= 1 else 0.0
        self.cpus, self.gpus = min(config.cpus, max(0.0, total.get("CPU", 1.0) - 1)), gpus
        self._group: PlacementGroup | None = None
        need = {name: amount for name, amount in (("CPU", self.cpus), ("GPU", self.gpus)) if amount > 0}
        if need:
            group = placement_group([need])
            # On a busy cluster the trainer waits for its place like anyone else.
            if group.wait(_PATIENCE):
                self._group = group
            else:
                remove_placement_group(group)
        self._need = need

    @property
    def options(self) -> dict[str, Any]:
        """Ray's options for the actor."""
        options: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        if self._group is not None:
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(self._group)
        return options

    @property
    def reservation(self) -> Reservation | None:
        """What simulations must leave alone."""
        if self._group is None:
            return None
        nodes = placement_group_table(self._group)["bundles_to_node_id"]
        return Reservation(next(iter(nodes.values())), self._need)

    def release(self) -> None:
        """Gives the resources back."""
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None
