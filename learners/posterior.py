r"""What users hold at the end: `q(theta | x, beta)` for any x and any temperature, in milliseconds.

.. math:: q(\theta \mid x, \beta) \approx p_\beta(\theta \mid x) \propto p(\theta)\, p(x \mid \theta)^\beta,
    \qquad \log q(\theta \mid x, \beta) = \log q(u \mid x, \beta) + \log |\partial u / \partial \theta|

(amortized generalized Bayes; Sun, Nicholls & Lee 2026, arXiv 2601.22367).
"""

from __future__ import annotations

__all__ = ["TemperedPosterior"]

import math
import warnings
from collections.abc import Sequence
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Size, Tensor

from simulators.errors import ObservationError

from .asking import check_beta, check_count, noise, pieces, unlike
from .familiarity import Familiarity
from .network import PosteriorNetwork
from .numbers import as_double, as_x
from .refining import Refiner
from .scaling import DataScaling
from .threads import bounded_threads
from .whitening import Whitening

if TYPE_CHECKING:
    from torch import nn
    from torch.distributions import Distribution

    from .cost import Distance
    from .embedding import Embedding
    from .known import LogLikelihood
    from .options import LearnerOptions
    from .saved_source import SavedSource
    from .source import Source


class TemperedPosterior:
    """Amortized tempered posterior.

    Build one with `TemperedPosterior.fit`, a campaign, or `TemperedPosterior.load`.

    Arguments:
        network: `q(u | x, beta)`.
        whitening: The bijection `theta -> u`.
        scaling: The bijection `x -> z`.
        familiarity: Judges whether an x is like those simulated.
        names: Names of the parameters.
        default_x: Observation used where none is given, `(k,)`.
        metadata: Facts to keep beside the weights (plain JSON values).
        embedding: What makes few numbers of scaled data, or None.
        source: What the network was distilled from, for `refine=True`; or None.
    """

    def __init__(
        self,
        network: PosteriorNetwork,
        whitening: Whitening,
        scaling: DataScaling,
        familiarity: Familiarity,
        names: Sequence[str] | None = None,
        default_x: Tensor | None = None,
        metadata: dict[str, Any] | None = None,
        embedding: Embedding | None = None,
        source: Source | SavedSource | None = None,
    ) -> None:
        self.network, self.whitening, self.scaling = network.eval(), whitening, scaling
        self.familiarity, self.embedding, self.source = familiarity, embedding, source
        self.names = tuple(names) if names else tuple(f"theta_{i}" for i in range(whitening.dim))
        self.metadata = dict(metadata or {})
        self.default_x: Tensor | None = None
        if default_x is not None:
            self.set_default_x(default_x)

    @property
    def beta_range(self) -> tuple[float, float]:
        """Lowest and highest temperature for which the network was trained."""
        return self.network.beta_range

    @cached_property
    def _refiner(self) -> Refiner:
        return Refiner.of(self.network, self.source, self.whitening)

    @property
    def dim_theta(self) -> int:
        return self.whitening.dim

    @property
    def dim_x(self) -> int:
        return self.scaling.dim

    @classmethod
    def fit(
        cls,
        theta: Any,
        x: Any,
        prior: Distribution,
        beta_range: tuple[float, float] = (0.1, 2.0),
        options: LearnerOptions | None = None,
        seed: int = 0,
        log_likelihood: LogLikelihood | None = None,
        source: str = "surrogate",
        distance: Distance | None = None,
        embedding: str | nn.Module | None = None,
        loss: LogLikelihood | None = None,
    ) -> TemperedPosterior:
        """Trains on simulations that exist already, drawn from the prior.

        Arguments:
            theta: `(n, d)`, draws of the prior: a tensor, an array or a frame of pandas, columns in the prior's order.
            x: `(n, k)`, their simulations; rows with NaN or infinite values count as failures.
            prior: `p(theta)`, `event_shape` `(d,)`.
            beta_range: Lowest and highest temperature.
            options: Sizes and training options.
            seed: Deterministic on the CPU.
            log_likelihood: `log p(x | theta)` of `theta` `(n, d)` and `x` `(n, k)`, row by row, `(n,)`, where it is
                known. The simulations then only say which x there are: theta and x are not taken for draws of the
                posterior. It is called from several threads.
            source: What is learned where it is not known: "surrogate", a density of x; "ratio", of the densities of x
                given theta and of x; "cost", the mean distance of simulations from x, in place of minus the
                log-likelihood.
            distance: `d(x, x_o)` for the cost: rows `(n, k)` of simulations and `(n, k)` of observations -> `(n,)`.
            embedding: What makes few numbers of many: "mlp"; "conv1d", for series; or a module of your own, which is
                called on scaled x `(n, k)` and gives `(n, m)`. Sizes are in `LearnerOptions.embedding`.
            loss: Like `log_likelihood`, with the other sign, for a generalized posterior.

        Raises:
            PriorError, DataError, TemperatureError: With the remedy.
        """
        from .learner import Learner

        learner = Learner(
            prior,
            beta_range,
            options=options,
            seed=seed,
            log_likelihood=log_likelihood,
            source=source,
            distance=distance,
            embedding=embedding,
            loss=loss,
        )
        learner.add_prior_draws(theta, x)
        learner.fit_surrogate()
        learner.fit_posterior()
        return learner.posterior()

    @torch.no_grad()
    def sample(
        self,
        sample_shape: Size | tuple[int, ...] = Size(),
        x: Any = None,
        beta: float = 1.0,
        seed: int | None = None,
        show_progress_bars: bool = False,
        refine: bool = False,
    ) -> Tensor:
        """Draws of `q(theta | x, beta)`, shape `sample_shape + (d,)`, float32.

        Arguments:
            sample_shape: Shape of the draws, such as `(1000,)`.
            x: Observation `(k,)` or `(1, k)`; the default observation if None.
            beta: Temperature within `beta_range`.
            seed: Makes the draws repeatable.
            show_progress_bars: For `sbi`, which passes it; milliseconds need no bar.
            refine: Correct the draws by what the network was distilled from (`learners/refining.py`): about a second
                in place of milliseconds, without the error of the network.

        Raises:
            TemperatureError: `beta` outside the trained range.
            ObservationError: No x, or one of another shape, or not finite.
            RefinementError: There is nothing to refine with, or no theta was found that can have made x.
        """
        return self._draw(Size(sample_shape), x, self._one(x), beta, seed, refine)

    @torch.no_grad()
    def sample_batched(
        self,
        sample_shape: Size | tuple[int, ...],
        x: Any,
        beta: float = 1.0,
        seed: int | None = None,
        show_progress_bars: bool = False,
        refine: bool = False,
    ) -> Tensor:
        """Draws for many observations `x` `(b, k)`, shape `sample_shape + (b, d)`, float32; else as `sample`."""
        return self._draw(Size(sample_shape), x, torch.atleast_2d(self._scaled(x)), beta, seed, refine)

    @torch.no_grad()
    def efficiency(self, x: Any = None, beta: float = 1.0, num_draws: int = 1000, seed: int | None = 0) -> float:
        r"""How well the network agrees at `x` `(k,)` and `beta` with what it was distilled from: 0 to 1, which is best.

        The effective share of draws of the network, weighted to `p(theta) e^{beta l(theta, x)}`,

        .. math:: \Big(\sum_i w_i\Big)^2 \Big/ n \sum_i w_i^2

        (Kong 1992; Dax et al. 2023, arXiv 2210.05686); zero where no draw can have made x. Where it is small, use
        `refine=True`. It knows nothing of the source's own error.

        Raises:
            TemperatureError, ObservationError, RefinementError: As `sample`.
        """
        check_count("num_draws", num_draws)
        z = self._one(x)[None]
        return float(self._refiner.efficiency(num_draws, z, self._seen(x, z), self._beta(beta, Size([1])), seed))

    @torch.no_grad()
    def log_prob(self, theta: Any, x: Any = None, beta: float = 1.0) -> Tensor:
        """`log q(theta | x, beta)` for `theta` `(n, d)`, shape `(n,)`; minus infinity outside the prior and for NaN.

        Where the prior is a class of your own or a mixture, a posterior that was loaded knows only the box around its
        support. `x` is one observation `(k,)`, or one for each theta, `(n, k)`.

        Raises:
            TemperatureError, ObservationError: As `sample`.
        """
        z = self._scaled(x)
        theta = torch.atleast_2d(as_double(theta, "theta", ObservationError))
        if theta.shape[-1] != self.dim_theta:
            raise ObservationError(
                f"expected theta of shape (n, {self.dim_theta}) for {', '.join(self.names)}, got {tuple(theta.shape)}"
            )
        if z.ndim > 1 and z.shape[0] not in (1, len(theta)):
            raise ObservationError(
                f"log_prob takes one observation of shape ({self.dim_x},), or one for each of the {len(theta)} theta, "
                f"got {tuple(z.shape)}"
            )
        beta = check_beta(beta, self.beta_range)
        return self._log_prob(theta, self.network.told(z), beta) if len(theta) else torch.zeros(0, dtype=torch.float32)

    def _log_prob(self, theta: Tensor, told: Tensor, beta: float) -> Tensor:
        # NaN is in no support either; distributions of torch refuse it where they would find infinity outside.
        theta = torch.where(theta.isnan(), math.inf, theta)
        inside = self.whitening.in_support(theta)
        u = self.whitening.to_u(theta).float().nan_to_num(0.0)
        log_q = self.network.given(told, self._beta(beta, told.shape[:-1])).log_prob(u)
        result = log_q.double() + self.whitening.log_abs_det(theta)
        return torch.where(inside, result, -math.inf).float()

    @torch.no_grad()
    def map(self, x: Any = None, beta: float = 1.0, num_starts: int = 1000, seed: int | None = 0) -> Tensor:
        """The theta `(d,)` of highest density `q(theta | x, beta)`, float32, climbed to from the best of some draws.

        The density is that of theta, not of the whitened parameters; where it has several modes, the highest that
        the best draw leads to. Where it grows without bound towards a bound of the prior, the nearest number to it.

        Raises:
            TemperatureError, ObservationError: As `sample`.
        """
        from .mode import highest

        check_count("num_starts", num_starts)
        draws = self.sample((num_starts,), x=x, beta=beta, seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that x is far from all simulations was said once
            told = self.network.told(self._one(x))
        # A copy in double precision: rounding would end the climb early where the posterior is narrow in a direction.
        network = deepcopy(self.network).double().given(told.double(), self._beta(beta, told.shape[:-1]))
        return highest(lambda theta: self._log_prob(theta, told, beta), network.log_prob, draws, self.whitening)

    def to_inference_data(
        self, num_draws: int = 1000, x: Any = None, beta: float = 1.0, seed: int | None = None
    ) -> Any:
        """Draws as ArviZ holds them: one chain, one variable a parameter.

        Raises:
            ImportError: ArviZ is not installed (the extra `arviz`).
            TemperatureError, ObservationError: As `sample`.
        """
        import arviz

        draws = self.sample((num_draws,), x=x, beta=beta, seed=seed).numpy()
        return arviz.from_dict(posterior={name: draws[None, :, i] for i, name in enumerate(self.names)})

    def set_default_x(self, x: Any) -> TemperedPosterior:
        """Sets the observation `(k,)` that is used where none is given; returns self."""
        self.default_x = as_x(x, self.dim_x, one=True).clone()
        return self

    def save(self, directory: str | Path) -> Path:
        """Writes `posterior.safetensors` and `posterior.json` into `directory`; returns it."""
        from .saving import save_posterior

        return save_posterior(self, Path(directory))

    @classmethod
    def load(cls, source: str | Path, embedding: nn.Module | None = None) -> TemperedPosterior:
        """Reads what `save` wrote, the posterior of a campaign's run directory, or one of MLflow's registry.

        Arguments:
            source: A folder, or `"models:/NAME/VERSION"` or `"models:/NAME@ALIAS"`.
            embedding: Your own module, if it was trained with one: weights are saved, code is not.

        Raises:
            SavedModelError: Nothing there, damaged, written by a newer version, or trained with another module.
        """
        from .saving import load_posterior

        return load_posterior(source, embedding)

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """What the network sees of `x` `(*, k)`: scaled, and embedded where there is an embedding; `(*, m)`."""
        z = self.scaling(x)
        return z if self.embedding is None else self.embedding(z)

    def _draw(self, shape: Size, x: Any, z: Tensor, beta: float, seed: int | None, refine: bool) -> Tensor:
        rows = z.shape[:-1]
        if refine and rows.numel():
            betas, z = self._beta(beta, Size([rows.numel()])), z.reshape(rows.numel(), -1)
            u = self._refiner.draw(shape.numel(), z, self._seen(x, z), betas, seed)
            return self.whitening.to_single(u).reshape(*shape, *rows, self.dim_theta)
        # A generator of its own: others may draw at the same time. Without a seed, `torch.manual_seed` decides.
        generator = None if seed is None else noise(seed)
        draws = []
        # Products this small are ten times slower with threads that wait for one another.
        with torch.inference_mode(), bounded_threads(1):
            transform = self.network(z, self._beta(beta, rows)).transform
            for n in pieces(shape.numel(), rows.numel()):
                size = (n, *rows, self.dim_theta)
                if generator is None:
                    normal = torch.randn(size, dtype=torch.float32, device="cpu")
                else:
                    normal = torch.from_numpy(generator.standard_normal(size, dtype=np.float32))
                draws.append(self.whitening.to_single(transform.inv(normal)))
        return torch.cat(draws).reshape(*shape, *rows, self.dim_theta)

    def _beta(self, beta: float, shape: Size) -> Tensor:
        return torch.full(shape, check_beta(beta, self.beta_range), dtype=torch.float32, device="cpu")

    def _seen(self, x: Any, z: Tensor) -> Tensor:
        """What the source sees of x, whose features are `z` `(m, k)`: those, or x itself."""
        if not self._refiner.source.sees_x:
            return z
        return as_x(self.default_x if x is None else x, self.dim_x).reshape(len(z), -1)

    def _scaled(self, x: Any, stacklevel: int = 4) -> Tensor:
        if x is None:
            if self.default_x is None:
                raise ObservationError("no observation: pass x=..., or set one with set_default_x")
            x = self.default_x
        z = self.features(as_x(x, self.dim_x))
        warning = unlike(self.familiarity.p_value(torch.atleast_2d(z)).numpy())
        if warning is not None:
            warnings.warn(warning, stacklevel=stacklevel)  # this, the public method, its no_grad, the caller
        return z

    def _one(self, x: Any) -> Tensor:
        """The features `(m,)` of a single observation; as a row of its own, too, as `sbi` has it."""
        z = self._scaled(x, stacklevel=5)
        if z.ndim > 1 and z.shape[:-1].numel() == 1:
            z = z.reshape(-1)
        if z.ndim != 1:
            raise ObservationError(
                f"expected one observation of shape ({self.dim_x},), got {tuple(z.shape)}; of the methods that draw, "
                "sample_batched takes many"
            )
        return z
