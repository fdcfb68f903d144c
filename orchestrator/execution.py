"""The work of one campaign, phase by phase: simulate, train, check, report."""

from __future__ import annotations

__all__ = ["Execution"]

import json
import logging
import threading
import time
from typing import Any

import numpy as np

from learners.posterior import TemperedPosterior
from learners.whitening_choice import whiten
from simulators.errors import SavedModelError

from .budget_shares import BudgetShares
from .campaign_result import CampaignResult
from .checking import check
from .config import CampaignConfig
from .display import Display
from .failures import failure_table
from .held_out import held_out
from .journal import ProposalJournal
from .learner_parts import check_length, load_own_posterior
from .loop import SimulationLoop
from .pacing import Goal
from .placement import TrainerPlace
from .pool import SimulationPool
from .problem import Problem
from .proposal import ProposalKind, Proposals
from .proposer import Proposer
from .provenance import describe
from .ray_hosts import RayHosts
from .run_directory import RunDirectory
from .simulating_time import SimulatingTime
from .supervisor import TrainerSupervisor
from .system_metrics import SystemMetrics
from .tracked_calibration import track_checks
from .tracking import Tracker
from .trainer import Snapshot, Trainer
from .watch import Watch

logger = logging.getLogger(__name__)

_TRACKED_FAILURES = 100


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
        summary = self.store.summary()
        self.journal = ProposalJournal(run.journal)
        self._interrupted = self._unfinished()
        # What was chosen one by one is written down later than it got its ids: the last is not the highest.
        last = max([summary.highest_id, *self._interrupted.id.tolist()])
        observation = problem.observation
        self.whitening = whiten(problem.prior)
        self.proposer = Proposer(
            problem.prior,
            self.whitening,
            config.acquisition,
            config.seed,
            last + 1,
            problem.acquisition,
            targeted=observation is not None,
        )
        self.place = TrainerPlace(config.learner)
        temperature = config.temperature

        self.system = SystemMetrics()

        def start_trainer() -> Any:
            self.executor.make_room()
            self.system.trainer = Trainer.options(**self.place.options).remote(  # type: ignore[attr-defined]
                problem.prior,
                (temperature.low, temperature.high),
                None if observation is None else observation.all,
                config.learner,
                config.seed,
                problem.names,
                run.checkpoint.read_bytes() if run.checkpoint.exists() else None,
                problem.learner,
            )
            self.place.taken_by(self.system.trainer)
            return self.system.trainer

        simulator = config.simulator
        self.executor = RayHosts(problem.spec, simulator.resources, self.place)
        self.pool = SimulationPool(self.executor, simulator.retries, simulator.resources.memory_growth)
        self.trainer = TrainerSupervisor(start_trainer, self.store, at_once=config.acquisition.learns)
        self.loop = SimulationLoop(
            self.pool,
            self.store,
            self.journal,
            self.trainer,
            self.proposer,
            config.acquisition,
            summary.width,
            None if observation is None else len(observation.x),
            config.budget.until,
            simulator.stop_wait,
            stopping,
            self._tick,
            self._keep,
        )
        self.shares = BudgetShares(config, self.store, self.loop.tally, self._targeted)
        self.watch = Watch(config, run, self.loop, self.trainer, self.system, tracker, display)
        self.time = SimulatingTime(run, self.executor.now)
        self._length_checked = False
        describe(tracker, config, problem)

    def carry_out(self) -> CampaignResult:
        """Simulates, trains, checks and reports; skips what an earlier process has done."""
        if len(self.store):
            self.display.say(f"continuing with {len(self.store)} simulations in {self.run.path}")
        posterior = self._finished_posterior()
        if posterior is None:
            self._simulate()
            posterior = self._train()
        with self.tracker.nested("calibration", "calibration", "calibration") as tracked:
            self._simulate_calibration(posterior)
            self.loop.close()
            self.trainer.stop()
            self.system.trainer = None
            self.watch.phase = "checking"
            checks = check(self.run, posterior, self.config.calibration.draws, self.config.seed)
            rows = held_out(self.run, posterior)
            score = None if rows is None else rows.score(posterior)
            track_checks(self.tracker, tracked, checks, posterior.names, score, self.loop.tally.spent)
        self._tell_of_failures()
        self.run.update(finished=time.time(), mlflow=self.tracker.link)
        self.watch.write_metrics(force=True)
        self._report()
        return CampaignResult(posterior, self.run.path, checks, None)

    def simulate(self) -> int:
        """Runs the simulations of the budget that need no final posterior; the number of simulations in the store."""
        self._simulate()
        self._simulate_on_prior()
        self.loop.close()
        self._tell_of_failures()
        return len(self.store)

    def close(self) -> None:
        """Ends what this process has running; everything finished is in the store."""
        try:
            self.loop.close()
        finally:
            self.trainer.stop()

    def _tell_of_failures(self) -> None:
        """Warns where most simulations of this process failed: that is seldom meant."""
        ended = self.loop.successes.ended
        if ended[False] <= ended[True]:
            return
        [(reason, number)] = self.loop.successes.reasons.most_common(1)
        logger.warning(
            "%d of the %d simulations of this run failed, %d of them with '%s'; `temperflow status %s` tells of all",
            ended[False],
            ended.total(),
            number,
            reason,
            self.run.path,
        )

    def _keep(self, snapshot: Snapshot) -> None:
        """Keeps what another trainer needs to go on from here; without it, one begins from an earlier model."""
        with self.watch.dispensable("the trained model"):
            self.run.write_bytes(self.run.checkpoint.name, snapshot.checkpoint)

    def _continue_interrupted(self) -> None:
        """Submits what an earlier process had in flight; it is in the journal already."""
        self.pool.submit(self._interrupted)
        self._interrupted = self._interrupted.take(slice(0, 0))

    def _unfinished(self) -> Proposals:
        """What an earlier process had in flight; it will be simulated again."""
        written = self.journal.read()
        unfinished = written.take(~np.isin(written.id, self.store.ids()))
        self.journal.rotate(unfinished)
        return unfinished

    def _simulate(self) -> None:
        budget, target = self.config.budget, self.shares.target
        self.loop.warm_up()
        self.display.say(
            f"simulating on {self.pool.slots} slot(s); "
            f"{'targeted at the observation' if self._targeted else 'amortized over the prior predictive'}"
        )
        deadline = None
        if budget.hours is not None:
            deadline = self.executor.now() + budget.hours * 3600 - self.time.seconds
        self.time.start()
        self._continue_interrupted()
        if self._was_accurate():
            target = self.loop.tally.trainable
        limit = None if budget.simulator_hours is None else budget.simulator_hours * 3600
        self.loop.train_and_simulate(Goal(target, min(self.shares.initial, target), deadline, limit))
        self._write_time()
        self.time.stop()
        if self.loop.accurate:
            self.display.say(f"accurate to {budget.until:g} nats after {self.loop.tally.trainable} simulations")
            self.run.update(accurate={"until": budget.until, "simulations": self.loop.tally.trainable})

    def _was_accurate(self) -> bool:
        """Whether an earlier process found the simulations to be enough for what is asked for now."""
        found, until = self.run.records().get("accurate"), self.config.budget.until
        if found is None or until is None:
            return False
        return bool(found["until"] <= until and found["simulations"] == self.loop.tally.trainable)

    def _train(self) -> TemperedPosterior:
        """The final training, with the simulations that check it on the prior beside it."""
        self.watch.phase = "training"
        metadata = {
            "simulations": self.loop.tally.trainable,
            "calibration_from": self.proposer.next_id,
            "observations": self._observations,
            "source": self.config.learner.source,
        }
        self.trainer.finish(metadata, self.loop.dim_x)
        self.watch.look_at_training()
        self._simulate_on_prior()
        trained = self.loop.wait_for_posterior()
        (self.run.path / "predictive.npz").unlink(missing_ok=True)
        if trained.predictive:
            np.savez_compressed(self.run.path / "predictive.npz", **trained.predictive)  # type: ignore[arg-type]
        trained.posterior.save(self.run.posterior)
        self.watch.training.end(trained.losses, self.loop.tally.spent)
        self.tracker.metrics({f"final_{k}": v for k, v in trained.losses.items()}, self.loop.tally.spent)
        return trained.posterior

    def _simulate_calibration(self, posterior: TemperedPosterior) -> None:
        self.watch.phase = "calibrating"
        self._continue_interrupted()
        self.loop.simulate(Proposals.none(self.whitening.dim))
        self._simulate_on_prior()
        if self._targeted:
            since = int(posterior.metadata["calibration_from"])
            missing = self.shares.missing(ProposalKind.CALIBRATION_TEMPERED, since)
            self.loop.simulate(self.proposer.for_calibration(missing, posterior))

    def _simulate_on_prior(self) -> None:
        """What checks the posterior over the prior."""
        missing = self.shares.missing(ProposalKind.CALIBRATION_PRIOR)
        self.loop.simulate(self.proposer.for_calibration(missing, None))

    def _finished_posterior(self) -> TemperedPosterior | None:
        """The posterior of an earlier process, if it was trained on all that the budget allows."""
        try:
            posterior = load_own_posterior(self.run, own_code=True)
        except SavedModelError:
            return None
        if posterior.metadata.get("simulations") != self.loop.tally.trainable:
            return None
        # An amortized campaign may have got an observation, a targeted one further ones.
        same = posterior.metadata.get("observations", self._observations) == self._observations
        if not same or (posterior.default_x is not None) != self._targeted:
            return None
        since = int(posterior.metadata["calibration_from"])
        spent = self._was_accurate() or self.shares.used_up(self.time.seconds / 3600, since)
        return posterior if spent else None

    def _write_time(self) -> None:
        with self.watch.dispensable("the time spent"):
            self.time.write()

    @property
    def _observations(self) -> str | None:
        return None if self.problem.observation is None else self.problem.observation.digest

    @property
    def _targeted(self) -> bool:
        return self.problem.observation is not None

    def _tick(self) -> None:
        if not self._length_checked and self.loop.dim_x is not None:
            self._length_checked = True
            check_length(self.problem.learner, self.config.learner, self.loop.dim_x)
        if self.watch.look() and self.time.due():
            self._write_time()

    def _report(self) -> None:
        from .reporting import make_report

        for figure in make_report(self.run, own_code=True):
            self.tracker.artifact(figure, "figures")
        self.tracker.artifact(self.run.calibration)
        failures = failure_table(self.store.read(["status", "reason"]), _TRACKED_FAILURES)
        self.tracker.text(json.dumps(failures, indent=1), "failures.json")
        self.tracker.dataset(self.store.location, self.store.digest(), len(self.store))
        if isinstance(self.problem.learner.embedding, str | None):
            self.tracker.model(self.run.posterior, self.config.tracking.model or self.config.name)
        else:
            self.display.say("the posterior is not registered in MLflow: it needs the code of your own embedding")
        self.tracker.artifact(self.run.report)
