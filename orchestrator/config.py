"""The configuration of a campaign: frozen models that validate. Read by `orchestrator.config_reading`."""

from __future__ import annotations

__all__ = [
    "EMBEDDINGS",
    "METHODS",
    "AcquisitionConfig",
    "BudgetConfig",
    "CampaignConfig",
    "KnownPosterior",
    "LearnerConfig",
    "ObservationConfig",
    "ResourcesConfig",
    "SimulatorConfig",
    "TemperatureConfig",
    "TrackingConfig",
]

from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    field_serializer,
    field_validator,
    model_validator,
)

from simulators.errors import PriorError, nearest
from simulators.prior import Marginal
from simulators.tasks import task_names

from .location import check_location
from .tracking_uri import without_secret


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


def _gpus_that_ray_has(value: float | None) -> float | None:
    """Ray has whole GPUs, or a share of one."""
    if value is not None and value > 1 and value != int(value):
        raise ValueError(f"expected a share of one GPU or a whole number of them, got {value:g}")
    return value


#: What Ray calls the resources that have keys of their own.
_NOT_CUSTOM = {"CPU": "cpus", "GPU": "gpus", "memory": "memory"}


class ResourcesConfig(_Model):
    """What Ray reserves for one simulation."""

    cpus: float = Field(1.0, gt=0)
    """CPU cores."""
    gpus: float = Field(0.0, ge=0)
    """GPUs: a share of one, or a whole number."""
    memory: int | None = Field(None, gt=0)
    """Bytes of memory. A simulation that occupies more is ended and recorded as `out_of_memory`."""
    memory_growth: float = Field(1.0, ge=1.0)
    """Factor by which a simulation that ran out of memory gets more when it is tried again, by whole slots; 1 does not
    try again."""
    custom: dict[str, float] = {}
    """Custom Ray resources, name to amount."""
    labels: dict[str, str] = {}
    """Labels that a node must have, name to value."""

    _whole_gpus = field_validator("gpus")(_gpus_that_ray_has)

    @field_validator("custom")
    @classmethod
    def _amounts_of_their_own(cls, value: dict[str, float]) -> dict[str, float]:
        for name, amount in value.items():
            if name in _NOT_CUSTOM:
                raise ValueError(f"{name} is no custom resource; give `{_NOT_CUSTOM[name]}: {amount:g}` instead")
            if amount <= 0:
                raise ValueError(f"expected an amount above 0 of {name}, got {amount:g}; leave out what is not needed")
        return value


class SimulatorConfig(_Model):
    """The simulator: exactly one of `function`, `task` and `command`."""

    function: str | None = None
    """`path/to/file.py:name` (relative to the configuration file) or `package.module:name`: a callable
    `theta (d,) -> x`, optionally taking `seed`."""
    task: str | None = None
    """Name of a built-in benchmark task, such as `two_moons`; it brings its own prior."""
    command: list[str] | None = None
    """An external program and its arguments, run without a shell. `{NAME}` stands for a parameter, `{seed}`, `{input}`,
    `{output}`, `{workdir}` and `{folder}` for what the run has; see [external programs](external-programs.md)."""
    input: str | None = None
    """File that the program reads: `json`, `csv`, or a template of its own input file, relative to the configuration
    file; none if the command line says all."""
    output: str = "stdout"
    """What the program writes: `stdout`, `json`, `csv`, `npy`, `hdf5`, or the name of its output file."""
    fields: list[str] = []
    """Keys, columns or datasets of the output that make up x, in this order; empty takes all."""
    workdir: str | None = None
    """Where each run of the program gets a fresh folder, and failed ones are kept; relative to the configuration file,
    by default in the system's temporary folder."""
    batched: bool = False
    """Whether the callable takes `(n, d)` and returns `(n, ...)`."""
    resources: ResourcesConfig = ResourcesConfig()
    """What one simulation needs."""
    timeout: float | None = Field(None, gt=0)
    """Seconds after which a simulation is killed and recorded as `timeout`."""
    retries: int = Field(1, ge=0)
    """How often a simulation whose process crashed, or that brought its worker down, is tried again."""
    stop_wait: float = Field(5.0, ge=0.0, le=20.0)
    """Seconds that simulations in flight have to end after Ctrl-C or SIGTERM. What has not ended by then is cancelled,
    and simulated again, with the same theta and seed, when the campaign continues."""

    @field_validator("task")
    @classmethod
    def _known_task(cls, value: str | None) -> str | None:
        if value is not None and value not in task_names():
            raise ValueError(f"there is no task '{value}'; {nearest(value, task_names())}")
        return value

    @field_validator("command", mode="before")
    @classmethod
    def _list_of_texts(cls, value: Any) -> Any:
        if value is None:
            return None
        if not isinstance(value, list):
            raise ValueError(f"expected a list such as [./solver, '{{input}}'], got {value!r}")
        for item in value:
            if isinstance(item, float):
                # YAML has read 1.10 as the number 1.1, which is another argument.
                raise ValueError(f"expected texts, got the number {item!r}; put quotes around it")
            if not isinstance(item, str | int) or isinstance(item, bool):
                raise ValueError(f"expected texts, got {item!r}; put quotes around '{{NAME}}'")
        return [str(item) for item in value]

    @model_validator(mode="after")
    def _command_keys(self) -> SimulatorConfig:
        files = (self.input, self.output, self.fields, self.workdir)
        if self.command is None and files != (None, "stdout", [], None):
            raise ValueError("`input`, `output`, `fields` and `workdir` are for a `command`, but there is none")
        if self.command is not None and self.batched:
            raise ValueError("a `command` simulates one parameter at a time; remove `batched`")
        return self


