"""What is simulated: simulators, priors, outcomes. Knows nothing of Ray, MLflow or training.

Names are imported on first use: the process that only runs a simulator must not wait for torch.
"""

from __future__ import annotations

__all__ = [
    "Marginal",
    "Outcome",
    "ProductPrior",
    "SimulatorSpec",
    "Status",
    "TemperflowError",
    "get_task",
    "task_names",
]

import importlib
from typing import Any

#: Tells this package from a user's own folder that happens to be called `simulators`.
TEMPERFLOW = True

_HOME = {
    "Marginal": ".prior",
    "ProductPrior": ".prior",
    "Outcome": ".outcome",
    "Status": ".outcome",
    "SimulatorSpec": ".simulator",
    "TemperflowError": ".errors",
    "get_task": ".tasks",
    "task_names": ".tasks",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name], __name__), name)
    raise AttributeError(f"module 'simulators' has no attribute '{name}'")
