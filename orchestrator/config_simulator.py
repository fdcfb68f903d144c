"""What the configuration says of the simulator, and of what one simulation needs."""

from __future__ import annotations

__all__ = ["ResourcesConfig", "Section", "SimulatorConfig", "gpus_that_ray_has"]

import contextlib
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from simulators.errors import nearest
from simulators.tasks import task_names


class Section(BaseModel):
    """Part of a configuration: frozen, without unknown keys; what stands below a field describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _whole_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """`1e4` is a text to YAML, which pydantic takes for a number where a float is wanted, but not for an int."""
        wanted = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, str) and int in (wanted, *get_args(wanted)):
            with contextlib.suppress(ValueError):
                return float(value)
        return value


def gpus_that_ray_has(value: float | None) -> float | None:
    """Ray has whole GPUs, or a share of one."""
    if value is not None and value > 1 and value != int(value):
        raise ValueError(f"expected a share of one GPU or a whole number of them, got {value:g}")
    return value


#: What Ray calls the resources that have keys of their own.
_NOT_CUSTOM = {"CPU": "cpus", "GPU": "gpus", "memory": "memory"}


class ResourcesConfig(Section):
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

    _whole_gpus = field_validator("gpus")(gpus_that_ray_has)

    @field_validator("custom")
    @classmethod
    def _amounts_of_their_own(cls, value: dict[str, float]) -> dict[str, float]:
        for name, amount in value.items():
            if name in _NOT_CUSTOM:
                raise ValueError(f"{name} is no custom resource; give `{_NOT_CUSTOM[name]}: {amount:g}` instead")
            if amount <= 0:
                raise ValueError(f"expected an amount above 0 of {name}, got {amount:g}; leave out what is not needed")
        return value


class SimulatorConfig(Section):
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
