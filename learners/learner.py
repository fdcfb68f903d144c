"""The learner: simulations in, a tempered posterior out, at any time and as often as wanted.

Three steps (docs/method.md): a source of what beta multiplies, such as a surrogate of the likelihood; tempering by
sequential Monte Carlo; distillation into one network. Each continues from where it stood when more simulations arrive.
Data of many numbers are embedded first.
"""

from __future__ import annotations

__all__ = ["MIN_SIMULATIONS", "Learner"]

import copy
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from simulators.errors import DataError, ObservationError, TemperatureError

from .asking import check_count
from .cost import Distance
from .distillation import distill
from .familiarity import Familiarity
from .features import Features
from .guide import Guide
from .known import LogLikelihood
from .material import Material
from .network import PosteriorNetwork
from .numbers import as_double, as_x
from .options import LearnerOptions
from .pairs import ParticleBank
from .posterior import TemperedPosterior
from .rows import RowView, evenly
from .simulations import Simulations
from .source import OnEpoch, Source, TrainingRows
from .source_choice import SourceChoice
from .surroundings import as_usual
from .teaching import Teaching
from .threads import Threads, bounded_threads
from .whitening_choice import whiten

#: Valid simulations below which nothing is trained.
MIN_SIMULATIONS = 50

#: A last fit begins anew if there are so many times as many simulations as when the source was new.
_GROWN = 1.5

#: Simulations that say whether an observation is like them.
_FAMILIAR = 100_000

OnProgress = Callable[[str, float], None]