class ObservationConfig(_Model):
    """Where the observed data are."""

    file: str
    """CSV (with a header), `.npy`, JSON list or Parquet file, relative to the configuration file."""
    columns: list[str] = []
    """Columns of a table, in the order in which the simulator lists them; empty takes all but `index`."""
    index: str | None = None
    """Column that only labels the rows, such as a year."""
    also: list[str] = []
    """Further files of the same form: simulations serve the posteriors of all. The report is about `file`."""


class TemperatureConfig(_Model):
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


class BudgetConfig(_Model):
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


#: Embeddings that are built in.
EMBEDDINGS = ("mlp", "conv1d")


class LearnerConfig(_Model):
    """The learner; the defaults suit most campaigns."""

    source: Literal["surrogate", "ratio", "cost"] = "surrogate"
    """Where what beta multiplies comes from. `surrogate`: a density of x is learned; `ratio`: classifiers learn the
    ratio of densities `p(x | theta) / p(x)`; `cost`: the mean `distance` of simulations from x is learned, and minus it
    takes the place of the log-likelihood. See [method.md](method.md)."""
    distance: str | None = None
    """`file.py:name` or `module:name` of a function `(x, x_o) -> d` of rows `(n, k)` and `(n, k)`, torch tensors, that
    gives `(n,)`; of the source `cost`."""
    embedding: str | None = None
    """What makes few numbers of an x of many: none; `mlp`; `conv1d`, for series; or `file.py:Class` of your own
    `torch.nn.Module`, made without arguments, which is called on scaled x `(n, k)` and gives `(n, m)`."""
    embedding_dim: int | None = Field(None, ge=1)
    """Numbers that `mlp` or `conv1d` give; by default twice as many as parameters, and at least 4."""
    embedding_channels: int = Field(1, ge=1)
    """Series of equal length, one after the other, that make up x, for `conv1d`."""
    members: list[
        Literal[
            "linear",
            "gaussian",
            "affine",
            "spline",
            "tailed",
            "full",
            "waves",
            "process",
            "location",
            "rounded",
            "committee-gaussian",
        ]
    ] = []
    """Kinds of the surrogate ensemble's members; empty chooses by the dimension of x."""
    hidden: list[PositiveInt] = Field([128, 128, 128, 128], min_length=1)
    """Widths of the hidden layers of the surrogate, the ratio or the cost."""
    epochs: int = Field(200, ge=1)
    """Passes over the simulations in a fit from scratch, at most (training stops early)."""
    update_epochs: int = Field(40, ge=1)
    """The same for updates while simulations still come; of more than a thousand simulations fewer."""
    refine_epochs: int = Field(80, ge=1)
    """The same for a last fit that continues from the updates: one that begins anew has `epochs` (docs/method.md)."""
    bank: int = Field(512, ge=8)
    """Number of x on which the posterior network is distilled."""
    pairs: int = Field(140_000, ge=1000)
    """Training pairs of the posterior network in a pass (docs/method.md, step 3)."""
    posterior_epochs: int = Field(8, ge=1)
    """Number of such passes."""
    cpus: float = Field(1.0, ge=0)
    """CPU cores reserved for the trainer while simulations run."""
    gpus: float | None = Field(None, ge=0)
    """GPUs of the trainer; by default one if the cluster has any."""
    compiled: bool = False
    """Compile training steps, which needs a C++ compiler where the trainer runs, and half a minute once for the network
    and for each kind of member. On a CPU steps of the surrogate then take 0.6, of the network 0.8 of their time: whole
    fits gain a few per cent to a fifth, and only campaigns that train for hours are the better for it."""

    _whole_gpus = field_validator("gpus")(_gpus_that_ray_has)

    @field_validator("embedding")
    @classmethod
    def _known_embedding(cls, value: str | None) -> str | None:
        if value in (None, "none"):
            return None
        if value not in EMBEDDINGS and ":" not in value:
            known = nearest(value, (*EMBEDDINGS, "none"))
            raise ValueError(f"no embedding '{value}'; {known}, or name a class as 'file.py:Class'")
        return value

    @model_validator(mode="after")
    def _together(self) -> LearnerConfig:
        if self.source == "cost" and self.distance is None:
            raise ValueError("source `cost` needs a `distance`, such as mine.py:distance")
        if self.source != "cost" and self.distance is not None:
            raise ValueError(f"a `distance` is for the source `cost`, but the source is `{self.source}`; remove one")
        if self.source != "surrogate" and self.members:
            raise ValueError(f"`members` are those of a surrogate, but the source is `{self.source}`; remove one")
        if self.embedding_dim is not None and self.embedding not in EMBEDDINGS:
            raise ValueError(
                f"`embedding_dim` is for the embeddings {' and '.join(EMBEDDINGS)}, but the embedding is "
                f"{self.embedding or 'none'}; remove it"
            )
        if self.embedding_channels != 1 and self.embedding != "conv1d":
            raise ValueError(f"`embedding_channels` are for conv1d, but the embedding is {self.embedding or 'none'}")
        return self


