"""Real Ray clusters of several nodes, all on this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import ray
from ray.cluster_utils import Cluster


@contextlib.contextmanager
def ray_cluster(head: dict[str, Any], *others: dict[str, Any]) -> Iterator[Cluster]:
    """A cluster that this process has joined: its head, and further nodes, each as `Cluster.add_node` takes it."""
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for node in others:
        cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
