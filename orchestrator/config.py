"""The configuration of a campaign: frozen models that validate. Read by `orchestrator.config_reading`."""

from __future__ import annotations

__all__ = [
    "BudgetConfig",
    "CampaignConfig",
    "KnownPosterior",
    "ObservationConfig",
    "TemperatureConfig",
    "TrackingConfig",
]

from typing import Any

from pydantic import (
    Field,
    field_serializer,
    field_validator,
    model_validator,
)

from simulators.errors import PriorError
from simulators.prior import Marginal

from .config_learner import AcquisitionConfig, LearnerConfig
from .config_simulator import Section, SimulatorConfig
from .location import check_location
from .tracking_uri import check_uri, without_secret


class ObservationConfig(Section):
    """Where the observed data are."""

    file: str
    """CSV (with a header), `.npy`, JSON list or Parquet file, relative to the configuration file."""
    columns: list[str] = []
    """Columns of a table, in the order in which the simulator lists them; empty takes all but `index`."""
    index: str | None = None
    """Column that only labels the rows, such as a year."""
    also: list[str] = []
    """Further files of the same form: simulations serve the posteriors of all. The report is about `file`."""


class TemperatureConfig(Section):
    """The range of temperatures `beta` that the posterior is trained for."""

    low: float = Field(0.1, gt=0)
    """Lowest beta."""
    high: float = Field(2.0, gt=0)
    """Highest beta."""

    @model_validator(mode="after")
    def _ordered(self) -> TemperatureConfig:
        if not self.low <= self.high:
            raise ValueError(f"expected low <= high, got low={self.low:g} and high={self.high:g}")
        return self


class BudgetConfig(Section):
    """When to stop; at least one limit."""

    simulations: int | None = Field(None, ge=1)
    """Simulations in all, failures included."""
    hours: float | None = Field(None, gt=0)
    """Hours of simulating, from the start of the campaign; training and reporting come after."""
    simulator_hours: float | None = Field(None, gt=0)
    """Hours that simulations take in all, added up over those that run at once; what checks the posterior afterwards
    (see [`calibration`](#calibration)) comes on top."""
    until: float | None = Field(None, gt=0)
    """Ends the simulating early, once the model's own estimate of how far the log of the tempered posteriors is not
    known (`epistemic`, in nats) is below this after two trainings in a row. Needs another limit beside it, a method
    that trains while simulations run, and more than one member."""

    @model_validator(mode="after")
    def _some_limit(self) -> BudgetConfig:
        if self.simulations is None and self.hours is None and self.simulator_hours is None:
            only = "an accuracy alone may never be reached" if self.until is not None else "an empty budget"
            raise ValueError(f"{only}: give `simulations`, `hours` or `simulator_hours`")
        return self


class CalibrationConfig(Section):
    """Simulations kept away from training, to check the posterior (SBC)."""

    share: float = Field(0.05, ge=0.0, le=0.5)
    """Share of the budget, at most `simulations` a population."""
    simulations: int = Field(200, ge=0)
    """Simulations a population."""
    draws: int = Field(200, ge=20)
    """Posterior draws against which each is ranked."""


class TrackingConfig(Section):
    """MLflow."""

    enabled: bool = True
    """Whether to track at all."""
    uri: str | None = None
    """Tracking server; by default `MLFLOW_TRACKING_URI`, else a sqlite store in the current folder. A password in it is
    never written down. Better give `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`, or
    `MLFLOW_TRACKING_TOKEN`, in the environment."""
    experiment: str = Field("temperflow", min_length=1)
    """Experiment in which the run appears."""
    model: str | None = Field(None, pattern=r"^\w[\w. -]*$")
    """Name in the model registry, of letters, digits, `_`, `.`, `-` and spaces; by default the campaign's name."""

    @field_validator("uri")
    @classmethod
    def _usable_uri(cls, value: str | None) -> str | None:
        return None if value is None else check_uri(value)

    @field_serializer("uri")
    def _no_secret(self, uri: str | None) -> str | None:
        return None if uri is None else without_secret(uri)


class KnownPosterior(Section):
    """A parameter's posterior at beta = 1 as known from elsewhere, to compare with in the report."""

    mean: float
    """Posterior mean."""
    std: float = Field(gt=0)
    """Posterior standard deviation."""


class CampaignConfig(Section):
    """A campaign."""

    name: str = Field("campaign", pattern=r"^[A-Za-z0-9][A-Za-z0-9_. -]*$")
    """Name of the campaign; also of the model in the registry."""
    simulator: SimulatorConfig
    """What is simulated."""
    parameters: dict[str, dict[str, Any]] = {}
    """Name to prior: `{distribution: Normal, loc: 0, scale: 1, low: 0}`, a class of torch.distributions with its
    arguments, and optional bounds that truncate it."""
    prior: str | None = None
    """Instead of `parameters`: `file.py:name` of any `torch.distributions.Distribution` over `(d,)`."""
    observation: ObservationConfig | None = None
    """The observed data (a path or a mapping); absent for an amortized campaign. May be added later: the campaign then
    goes on with what is simulated already."""
    temperature: TemperatureConfig = TemperatureConfig()
    """Range of temperatures."""
    budget: BudgetConfig
    """When to stop."""
    learner: LearnerConfig = LearnerConfig()
    """The learner."""
    acquisition: AcquisitionConfig = AcquisitionConfig()
    """How points are chosen."""
    calibration: CalibrationConfig = CalibrationConfig()
    """How the posterior is checked."""
    tracking: TrackingConfig = TrackingConfig()
    """MLflow."""
    store: str | None = None
    """Where the simulations are kept: a URI such as `s3://bucket/prefix`, or a path (a relative one starts from the run
    directory); by default the folder `simulations` of the run directory. Credentials come from the environment. See
    [store.md](store.md)."""
    reference: dict[str, KnownPosterior] = {}
    """Parameter to its known posterior at beta = 1, compared in the report."""
    seed: int = Field(0, ge=0, le=2**32 - 1)
    """Seed of everything random."""

    def calibration_size(self, rows: int, targeted: bool) -> int:
        """Simulations of each population that checks the posterior; none can check that of a cost."""
        if self.learner.source == "cost":
            return 0
        populations = 2 if targeted else 1
        return min(self.calibration.simulations, int(self.calibration.share * rows / populations))

    @model_validator(mode="after")
    def _until_can_be_told(self) -> CampaignConfig:
        if self.budget.until is None:
            return self
        if not self.acquisition.learns:
            raise ValueError(
                "`budget.until` asks models how certain they are, but with the method "
                f"`{self.acquisition.method}` there is none before the last; remove it, or choose another method"
            )
        if len(self.learner.members) == 1:
            raise ValueError(
                "`budget.until` asks how far the members of the surrogate disagree, but there is only "
                f"`{self.learner.members[0]}`; remove it, or give several `learner.members`"
            )
        return self

    @field_validator("observation", mode="before")
    @classmethod
    def _path_is_enough(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str) else value

    @field_validator("store")
    @classmethod
    def _usable_location(cls, value: str | None) -> str | None:
        if value is not None:
            check_location(value)
        return value

    @field_validator("parameters")
    @classmethod
    def _valid_marginals(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, spec in value.items():
            if "distribution" not in spec:
                raise ValueError(f"parameter '{name}' needs a `distribution`, such as Normal")
            try:
                Marginal.from_dict(spec)
            except (PriorError, TypeError, ValueError) as error:
                raise ValueError(f"parameter '{name}': {error}") from error
        return value
