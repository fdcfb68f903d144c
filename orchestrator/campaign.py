"""A campaign from end to end: simulate, train, choose, check, report."""

from __future__ import annotations

__all__ = ["Campaign", "CampaignResult"]

import contextlib
import dataclasses
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import cloudpickle
from torch.distributions import Distribution

from learners.learner import MIN_SIMULATIONS
from simulators.errors import ConfigError, ObservationError
from simulators.isolated import IsolatedSimulator
from simulators.prior import check_prior
from simulators.simulator import SimulatorSpec

from . import learner_parts
from .acquisition_methods import resolve_acquisition
from .campaign_result import CampaignResult
from .config import CampaignConfig
from .config_reading import load_config, validate_config
from .connect import connected
from .display import Display
from .execution import Execution
from .loop import Interrupted
from .observation import Observation, check_length, numbers, with_others
from .problem import Problem, check_fits, named, resolve
from .run_directory import RunDirectory
from .store import StoreSummary
from .tally import Tally
from .tracking import Tracker
from .tracking_records import RunStatus
from .tracking_uri import default_uri, without_secret
from .warned_once import warned_once

Result = TypeVar("Result")


class Campaign:
    """A campaign to be run.

    Arguments:
        simulator: Callable `theta (d,) -> x`, or the name of a built-in task.
        prior: `p(theta)`, `event_shape` `(d,)`; a task brings its own.
        observation: `(k,)`, or None for an amortized campaign.
        also: Further observations `(m, k)` that the simulations shall serve too.
        budget: Simulations, or a mapping as in the configuration.
        directory: Run directory; by default `runs/NAME`.
        address: Ray cluster to join.
        **settings: Any further key of the configuration, such as `name`, `seed`, `temperature`.

    Raises:
        TemperflowError: Whatever cannot be used, with the remedy.

    Example:
        >>> campaign = Campaign(simulator=simulate, prior=prior, observation=x_o, budget=1000)  # doctest: +SKIP
        >>> result = campaign.run()  # doctest: +SKIP
    """

    def __init__(
        self,
        simulator: Callable[..., Any] | str,
        prior: Distribution | None = None,
        observation: Any = None,
        budget: int | Mapping[str, float] = 1000,
        directory: str | Path | None = None,
        address: str | None = None,
        also: Any = (),
        **settings: Any,
    ) -> None:
        limits = dict(budget) if isinstance(budget, Mapping) else {"simulations": budget}
        options = dict(settings.pop("simulator_options", {}))
        section = {**options, **({"task": simulator} if isinstance(simulator, str) else {})}
        values = {**settings, "simulator": section, "budget": limits}
        config = validate_config(values, "the campaign's arguments")
        if isinstance(simulator, str):
            if prior is not None:
                raise ConfigError(f"the task '{simulator}' brings its own prior; leave `prior` out")
            problem = resolve(config, Path.cwd())
        else:
            checked, names = named(check_prior(prior))
            check_fits(config, checked, names)
            spec = SimulatorSpec(
                function=None,
                pickled=cloudpickle.dumps(simulator),
                batched=config.simulator.batched,
                timeout=config.simulator.timeout,
                folder=str(Path.cwd()),
                # Modules beside the user's script, which workers do not find by themselves.
                path=tuple(str(Path(folder).absolute()) for folder in sys.path if Path(folder).is_dir()),
            )
            acquisition = resolve_acquisition(config.acquisition.method, Path.cwd())
            learner = learner_parts.resolve_learner(config.learner, Path.cwd())
            problem = Problem(spec, checked, names, None, acquisition, learner)
        if observation is not None:
            places = [f"also[{i}]" for i in range(len(also))]
            given = zip((observation, *also), ("`observation`", *places), strict=True)
            x, *others = (numbers(values, place) for values, place in given)
            problem = dataclasses.replace(problem, observation=with_others(Observation(x), others, places))
        elif len(also):
            raise ObservationError("`also` holds further observations, but there is no `observation`; give one")
        self._init(config, problem, directory, address)

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        overrides: Sequence[str] = (),
        directory: str | Path | None = None,
        address: str | None = None,
    ) -> Campaign:
        """A campaign from a YAML file; `overrides` are `key=value` with dotted keys."""
        path = Path(path)
        config = load_config(path, overrides)
        campaign = cls.__new__(cls)
        campaign._init(config, resolve(config, path.parent), directory, address)
        return campaign

    def _init(
        self, config: CampaignConfig, problem: Problem, directory: str | Path | None, address: str | None
    ) -> None:
        if problem.observation is not None:
            learner_parts.check_length(problem.learner, config.learner, problem.observation.x.size)
        self.config, self.problem, self.address = config, problem, address
        self.directory = Path(directory) if directory is not None else Path("runs") / config.name
        self.run_directory = RunDirectory(self.directory.resolve())

    def run(self, progress: bool = True) -> CampaignResult:
        """Runs, or continues, the campaign to its end.

        Arguments:
            progress: Whether to show progress on standard error.

        Raises:
            TemperflowError: With the remedy; whatever was simulated is in the run directory.
        """
        self._check_budget()
        result = self._execute(Execution.carry_out, progress)
        link = self.run_directory.records()["mlflow"]
        return dataclasses.replace(result, mlflow_run_id=None if link is None else link["run_id"])

    def simulate(self, progress: bool = True) -> int:
        """Runs, or continues, the simulations of the budget; `run` trains the posterior on them later.

        All but those near the observation that check the posterior, which must be there first. A method that chooses
        trains meanwhile, to choose.

        Arguments:
            progress: Whether to show progress on standard error.

        Returns:
            Number of simulations in the store.

        Raises:
            TemperflowError: With the remedy; whatever was simulated is in the run directory.
        """
        return self._execute(Execution.simulate, progress)

    def _check_budget(self) -> None:
        """Whether the budget is enough for a posterior: after simulating it would be late to say so."""
        budget, targeted = self.config.budget.simulations, self.problem.observation is not None
        if budget is None:
            return
        for_checks = (2 if targeted else 1) * self.config.calibration_size(budget, targeted)
        stored = Tally(self.run_directory.store().summary() if self.run_directory.exists else StoreSummary())
        # What is stored may be imported, which costs no budget, and may be more than a lowered budget.
        if stored.valid + max(0, budget - for_checks - stored.spent) < MIN_SIMULATIONS:
            raise ConfigError(
                f"budget.simulations: at least {MIN_SIMULATIONS} simulations are needed to train, but of {budget} "
                f"{for_checks} are kept to check the posterior (`calibration.share`), and {stored.valid} that "
                "succeeded are there; raise it, or use `temperflow simulate`, which does not train"
            )

    def _execute(self, work: Callable[[Execution], Result], progress: bool) -> Result:
        run = self.run_directory
        started = time.time()
        with IsolatedSimulator(self.problem.spec) as probe:
            probe.start()
        if run.exists and self.problem.observation is not None:
            # Before it is written down for good: one of another length cannot be meant.
            check_length(self.problem.observation.x.size, run.store().summary().width, run.store().location)
        records = run.open(self.config.model_dump(mode="json"), self.problem.identity(self.config), self.problem.names)
        try:
            return self._continue(work, progress, records.get("started", started))
        finally:
            # Also where it failed before it began: the folder is for others again.
            run.close()

    def _continue(self, work: Callable[[Execution], Result], progress: bool, started: float) -> Result:
        """The work in the run directory, which is open."""
        run = self.run_directory
        run.update(
            observation=_observation_record(self.problem.observation),
            folder=self.problem.spec.folder,
            started=started,
            finished=None,
        )
        tracking = self.config.tracking
        uri = tracking.uri or default_uri()
        run.update(tracking=without_secret(uri))
        tracker = Tracker(run.path, uri, tracking.experiment, self.config.name, tracking.enabled)
        status: RunStatus = "FAILED"
        try:
            with (
                warned_once(),
                connected(self.address),
                Display(enabled=progress) as display,
                _stop_on_signals() as stopping,
            ):
                execution = Execution(self.config, self.problem, run, tracker, display, stopping)
                try:
                    result = work(execution)
                finally:
                    execution.close()
            status = "FINISHED"
            return result
        except (Interrupted, KeyboardInterrupt):
            status = "KILLED"
            raise
        finally:
            tracker.close(status, patience=8.0 if status != "FINISHED" else 60.0)
            # A disk that is full must not hide what happened.
            with contextlib.suppress(OSError):
                run.update(mlflow=tracker.link)


def _observation_record(observation: Observation | None) -> dict[str, Any] | None:
    if observation is None:
        return None
    return {
        "x": observation.x.tolist(),
        "series": list(observation.series),
        "index": None if observation.index is None else observation.index.tolist(),
        "index_name": observation.index_name,
        "also": [x.tolist() for x in observation.also],
    }


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """An event set by SIGINT, SIGTERM or SIGHUP, which a lost terminal sends; a second Ctrl-C interrupts at once."""
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return

    def ask(number: int, _frame: object) -> None:
        if stopping.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stopping.set()

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield stopping
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
