"""What a finished campaign leaves."""

from __future__ import annotations

__all__ = ["CampaignResult"]

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from learners.posterior import TemperedPosterior

from .checking import CheckResult
from .run_directory import RunDirectory


@dataclass(frozen=True)
class CampaignResult:
    """See the module.

    Attributes:
        posterior: The tempered posterior; a targeted campaign's has its observation as default x.
        directory: The run directory.
        checks: Calibration, one entry a population.
        mlflow_run_id: The run in MLflow, None if untracked.
    """

    posterior: TemperedPosterior
    directory: Path
    checks: list[CheckResult]
    mlflow_run_id: str | None

    def simulations(self) -> pd.DataFrame:
        """Every simulation, one row each."""
        frame: pd.DataFrame = RunDirectory(self.directory).store().read().to_pandas()
        return frame
