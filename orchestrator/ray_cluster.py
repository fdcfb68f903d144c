"""What Ray says of its nodes and actors, and how actors are ended."""

from __future__ import annotations

__all__ = ["actor_state", "cluster_now", "end_actors", "living_nodes"]

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray._private.state import actors, available_resources_per_node
from ray.exceptions import RayError

from .ray_calls import NoAnswerError, answered


def living_nodes() -> list[dict[str, Any]]:
    """The nodes of the cluster that are there, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def cluster_now() -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
    """These nodes, and by the node's id what each has to spare at the moment."""
    free: dict[str, dict[str, float]] = available_resources_per_node()
    return living_nodes(), free


def actor_state(actor: Any) -> Mapping[str, Any]:
    """What Ray knows of an actor: with its resources, while it lives, its `State` is `ALIVE`."""
    state: Mapping[str, Any] = actors(actor._actor_id.hex())
    return state


def end_actors(ended: Sequence[Any]) -> None:
    """Ends actors; those of a cluster that does not answer are gone with it."""

    def end() -> None:
        for actor in ended:
            with contextlib.suppress(RayError):
                ray.kill(actor)

    with contextlib.suppress(NoAnswerError):
        answered(end)
