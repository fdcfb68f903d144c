"""The central trainer: a Ray actor that keeps fitting the learner while simulations go on."""

from __future__ import annotations

__all__ = ["Snapshot", "Trained", "Trainer", "learner_options"]

import contextlib
import copy
import dataclasses
import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from torch.distributions import Distribution

from learners.checkpoint import dump_learner, restore_learner
from learners.distillation import DistillationOptions
from learners.embedding import EmbeddingOptions
from learners.learner import Learner
from learners.options import LearnerOptions
from learners.posterior import TemperedPosterior
from learners.prior_density import PriorDensity
from learners.runtime import Runtime
from learners.simulations import Simulations
from learners.surrogate import STEPS_A_PASS, SurrogateOptions
from learners.tempered_density import TemperedDensity
from learners.thrifty import ThriftyDensity
from simulators.errors import SavedModelError

from .acquisition import Candidates
from .config_learner import LearnerConfig
from .cpus import usable_cpus
from .learner_parts import LearnerParts
from .system_metrics import NodeMetrics
from .temperatures import report_betas

_CANDIDATES = 1000
#: Share of the candidates below which kernels miss the prior's support, such as a thin ring, nearly always.
_LEAST_INSIDE = 0.05
_PREDICTIVE = 400
#: Runtimes of so many simulations, the latest, say what the next ones cost.
_RUNTIMES = 5000
#: Pairs of the network's short trainings while simulations run, as a share of those of the last one.
_UPDATE_SHARE = 1 / 7
#: Progress between trainings: the loss of the last one is in its metrics, and none of the next.
_WAITING = ("waiting", math.nan)


@dataclass(frozen=True)
class Snapshot:
    """What the campaign needs of the latest model.

    Attributes:
        rows: Simulations that it was trained on, failures included.
        density: Where simulations are wanted, in favour of what is cheap and succeeds.
        candidates: Draws of the tempered posteriors of interest, with every member's log-likelihood.
        metrics: Losses and diagnostics by name.
        checkpoint: The learner's state, from which another trainer can continue.
        notices: What the user should know of this training.
    """

    rows: int
    density: ThriftyDensity
    candidates: Candidates
    metrics: dict[str, float]
    checkpoint: bytes
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trained:
    """The end of training.

    Attributes:
        posterior: The network.
        losses: Held-out losses by name.
        predictive: Draws of the posterior predictive at the observation, by the surrogate: arrays `beta` `(m,)`,
            `theta` `(m, n, d)` and `x` `(m, n, k)`; empty without an observation, or a surrogate of x itself.
        notices: What the user should know of this training.
    """

    posterior: TemperedPosterior
    losses: dict[str, float]
    predictive: dict[str, np.ndarray]
    notices: tuple[str, ...] = ()


class _Notices(logging.Handler):
    """Keeps the learner's warnings: an actor's own log is where nobody looks."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._texts.append(record.getMessage())

    def take(self) -> tuple[str, ...]:
        """Those since the last call, each once."""
        texts, self._texts = self._texts, []
        return tuple(dict.fromkeys(texts))


def learner_options(config: LearnerConfig, threads: int, device: str) -> LearnerOptions:
    """The learner's options of a configuration."""
    defaults = LearnerOptions()
    surrogate = SurrogateOptions(
        members=tuple(config.members),
        hidden=tuple(config.hidden),
        training=dataclasses.replace(defaults.surrogate.training, max_epochs=config.epochs),
        refine=dataclasses.replace(defaults.surrogate.refine, max_epochs=config.refine_epochs),
        update=dataclasses.replace(
            defaults.surrogate.update,
            max_epochs=config.update_epochs,
            planned_steps=STEPS_A_PASS * config.update_epochs,
        ),
    )
    return LearnerOptions(
        surrogate=surrogate,
        embedding=EmbeddingOptions(dim=config.embedding_dim, channels=config.embedding_channels),
        bank=config.bank,
        distillation=DistillationOptions(pairs=config.pairs, epochs=config.posterior_epochs),
        distillation_update=dataclasses.replace(
            defaults.distillation_update, pairs=max(1, round(_UPDATE_SHARE * config.pairs))
        ),
        threads=threads,
        device=device,
        compiled=config.compiled,
    )


