"""What is learned: tempered posteriors from simulations. Torch only; usable alone, in a notebook.

Names are imported on first use: who only draws from a posterior must not wait for what trains one.
"""

from __future__ import annotations

__all__ = ["Learner", "LearnerOptions", "Simulations", "TemperedPosterior", "whiten"]

import importlib
from typing import TYPE_CHECKING, Any

import simulators

if not getattr(simulators, "TEMPERFLOW", False):
    raise ImportError(
        f"temperflow's package 'simulators' is hidden by your own at {next(iter(simulators.__path__))}; "
        "rename your folder, or start Python from another one"
    )

if TYPE_CHECKING:
    from .learner import Learner
    from .options import LearnerOptions
    from .posterior import TemperedPosterior
    from .simulations import Simulations
    from .whitening_choice import whiten

_HOME = {
    "Learner": ".learner",
    "LearnerOptions": ".options",
    "Simulations": ".simulations",
    "TemperedPosterior": ".posterior",
    "whiten": ".whitening_choice",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name], __name__), name)
    raise AttributeError(f"module 'learners' has no attribute '{name}'")
