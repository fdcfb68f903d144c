"""What is learned: tempered posteriors from simulations. Torch only; usable alone, in a notebook."""

from __future__ import annotations

__all__ = ["Learner", "LearnerOptions", "Simulations", "TemperedPosterior", "whiten"]

import simulators

if not getattr(simulators, "TEMPERFLOW", False):
    raise ImportError(
        f"temperflow's package 'simulators' is hidden by your own at {next(iter(simulators.__path__))}; "
        "rename your folder, or start Python from another one"
    )

from .learner import Learner, LearnerOptions
from .posterior import TemperedPosterior
from .simulations import Simulations
from .whitening import whiten
