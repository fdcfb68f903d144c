"""What a configuration asks: the simulator, the prior and the observation, ready to use."""

from __future__ import annotations

__all__ = ["Problem", "check_fits", "named", "resolve", "resolve_prior"]

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.distributions import Distribution

from learners.whitening_choice import whiten
from simulators import get_task
from simulators.command import CommandSpec
from simulators.errors import ConfigError, PriorError
from simulators.loading import load_object
from simulators.prior import Marginal, ProductPrior, check_prior
from simulators.simulator import SimulatorSpec

from .acquisition import Acquisition
from .acquisition_methods import resolve_acquisition
from .config import CampaignConfig
from .config_simulator import SimulatorConfig
from .learner_parts import LearnerParts, resolve_learner
from .observation import Observation, read_observation


@dataclass(frozen=True)
class Problem:
    """See the module.

    Attributes:
        spec: How to call the simulator.
        prior: `p(theta)`.
        names: Names of the parameters.
        observation: The data of a targeted campaign, else None.
        acquisition: What chooses simulations one by one.
        learner: What of the learner is the user's own.
    """

    spec: SimulatorSpec
    prior: Distribution
    names: tuple[str, ...]
    observation: Observation | None
    acquisition: Acquisition
    learner: LearnerParts = field(default_factory=LearnerParts)

    def identity(self, config: CampaignConfig) -> dict[str, Any]:
        """What must stay the same for a run directory to be continued."""
        return {
            "simulator": self.spec.function or self.spec.task or _program(self.spec.command) or "callable",
            "batched": self.spec.batched,
            "parameters": config.parameters,
            "prior": config.prior,
            "observation": None if self.observation is None else self.observation.x.tolist(),
            "temperature": config.temperature.model_dump(),
            "seed": config.seed,
            "store": config.store,
        }


def resolve(config: CampaignConfig, folder: Path) -> Problem:
    """Loads what the configuration names; paths are relative to `folder`.

    Raises:
        ConfigError, PriorError, SimulatorError, ObservationError: With the remedy.
    """
    simulator = config.simulator
    if [simulator.function, simulator.task, simulator.command].count(None) != 2:
        raise ConfigError("simulator: give exactly one of `function`, `task` and `command`")
    timeout, home = simulator.timeout, str(folder.resolve())
    if simulator.task is not None and (config.parameters or config.prior):
        raise ConfigError(f"the task '{simulator.task}' brings its own prior; remove `parameters` and `prior`")
    prior, names = resolve_prior(config, folder)
    check_fits(config, prior, names)
    if simulator.task is not None:
        spec = SimulatorSpec(task=simulator.task, batched=True, timeout=timeout, folder=home)
    else:
        function = None if simulator.function is None else absolute_reference(simulator.function, folder)
        command = None if simulator.command is None else _command(simulator, simulator.command, names, folder)
        spec = SimulatorSpec(
            function=function, command=command, batched=simulator.batched, timeout=timeout, folder=home
        )
    observation = None if config.observation is None else read_observation(config.observation, folder)
    acquisition = resolve_acquisition(config.acquisition.method, folder)
    return Problem(spec, prior, names, observation, acquisition, resolve_learner(config.learner, folder))


def check_fits(config: CampaignConfig, prior: Distribution, names: tuple[str, ...]) -> None:
    """Whether the configuration asks for what there is.

    Raises:
        ConfigError: With the remedy.
    """
    unknown = set(config.reference) - set(names)
    if unknown:
        raise ConfigError(f"reference: no parameter {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if config.acquisition.method == "sobol" and not whiten(prior).exact:
        raise ConfigError(
            "acquisition.method: a low-discrepancy sequence needs a prior whose quantiles are known (independent "
            "parameters, or a multivariate normal), and this one is not; use `method: prior`"
        )


def _command(simulator: SimulatorConfig, command: list[str], names: tuple[str, ...], folder: Path) -> CommandSpec:
    name, template = simulator.input, None
    if name not in (None, "json", "csv"):
        path = folder / Path(name).expanduser()
        try:
            template = path.read_bytes().decode(errors="surrogateescape")
        except OSError as error:
            raise ConfigError(
                f"simulator.input: expected json, csv or a template, but {path} cannot be read: {error.strerror}"
            ) from error
        name = path.name.removesuffix(".j2")
    workdir = None if simulator.workdir is None else str((folder / Path(simulator.workdir).expanduser()).resolve())
    return CommandSpec(
        tuple(command), names, str(folder.resolve()), name, template, simulator.output, tuple(simulator.fields), workdir
    )


def _program(command: CommandSpec | None) -> dict[str, Any] | None:
    """What decides on the results of an external program."""
    if command is None:
        return None
    template = None if command.template is None else command.template.encode(errors="surrogateescape")
    return {
        "command": [command.program, *command.command[1:]],
        "input": command.input,
        "template": None if template is None else hashlib.sha256(template).hexdigest(),
        "output": command.output,
        "fields": list(command.fields),
    }


def resolve_prior(config: CampaignConfig, folder: Path) -> tuple[Distribution, tuple[str, ...]]:
    """`p(theta)` and the names of the parameters.

    Raises:
        ConfigError, PriorError, SimulatorError: With the remedy.
    """
    if config.simulator.task is not None:
        task = get_task(config.simulator.task)
        return task.prior, tuple(task.parameters)
    if bool(config.parameters) == (config.prior is not None):
        raise ConfigError("give exactly one of `parameters` and `prior`")
    if config.parameters:
        product = ProductPrior({name: Marginal.from_dict(spec) for name, spec in config.parameters.items()})
        return product, product.names
    prior = load_object(absolute_reference(config.prior or "", folder))
    if not isinstance(prior, Distribution) and callable(prior):
        prior = prior()
    return named(check_prior(prior))


def named(prior: Distribution) -> tuple[Distribution, tuple[str, ...]]:
    """The prior with names for its parameters."""
    if not prior.event_shape:
        raise PriorError("a prior must have event_shape (d,)")
    names = getattr(prior, "names", None) or [f"theta_{i}" for i in range(prior.event_shape[0])]
    return prior, tuple(names)


def absolute_reference(reference: str, folder: Path) -> str:
    """`file.py:name` with the file's path made absolute; module references stay as they are."""
    module, separator, name = reference.rpartition(":")
    if module.endswith(".py"):
        module = str((folder / Path(module).expanduser()).resolve())
    return f"{module}{separator}{name}"
