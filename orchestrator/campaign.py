"""A campaign from end to end: simulate, train, choose, check, report."""

from __future__ import annotations

__all__ = ["Campaign", "CampaignResult"]

import contextlib
import dataclasses
import json
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd
import ray
from torch.distributions import Distribution

from learners.posterior import TemperedPosterior
from learners.whitening import whiten
from simulators.errors import SavedModelError
from simulators.isolated import IsolatedSimulator
from simulators.outcome import Status
from simulators.prior import check_prior
from simulators.simulator import SimulatorSpec

from .checking import CheckResult, check
from .config import CampaignConfig, load_config, validate_config
from .connect import connected
from .display import Display, Progress
from .loop import Interrupted, SimulationLoop
from .observation import Observation
from .pool import SimulationPool
from .problem import Problem, named, resolve
from .proposal import ProposalKind
from .proposer import Proposer
from .run_directory import RunDirectory
from .supervisor import TrainerSupervisor
from .tracking import Tracker, default_uri
from .trainer import Trainer

logger = logging.getLogger(__name__)

_METRIC_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class CampaignResult:
    """What a finished campaign leaves.

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


class Campaign:
    """A campaign to be run.

    Arguments:
        simulator: Callable `theta (d,) -> x`, or the name of a built-in task.
        prior: `p(theta)`, `event_shape` `(d,)`; a task brings its own.
        observation: `(k,)`, or None for an amortized campaign.
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
        **settings: Any,
    ) -> None:
        limits = dict(budget) if isinstance(budget, Mapping) else {"simulations": budget}
        options = dict(settings.pop("simulator_options", {}))
        section = {**options, **({"task": simulator} if isinstance(simulator, str) else {})}
        values = {**settings, "simulator": section, "budget": limits}
        config = validate_config(values, "the campaign's arguments")
        if isinstance(simulator, str):
            problem = resolve(config, Path.cwd())
        else:
            checked, names = named(check_prior(prior))
            spec = SimulatorSpec(
                function=None,
                pickled=cloudpickle.dumps(simulator),
                batched=config.simulator.batched,
                timeout=config.simulator.timeout,
                folder=str(Path.cwd()),
            )
            problem = Problem(spec, checked, names, None)
        if observation is not None:
            x = np.asarray(observation, dtype=np.float64).ravel()
            problem = dataclasses.replace(problem, observation=Observation(x))
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
        run = self.run_directory
        started = time.time()
        with IsolatedSimulator(self.problem.spec) as probe:
            probe.start()
        records = run.open(self.config.model_dump(mode="json"), self.problem.identity(self.config))
        records = run.update(
            names=list(self.problem.names),
            observation=_observation_record(self.problem.observation),
            started=records.get("started", started),
        )
        tracker = self._tracker(records)
        status = "FAILED"
        try:
            with (
                connected(self.address),
                Display(enabled=progress) as display,
                _stop_on_signals() as stopping,
            ):
                result = _Execution(self, tracker, display, stopping).carry_out()
            status = "FINISHED"
            return result
        except (Interrupted, KeyboardInterrupt):
            status = "KILLED"
            raise
        finally:
            tracker.close(status, patience=10.0 if status != "FINISHED" else 120.0)
            run.close()

    def _tracker(self, records: dict[str, Any]) -> Tracker:
        tracking, run = self.config.tracking, self.run_directory
        uri = tracking.uri or default_uri()
        previous = records.get("mlflow", {})
        run_id = previous.get("run_id") if previous.get("uri") == uri else None

        def started(new_id: str) -> None:
            run.update(mlflow={"uri": uri, "run_id": new_id})

        return Tracker(uri, tracking.experiment, self.config.name, run_id, started, tracking.enabled)