class Learner:
    """Learns `p(theta) p(x | theta)^beta` from simulations.

    Arguments:
        prior: `p(theta)`, `event_shape` `(d,)`.
        beta_range: Lowest and highest temperature.
        x_o: Observations `(m, k)` or `(k,)` of a targeted campaign, the first of which becomes the posterior's
            default; None for an amortized one.
        options: See `LearnerOptions`.
        seed: Deterministic on the CPU.
        names: Names of the parameters.
        log_likelihood: `log p(x | theta)`, where it is known: then nothing is learned of it.
        source: What is learned: "surrogate" (a density of x), "ratio" (of densities) or "cost" (a mean distance).
        distance: `d(x, x_o)` of the cost, rows `(n, k)` and `(n, k)` -> `(n,)`.
        embedding: What makes few numbers of many: "mlp", "conv1d", a module `(n, k) -> (n, m)`, or None.
        loss: `L(theta, x)` of a generalized posterior: like `log_likelihood`, with the other sign.

    Raises:
        PriorError: The prior cannot be used.
        DataError: The source, or what it needs, cannot be used.
        ConfigError: Nothing can be trained on the device of the options.
        TemperatureError: Not `0 < low <= high`.
        ObservationError: The observation is not finite.
    """

    def __init__(
        self,
        prior: Distribution,
        beta_range: tuple[float, float],
        x_o: Tensor | None = None,
        options: LearnerOptions | None = None,
        seed: int = 0,
        names: Sequence[str] | None = None,
        log_likelihood: LogLikelihood | None = None,
        source: str = "surrogate",
        distance: Distance | None = None,
        embedding: str | nn.Module | None = None,
        loss: LogLikelihood | None = None,
    ) -> None:
        low, high = (float(b) for b in beta_range)
        if not 0 < low <= high < float("inf"):
            raise TemperatureError(f"expected temperatures with 0 < low <= high, got low={low:g}, high={high:g}")
        self.options = options or LearnerOptions()
        self.prior, self.beta_range, self.seed = prior, (low, high), operator.index(seed)
        self.whitening = whiten(prior)
        self.names = tuple(names) if names else tuple(getattr(prior, "names", ()))
        self.x_o = None if x_o is None else torch.atleast_2d(as_double(x_o, "the observation", ObservationError))
        if self.x_o is not None and not self.x_o.isfinite().all():
            bad = int((~self.x_o.isfinite()).sum())
            raise ObservationError(f"the observation has {bad} NaN or infinite values; every number must be finite")
        self.device = self.options.torch_device()
        self.generator = torch.Generator().manual_seed(self.seed)
        scores, embeds = self.options.surrogate.held_out, 0.0 if embedding is None else self.options.embedding.share
        self.material = Material(prior, self.whitening, self.x_o, scores, embeds, self.generator, self.device)
        self.features = Features(embedding, self.options.embedding, self.device)
        self.choice = SourceChoice(source, distance, log_likelihood, loss)
        if embedding is not None and self.choice.known is not None:
            raise DataError("a log_likelihood or loss compares theta with x itself: leave the embedding out")
        self.source: Source | None = None
        #: Valid simulations that the source began with; unknown counts as none.
        self.begun = 0
        self.network: PosteriorNetwork | None = None
        #: Tempered particles of the observation (of simulated x if there is none), as of the last fit_posterior.
        self.focus: ParticleBank | None = None

    def add(self, simulations: Simulations) -> None:
        """Adds simulations to those that are learned from.

        Raises:
            DataError: Wrong shapes, or theta outside the prior's support.
            ObservationError: The observation has another length than the simulations.
        """
        self.material.add(simulations)

    def add_prior_draws(self, theta: Any, x: Any) -> None:
        """Adds simulations `x` `(n, ...)` of draws `theta` `(n, d)` of the prior.

        Raises:
            DataError, ObservationError: As `add`.
        """
        self.material.add(Simulations.from_tensors(theta, x), of_prior=True)

    @as_usual()
    def fit_surrogate(self, final: bool = True, on_progress: OnProgress | None = None) -> float:
        """Fits the source to all simulations so far; returns its held-out loss (of a surrogate in nats).

        Where the likelihood is known there is nothing to fit, and the loss is NaN. An embedding is learned by the first
        fit and, with all that has come since, anew by a final one: then all that saw the old one begins anew too. So
        does a source at a final fit, if most of its simulations came later: networks that began with few never become
        as good as those that see all from the start (Ash & Adams 2020, arXiv 1910.08475).

        Arguments:
            final: Train to convergence; else a shorter update from where the source stands.
            on_progress: Called with "embedding" or "surrogate" and the held-out loss after each epoch.

        Raises:
            DataError: Fewer than 50 valid simulations.
        """
        features, options, material = self.features, self.options.surrogate, self.material
        if material.num_valid < MIN_SIMULATIONS:
            raise DataError(
                f"at least {MIN_SIMULATIONS} valid simulations are needed to train, but there are "
                f"{material.num_valid} (of {len(material)}); run more, or find out why they fail"
            )
        features.fit_scaling(material.data.x, material.valid)
        with bounded_threads(self.options.threads):
            if features.kind is not None and (features.embedding is None or final):
                self._learn_embedding(_named("embedding", on_progress))
            if self.source is None or (final and material.num_valid >= _GROWN * self.begun):
                self.source, self.begun = self.new_source(), material.num_valid
            rows = self._rows()
            training = options.training if not self.source.fitted else options.refine if final else options.update
            training = replace(training, compiled=training.compiled or self.options.compiled)
            threads = self.options.threads or torch.get_num_threads()
            return self.source.fit(rows, training, self.generator, _named("surrogate", on_progress), threads)

    def _learn_embedding(self, on_epoch: OnEpoch | None) -> None:
        """Learns the embedding, from what is kept for it; what saw another one begins anew."""
        material, rows = self.material, self.material.for_embedding
        u, log_weight, held_out = material.u(rows), material.log_weight(rows), material.held_out[rows]
        self.features.learn(u, material.data.x, rows, log_weight, held_out, self.generator, on_epoch)
        self.source = self.network = None

    def _rows(self) -> TrainingRows:
        """What the source learns from."""
        material, features = self.material, self.features
        data, unshown, valid = material.data, material.unshown, material.kept
        lattice = features.lattice(data.x, valid)
        z, x = features.of(data.x, valid, lattice, self.generator), RowView(data.x, valid)
        z_o = None if self.x_o is None else features(self.x_o)
        flags = (data.valid[unshown].to(self.device), material.held_out[unshown].to(self.device))
        cells = lattice if features.kind is None else None  # those of x are none of an embedding's
        return TrainingRows(material.u(unshown), *flags, z, x, z_o, self.x_o, cells, material.worth(valid))

    def new_source(self) -> Source:
        """A source for the features as they are, not fitted yet."""
        options = self.options.surrogate
        return self.choice.build(self.whitening, self.features.dim, options, self.seed).to(self.device)

    @as_usual()
    def fit_posterior(self, final: bool = True, on_progress: OnProgress | None = None) -> float:
        """Distills the network from the current source; returns its held-out loss in nats.

        A final one begins anew with a guide to the source as it is, if the source draws x and the guide is of use.

        Arguments:
            final: As for `fit_surrogate`.
            on_progress: Called with "guide" and the loss of its last step after each tenth of its training, then with
                "posterior" and the held-out loss after each pass.
        """
        options = self.options.distillation if final else self.options.distillation_update
        options = replace(options, compiled=options.compiled or self.options.compiled)
        with bounded_threads(self.options.threads), self._threads() as threads:
            teaching = self._teaching(threads)
            guide = teaching.guide(_named("guide", on_progress)) if final else None
            banks = teaching.banks(final, guide)
            self.focus = banks[0]
            if final and guide is None and teaching.source.draws_x:
                options = options.without_guide()
            if guide is not None or self.network is None or (final and self.network.guide is not None):
                self.network = self._new_network(guide)
            joint, on_epoch = teaching.joint_pairs(options), _named("posterior", on_progress)
            target = teaching.target()
            return distill(self.network, banks, joint, target, options, self.generator, on_epoch, threads)

    def _new_network(self, guide: Guide | None = None) -> PosteriorNetwork:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + 1)
            sizes = self.whitening.dim, self.features.dim
            return PosteriorNetwork(*sizes, self.beta_range, self.options.network, guide).to(self.device)

    @as_usual()
    def walk(self, x: Any, beta: float, n: int) -> Tensor:
        """`n` draws `(n, d)` of `p_beta(theta | x)` by the sampler on the source itself.

        Slow, and anew for each `x` `(k,)` and beta, but free of the error of amortizing.

        Raises:
            ObservationError: Not one x of finite numbers, as many as simulations have.
            TemperatureError: Not `0 < beta < inf`.
            ConfigError: n below zero.
        """
        if not 0 < beta < math.inf:
            raise TemperatureError(f"expected a temperature with 0 < beta < inf, got {beta:g}")
        check_count("n", n, least=0)
        x = as_x(x, self.features.known_scaling.dim, one=True)[None]
        z = self.features(x)
        seen = x if self._fitted().sees_x else z
        guide = None if self.network is None else self.network.guide
        places = None if guide is None else guide.places(z)
        with self._threads() as threads:
            return self.whitening.to_single(self._teaching(threads).walk(seen, beta, n, places).cpu())

    @property
    def predicts(self) -> bool:
        """Whether `predict` draws x: only a density of x itself can."""
        return self.features.kind is None and self._fitted().draws_x

    @as_usual()
    @torch.no_grad()
    def predict(self, theta: Tensor) -> Tensor:
        """One draw of `x` `(n, k)` for each `theta` `(n, d)` by the surrogate: free of simulations.

        Counts come spread over their cells (a 3 as a number between 2.5 and 3.5).
        """
        assert self.predicts, "only a surrogate of x itself predicts; simulate instead"
        u = self.whitening.to_u(theta).float().to(self.device)
        return self.features.known_scaling.inverse(self._fitted().sample(u, self.generator).cpu())

    @as_usual()
    def posterior(self, metadata: dict[str, Any] | None = None) -> TemperedPosterior:
        """The posterior as it stands; a copy that further training leaves alone."""
        assert self.network is not None, "fit_posterior comes first"
        network = PosteriorNetwork.from_dict(self.network.as_dict())
        network.load_state_dict(self.network.state_dict())
        familiarity = Familiarity.fit(self.features.of(self.material.data.x, evenly(self.material.kept, _FAMILIAR)))
        default_x = None if self.x_o is None else self.x_o[0]
        scaling, embedding = self.features.known_scaling, copy.deepcopy(self.features.embedding)
        embedding = None if embedding is None else embedding.cpu()
        return TemperedPosterior(
            network,
            self.whitening,
            scaling,
            familiarity,
            self.names,
            default_x,
            metadata,
            embedding,
            self._fitted().frozen(),
        )

    def _threads(self) -> Threads:
        """Those of the CPU; a GPU is asked by one."""
        on_cpu = self.device.type == "cpu"
        return Threads((self.options.threads or torch.get_num_threads()) if on_cpu else 1)

    def _teaching(self, threads: Threads | None = None) -> Teaching:
        material, source = self.material, self._fitted()
        data, rows = material.data, material.kept
        return Teaching(
            self.prior,
            self.whitening,
            source,
            material.u(rows),
            self.features.of(data.x, rows),
            material.log_weight(rows).where(~material.held_out[rows], float("nan")),
            None if self.x_o is None else self.features(self.x_o),
            self.beta_range,
            self.options,
            self.generator,
            RowView(data.x, rows) if source.sees_x else None,
            self.x_o if source.sees_x else None,
            threads or Threads(1),
        )

    def _fitted(self) -> Source:
        assert self.source is not None, "fit_surrogate comes first"
        return self.source


def _named(phase: str, on_progress: OnProgress | None) -> OnEpoch | None:
    return None if on_progress is None else lambda epoch, loss: on_progress(phase, loss)