# `progress` must answer while training runs: it has a thread of its own, all other calls keep their order.
@ray.remote(max_restarts=0, concurrency_groups={"progress": 1})  # type: ignore[call-overload]
class Trainer:
    """The trainer.

    Arguments:
        prior, beta_range, x_o, seed, names: As for `Learner`; the first row of `x_o` is the posterior's default.
        config: The learner's configuration.
        checkpoint: State of an earlier trainer to continue from, or None.
        parts: What of the learner is the user's own.
    """

    def __init__(
        self,
        prior: Distribution,
        beta_range: tuple[float, float],
        x_o: np.ndarray | None,
        config: LearnerConfig,
        seed: int,
        names: tuple[str, ...],
        checkpoint: bytes | None = None,
        parts: LearnerParts | None = None,
    ) -> None:
        # Ray shows all GPUs of the node to an actor that got none: they are for others.
        device = "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"
        self._threads = max(1, int(config.cpus))
        options = learner_options(config, self._threads, device)
        observation = None if x_o is None else torch.as_tensor(x_o)
        own = parts or LearnerParts()
        self.learner = Learner(
            prior,
            beta_range,
            observation,
            options,
            seed,
            names,
            source=config.source,
            distance=own.distance,
            embedding=own.embedding,
        )
        if checkpoint is not None:
            # One that does not fit any more only costs time.
            with contextlib.suppress(SavedModelError):
                restore_learner(self.learner, checkpoint)
        self._held: list[tuple[torch.Tensor, Simulations]] = []
        self._timed = torch.zeros(0, self.learner.whitening.dim + 1, dtype=torch.float64)
        self._progress: tuple[str, float] = _WAITING
        self._notices = _Notices()
        logging.getLogger("learners").addHandler(self._notices)
        self._node = NodeMetrics(gpus=device == "cuda")

    @ray.method(concurrency_group="progress")
    def progress(self) -> tuple[str, float]:
        """What is being trained now, and its latest held-out loss; NaN while nothing is."""
        return self._progress

    @ray.method(concurrency_group="progress")
    def system(self) -> tuple[str, dict[str, float]]:
        """The node that this runs on, and its load."""
        return ray.get_runtime_context().get_node_id(), self._node.sample()

    def add(
        self, ids: np.ndarray, theta: np.ndarray, x: np.ndarray, log_proposal: np.ndarray, seconds: np.ndarray
    ) -> None:
        """Adds finished simulations; failures are rows of NaN, as are times that nobody knows."""
        columns = (theta, x, log_proposal, seconds)
        theta_, x_, log_proposal_, seconds_ = (torch.tensor(values, dtype=torch.float64) for values in columns)
        self._held.append((torch.tensor(ids), Simulations(theta_, x_, log_proposal_)))
        self._timed = torch.cat([self._timed, torch.cat([theta_, seconds_[:, None]], dim=1)])[-_RUNTIMES:]

    def update(self, before: int, alone: bool = False) -> Snapshot:
        """A short training on the simulations with ids below `before` (see `orchestrator.start_order`).

        Arguments:
            before: See above.
            alone: No simulations run beside it: all cores that there are for it are free.

        Raises:
            DataError: Too few valid simulations.
        """
        self._learn_from(before)
        self._use_threads(None if alone else self._threads)
        rows = len(self.learner.material)
        surrogate_loss = self.learner.fit_surrogate(final=False, on_progress=self._report)
        posterior_loss = self.learner.fit_posterior(final=False, on_progress=self._report)
        density, candidates, ess, acceptance = self._look_ahead()
        self._progress = _WAITING
        metrics = {
            "surrogate_loss": surrogate_loss,
            "posterior_loss": posterior_loss,
            "epistemic": candidates.epistemic,
            "tempering_ess": ess,
            "tempering_acceptance": acceptance,
        }
        return Snapshot(rows, density, candidates, metrics, dump_learner(self.learner), self._notices.take())

    def finish(self, metadata: dict[str, Any]) -> Trained:
        """Trains to convergence, with all cores that there are for it."""
        self._learn_from(None)
        self._use_threads(None)
        surrogate_loss = self.learner.fit_surrogate(final=True, on_progress=self._report)
        posterior_loss = self.learner.fit_posterior(final=True, on_progress=self._report)
        posterior = self.learner.posterior(metadata)
        losses = {"surrogate_loss": surrogate_loss, "posterior_loss": posterior_loss}
        return Trained(posterior, losses, self._predictive(posterior), self._notices.take())

    def _predictive(self, posterior: TemperedPosterior) -> dict[str, np.ndarray]:
        if posterior.default_x is None or not self.learner.predicts:
            return {}
        betas = report_betas(posterior.beta_range)
        theta = [posterior.sample((_PREDICTIVE,), beta=b, seed=self.learner.seed + i) for i, b in enumerate(betas)]
        x = [self.learner.predict(draws) for draws in theta]
        return {"beta": np.array(betas), "theta": torch.stack(theta).numpy(), "x": torch.stack(x).numpy()}

    def _look_ahead(self) -> tuple[ThriftyDensity, Candidates, float, float]:
        assert self.learner.focus is not None
        assert self.learner.source is not None
        particles, z = self.learner.focus.particles, self.learner.focus.z
        whitening, device = self.learner.whitening, self.learner.device
        density: TemperedDensity | PriorDensity
        density = TemperedDensity.from_particles(particles, _CANDIDATES, self.learner.generator)
        u, beta, row = density.sample(_CANDIDATES, self.learner.generator)
        inside = whitening.log_prior_ratio(u) > -math.inf
        if inside.float().mean() < _LEAST_INSIDE:
            density = self._prior
            u, beta, row = density.sample(_CANDIDATES, self.learner.generator)
            inside = torch.ones(len(u), dtype=torch.bool)
        u, beta, row = u[inside], beta[inside], row[inside]
        runtime = Runtime.fit(whitening.to_u(self._timed[:, :-1]), self._timed[:, -1])
        with torch.no_grad():
            ell = self.learner.source.member_log_prob(u.to(device), z[row.to(device)])
            success = self.learner.source.log_valid(u.to(device)).exp()
        candidates = Candidates(u, beta.float(), ell.cpu(), success.cpu(), runtime.expected(u).float())
        # Where every x counts alike, simulations are wanted where the prior is.
        wanted = density if self.learner.x_o is not None else self._prior
        validity = copy.deepcopy(self.learner.source.validity)
        validity = None if validity is None else validity.cpu()
        thrifty = ThriftyDensity.of(wanted, runtime, validity, whitening, self.learner.generator)
        return thrifty, candidates, float(particles.ess.min()), float(particles.acceptance.mean())

    @property
    def _prior(self) -> PriorDensity:
        return PriorDensity(self.learner.prior, self.learner.whitening, self.learner.beta_range)

    def _learn_from(self, before: int | None) -> None:
        """Hands the learner what is held with an id below `before`, all for None."""
        held, self._held = self._held, []
        for ids, rows in held:
            chosen = torch.ones_like(ids, dtype=torch.bool) if before is None else ids < before
            if chosen.all():
                self.learner.add(rows)
                continue
            self.learner.add(rows.take(chosen))
            self._held.append((ids[~chosen], rows.take(~chosen)))

    def _use_threads(self, threads: int | None) -> None:
        self.learner.options = dataclasses.replace(self.learner.options, threads=threads or usable_cpus())

    def _report(self, phase: str, loss: float) -> None:
        self._progress = (phase, loss)
