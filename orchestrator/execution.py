"""The work of one campaign, phase by phase: simulate, train, check, report."""

from __future__ import annotations

__all__ = ["CampaignResult", "Execution"]

import json
import math
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import ray

from learners.posterior import TemperedPosterior
from learners.whitening import whiten
from simulators.errors import SavedModelError
from simulators.outcome import Status

from .checking import CheckResult, check
from .config import CampaignConfig
from .display import Display, Progress
from .loop import SimulationLoop
from .pool import SimulationPool
from .problem import Problem
from .proposal import ProposalKind
from .proposer import Proposer
from .run_directory import RunDirectory
from .supervisor import TrainerSupervisor
from .tracking import Tracker
from .trainer import Trainer

_METRIC_SECONDS = 2.0


@dataclass(frozen=True)
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


class Execution:
    """One process's work on a campaign: it begins where an earlier process ended.

    Arguments:
        config, problem: What is asked.
        run: Where everything goes; opened by the caller.
        tracker, display: Who is told.
        stopping: Set to end gracefully.
    """

    def __init__(
        self,
        config: CampaignConfig,
        problem: Problem,
        run: RunDirectory,
        tracker: Tracker,
        display: Display,
        stopping: threading.Event,
    ) -> None:
        self.config, self.problem, self.run = config, problem, run
        self.tracker, self.display = tracker, display
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
            np.savez_compressed(self.run.path / "predictive.npz", **trained.predictive)  # type: ignore[arg-type]
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
        since, before = self._window[0]
        span = now - since
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