class _Execution:
    """One process's work on a campaign."""

    def __init__(self, campaign: Campaign, tracker: Tracker, display: Display, stopping: threading.Event) -> None:
        self.config, self.problem, self.run = campaign.config, campaign.problem, campaign.run_directory
        self.tracker, self.display, self.stopping = tracker, display, stopping
        config, problem = self.config, self.problem
        self.store = self.run.store()
        table = self.store.read(["id", "x"])
        next_id = int(table["id"].to_numpy().max()) + 1 if len(table) else 0
        dim_x = next((len(x) for x in table["x"].to_pylist() if x is not None), None)
        observation = problem.observation
        self.whitening = whiten(problem.prior)
        self.proposer = Proposer(problem.prior, self.whitening, config.acquisition, config.seed, next_id)
        gpus = config.learner.gpus
        if gpus is None:
            gpus = 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0
        cpus = min(config.learner.cpus, max(0.0, ray.cluster_resources().get("CPU", 1.0) - 1))
        temperature = config.temperature

        def start_trainer() -> Any:
            return Trainer.options(  # type: ignore[attr-defined]
                num_cpus=cpus, num_gpus=gpus
            ).remote(
                problem.prior,
                (temperature.low, temperature.high),
                None if observation is None else observation.x,
                config.learner,
                config.seed,
                problem.names,
            )

        self.pool = SimulationPool(
            problem.spec, config.simulator.resources, config.simulator.retries, reserved_cpus=cpus
        )
        self.trainer = TrainerSupervisor(start_trainer, self.store)
        self.loop = SimulationLoop(
            self.pool,
            self.store,
            self.trainer,
            self.proposer,
            config.acquisition,
            dim_x,
            None if observation is None else len(observation.x),
            stopping,
            self._tick,
        )
        self.phase = "simulating"
        self._begin = time.monotonic()
        self._last_metrics = -math.inf
        self._window: list[tuple[float, int]] = []

    def carry_out(self) -> CampaignResult:
        """Simulates, trains, checks and reports; skips what an earlier process has done."""
        self.tracker.params({**self.config.model_dump(mode="json"), "names": list(self.problem.names)})
        if len(self.store):
            self.display.say(f"continuing with {len(self.store)} simulations in {self.run.path}")
        calibration = self._calibration_size()
        posterior = self._finished_posterior()
        if posterior is None:
            self._simulate(calibration)
            posterior = self._train(calibration)
        self._simulate_calibration(posterior, calibration)
        self.trainer.stop()
        self.phase = "checking"
        checks = check(self.run, posterior, self.config.calibration.draws, self.config.seed)
        self.run.update(finished=time.time())
        self._log_metrics(force=True)
        self._report(posterior, checks)
        return CampaignResult(posterior, self.run.path, checks, self.tracker.run_id)

    def _simulate(self, calibration: int) -> None:
        budget = self.config.budget
        target = 1 << 40
        if budget.simulations is not None:
            kept = self._count(ProposalKind.CALIBRATION_PRIOR, ProposalKind.CALIBRATION_TEMPERED)
            reserve = max(0, calibration - self._count(ProposalKind.CALIBRATION_PRIOR))
            reserve += calibration if self._targeted else 0
            target = max(budget.simulations - kept - reserve, self.loop.trainable)
        deadline = None
        if budget.hours is not None:
            spent = time.time() - self.run.records()["started"]
            deadline = time.monotonic() + budget.hours * 3600 - spent
        initial = self.config.acquisition.initial
        if initial is None:
            initial = 100 if budget.simulations is None else min(1000, max(100, budget.simulations // 8))
        self.display.say(
            f"simulating on {self.pool.slots} slot(s); "
            f"{'targeted at the observation' if self._targeted else 'amortized over the prior predictive'}"
        )
        self.loop.train_and_simulate(target, min(initial, target), deadline)

    def _train(self, calibration: int) -> TemperedPosterior:
        """The final training, with the simulations that check it on the prior beside it."""
        self.phase = "training"
        metadata = {"simulations": self.loop.trainable, "calibration_from": self.proposer.next_id}
        missing = self._room(calibration - self._count(ProposalKind.CALIBRATION_PRIOR))
        self.trainer.finish(metadata)
        self.loop.simulate(self.proposer.for_calibration(missing, None))
        trained = self.loop.wait_for_posterior()
        if trained.predictive:
            arrays = {str(beta): draws for beta, draws in trained.predictive.items()}
            np.savez_compressed(self.run.path / "predictive.npz", **arrays)  # type: ignore[arg-type]
        trained.posterior.save(self.run.posterior)
        self.tracker.metrics({f"final_{k}": v for k, v in trained.losses.items()}, sum(self.loop.counts.values()))
        return trained.posterior

    def _simulate_calibration(self, posterior: TemperedPosterior, calibration: int) -> None:
        self.phase = "calibrating"
        missing = self._room(calibration - self._count(ProposalKind.CALIBRATION_PRIOR))
        self.loop.simulate(self.proposer.for_calibration(missing, None))
        if self._targeted:
            since = int(posterior.metadata["calibration_from"])
            missing = self._room(calibration - self._count(ProposalKind.CALIBRATION_TEMPERED, since=since))
            self.loop.simulate(self.proposer.for_calibration(missing, posterior))

    def _finished_posterior(self) -> TemperedPosterior | None:
        """The posterior of an earlier process, if it was trained on all that the budget allows."""
        try:
            posterior = TemperedPosterior.load(self.run.posterior)
        except SavedModelError:
            return None
        if posterior.metadata.get("simulations") != self.loop.trainable:
            return None
        budget = self.config.budget.simulations
        if budget is None or sum(self.loop.counts.values()) >= budget:
            return posterior
        calibration = self._calibration_size()
        since = int(posterior.metadata["calibration_from"])
        missing = calibration - self._count(ProposalKind.CALIBRATION_PRIOR)
        if self._targeted:
            missing += calibration - self._count(ProposalKind.CALIBRATION_TEMPERED, since=since)
        return posterior if sum(self.loop.counts.values()) + missing >= budget else None

    def _calibration_size(self) -> int:
        """Simulations of each population that checks the posterior."""
        settings, budget = self.config.calibration, self.config.budget.simulations
        rows = budget if budget is not None else max(1, self.loop.trainable)
        populations = 2 if self._targeted else 1
        return min(settings.simulations, int(settings.share * rows / populations))

    def _room(self, wanted: int) -> int:
        """How many of `wanted` simulations the budget still allows."""
        budget = self.config.budget.simulations
        if budget is None:
            return max(0, wanted)
        return max(0, min(wanted, budget - sum(self.loop.counts.values())))

    def _count(self, *kinds: ProposalKind, since: int = 0) -> int:
        table = self.store.read(["proposal"])
        return sum(
            kind in kinds and row >= since
            for row, kind in zip(table["id"].to_pylist(), table["proposal"].to_pylist(), strict=True)
        )

    @property
    def _targeted(self) -> bool:
        return self.problem.observation is not None

    def _tick(self) -> None:
        done = sum(self.loop.counts.values())
        now = time.monotonic()
        self._window.append((now, done))
        self._window = [entry for entry in self._window if now - entry[0] < 15.0]
        (first, before), span = self._window[0], now - self._window[0][0]
        del first
        rate = (done - before) / span if span > 0.5 else 0.0
        total = self.config.budget.simulations
        left = (total - done) / rate if total is not None and rate > 0 else None
        training, loss = self.trainer.progress
        failed = done - self.loop.counts[Status.OK]
        in_flight = len(self.pool.pending)
        self.display.show(Progress(self.phase, total, done, failed, in_flight, rate, training, loss, left))
        self._log_metrics()

    def _log_metrics(self, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._last_metrics < _METRIC_SECONDS:
            return
        self._last_metrics = now
        counts = self.loop.counts
        done = sum(counts.values())
        elapsed = now - self._begin
        metrics = {
            "simulations": float(done),
            "failed": float(done - counts[Status.OK]),
            "in_flight": float(len(self.pool.pending)),
            "simulator_seconds": self.loop.seconds,
            "seconds": elapsed,
            **{f"status/{status}": float(count) for status, count in counts.items()},
        }
        if self.loop.snapshot is not None:
            metrics |= self.loop.snapshot.metrics
        with self.run.metrics.open("a") as file:
            file.write(json.dumps({"time": time.time(), "phase": self.phase, **metrics}) + "\n")
        self.tracker.metrics(metrics, step=done)

    def _report(self, posterior: TemperedPosterior, checks: list[CheckResult]) -> None:
        from .reporting import make_report

        for figure in make_report(self.run):
            self.tracker.artifact(figure, "figures")
        for result in checks:
            smallest = {f"sbc_min_p/{result.kind}": min(result.p_values)}
            self.tracker.metrics(smallest, sum(self.loop.counts.values()))
        self.tracker.text(json.dumps(self.config.model_dump(mode="json"), indent=1), "config.json")
        self.tracker.dataset(self.run.simulations, self.store.digest(), len(self.store))
        self.tracker.model(self.run.posterior, posterior, self.config.tracking.model or self.config.name)
        self.tracker.artifact(self.run.report)


def _observation_record(observation: Observation | None) -> dict[str, Any] | None:
    if observation is None:
        return None
    return {
        "x": observation.x.tolist(),
        "series": list(observation.series),
        "index": None if observation.index is None else observation.index.tolist(),
        "index_name": observation.index_name,
    }


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """An event set by SIGINT or SIGTERM; a second Ctrl-C interrupts at once."""
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return

    def ask(number: int, _frame: object) -> None:
        if stopping.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stopping.set()

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
