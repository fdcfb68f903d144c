"""Load of the driver's and the trainer's machine, under the names that MLflow's own monitor gives them.

That monitor talks to MLflow from the machine that it watches. Ours is asked: the trainer's machine need not reach
MLflow.
"""

from __future__ import annotations

__all__ = ["NodeMetrics", "SystemMetrics"]

import contextlib
import time
from typing import Any

import psutil
import ray
from ray.exceptions import RayError

_SECONDS = 10.0
_MEGABYTE = 1e6


class NodeMetrics:
    """Load of the machine that this process runs on.

    Arguments:
        gpus: Whether to look at its GPUs too; for a process that uses them.
    """

    def __init__(self, gpus: bool = False) -> None:
        self._gpus = gpus
        psutil.cpu_percent()  # measures from here on
        self._network = psutil.net_io_counters()

    def sample(self) -> dict[str, float]:
        """Percentages and megabytes by name; the processor's load is the mean since the last sample."""
        memory, disk, network = psutil.virtual_memory(), psutil.disk_usage("/"), psutil.net_io_counters()
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / _MEGABYTE,
            "system_memory_usage_percentage": memory.percent,
            "disk_usage_megabytes": disk.used / _MEGABYTE,
            "disk_usage_percentage": disk.percent,
            "disk_available_megabytes": disk.free / _MEGABYTE,
        }
        if network is not None and self._network is not None:
            values["network_receive_megabytes"] = (network.bytes_recv - self._network.bytes_recv) / _MEGABYTE
            values["network_transmit_megabytes"] = (network.bytes_sent - self._network.bytes_sent) / _MEGABYTE
        return values | (_gpu_metrics() if self._gpus else {})


class SystemMetrics:
    """Metrics of both machines, every ten seconds.

    Attributes:
        trainer: Handle of the trainer, which has a method `system`; None while there is none.
    """

    def __init__(self) -> None:
        self.trainer: Any = None
        self._driver = NodeMetrics()
        self._node = ray.get_runtime_context().get_node_id()
        self._asked: ray.ObjectRef[Any] | None = None
        self._last = time.monotonic()

    def poll(self) -> dict[str, float]:
        """What is new, `system/driver/NAME` and `system/trainer/NAME`; never waits."""
        values = self._from_trainer()
        if time.monotonic() - self._last > _SECONDS:
            self._last = time.monotonic()
            values |= {f"system/driver/{name}": value for name, value in self._driver.sample().items()}
            if self.trainer is not None and self._asked is None:
                with contextlib.suppress(RayError):
                    self._asked = self.trainer.system.remote()
        return values

    def _from_trainer(self) -> dict[str, float]:
        if self._asked is None or not ray.wait([self._asked], timeout=0)[0]:
            return {}
        answer, self._asked = self._asked, None
        with contextlib.suppress(RayError):  # Of a trainer that died; there will be another one.
            node, values = ray.get(answer)
            # The same machine is not listed twice; only the trainer looks at its GPUs.
            shown = {k: v for k, v in values.items() if node != self._node or k.startswith("gpu")}
            return {f"system/trainer/{name}": value for name, value in shown.items()}
        return {}


def _gpu_metrics() -> dict[str, float]:
    import torch

    values = {}
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(i)
        values[f"gpu_{i}_memory_usage_megabytes"] = (total - free) / _MEGABYTE
        values[f"gpu_{i}_memory_usage_percentage"] = 100 * (1 - free / total)
        with contextlib.suppress(ImportError, RuntimeError):  # needs nvidia-ml-py
            values[f"gpu_{i}_utilization_percentage"] = float(torch.cuda.utilization(i))
    return values
