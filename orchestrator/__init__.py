"""Who runs what, where and when, and what is remembered. The only place that knows Ray, BoTorch, MLflow and Parquet.

`Campaign` is imported on first use: Ray's workers import this package for `orchestrator.pool` alone.
"""

from __future__ import annotations

__all__ = ["Campaign", "CampaignResult"]

import importlib
from typing import Any

import simulators

if not getattr(simulators, "TEMPERFLOW", False):
    raise ImportError(
        f"temperflow's package 'simulators' is hidden by your own at {next(iter(simulators.__path__))}; rename your "
        "folder, or start Python from another one"
    )


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(".campaign", __name__), name)
    raise AttributeError(f"module 'orchestrator' has no attribute '{name}'")