METHODS = ("default", "variance", "tempered", "prior", "sobol")


class AcquisitionConfig(_Model):
    """How (theta, beta) are chosen."""

    method: str = "default"
    """`default`: a share of prior draws, tempered-posterior draws and BoTorch's choice of what removes most variance;
    `variance`: the choice of the largest variance instead; `file.py:Name` or `module:Name`: the choice of your own
    class (see `docs/method.md`); `tempered`: no choice; `prior`: prior draws; `sobol`: a low-discrepancy sequence of
    the prior."""
    prior_share: float | None = Field(None, ge=0.05, le=1.0)
    """Share of the simulations that is always drawn from the prior; by default 0.2 or, where no observation is given,
    0.05: there the others are draws of the prior too, in favour of what is cheap."""
    chosen_share: float = Field(0.2, ge=0.0, le=1.0)
    """Share that is chosen one by one, by the methods that do so."""
    initial: int | None = Field(None, ge=1)
    """Prior draws before the first fit; by default an eighth of the budget, between 100 and 1000."""
    growth: float = Field(0.5, gt=0)
    """How far, relative to what the model was trained on, simulating may run ahead of a trainer that is
    slower than the simulator; above 1 also relative to `initial`, before the first model. Costly simulations never
    wait."""

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        if method not in METHODS and ":" not in method:
            raise ValueError(f"no method '{method}'; {nearest(method, METHODS)}, or name a class as 'file.py:Name'")
        return method

    def share_of_prior(self, targeted: bool) -> float:
        """`prior_share` or its default, in a campaign that has an observation or has none."""
        return self.prior_share or (0.2 if targeted else 0.05)

    @property
    def learns(self) -> bool:
        """Whether models steer the campaign; else only the last training matters."""
        return self.method not in ("prior", "sobol")

    @property
    def chooses(self) -> bool:
        """Whether some simulations are chosen one by one."""
        return self.learns and self.method != "tempered"


class CalibrationConfig(_Model):
    """Simulations kept away from training, to check the posterior (SBC)."""

    share: float = Field(0.05, ge=0.0, le=0.5)
    """Share of the budget, at most `simulations` a population."""
    simulations: int = Field(200, ge=0)
    """Simulations a population."""
    draws: int = Field(200, ge=20)
    """Posterior draws against which each is ranked."""


class TrackingConfig(_Model):
    """MLflow."""

    enabled: bool = True
    """Whether to track at all."""
    uri: str | None = None
    """Tracking server; by default `MLFLOW_TRACKING_URI`, else a sqlite store in the current folder. A password in it is
    never written down. Better give `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`, or
    `MLFLOW_TRACKING_TOKEN`, in the environment."""
    experiment: str = "temperflow"
    """Experiment in which the run appears."""
    model: str | None = None
    """Name in the model registry; by default the campaign's name."""

    @field_serializer("uri")
    def _no_secret(self, uri: str | None) -> str | None:
        return None if uri is None else without_secret(uri)


class KnownPosterior(_Model):
    """A parameter's posterior at beta = 1 as known from elsewhere, to compare with in the report."""

    mean: float
    """Posterior mean."""
    std: float = Field(gt=0)
    """Posterior standard deviation."""


class CampaignConfig(_Model):
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
