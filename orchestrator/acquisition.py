r"""Choosing (theta, beta): which simulations remove most of what the surrogate does not know, for their cost.

The members `e` of the surrogate, and of committees their networks, disagree by `s(u) = sd_e log p_e(x | u)`; the
tempered posterior at beta is uncertain by `beta s(u)`. A candidate is worth the integrated variance that it removes
from the tempered posteriors that the user will ask for, times the probability that it succeeds, divided by the time
that it takes,

.. math:: \alpha(u') = \frac{p(\mathrm{valid} \mid u')}{\mathbb E[t \mid u']} \int
    \mathbb E_\beta\!\left[p_\beta(u \mid x)\, \beta^2\right] s(u)^2\,
    \left(\operatorname{Var}[g(u) \mid \text{pending}] - \operatorname{Var}[g(u) \mid u', \text{pending}]\right) du,

where `log p_e - mean_e log p_e = s g_e`, with `g` a Gaussian process whose length scales are fitted to the deviations
of all members together. The integral is a mean over `mc_points` drawn from the weighted tempered posteriors; everything
that the surrogate has not seen yet is `X_pending`.
"""

from __future__ import annotations

__all__ = ["Acquisition", "Candidates", "IntegratedVariance", "LargestVariance", "RemovedVariance"]

import logging
import math
import warnings
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from botorch.acquisition.acquisition import AcquisitionFunction
from botorch.exceptions.errors import ModelFittingError
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
from botorch.optim.closures import get_loss_closure_with_grads
from botorch.optim.utils import get_parameters
from botorch.utils.transforms import t_batch_mode_transform
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

logger = logging.getLogger(__name__)

_FIT_POINTS = 128
_MC_POINTS = 256
_CHOICES = 256
_MAX_PENDING = 512
_NOISE = 1e-2


@dataclass(frozen=True)
class Candidates:
    """Draws of the tempered posteriors of interest, and what the surrogate knows about them.

    Attributes:
        u: Whitened parameters, `(n, d)`.
        beta: The temperature that each serves, `(n,)`.
        log_likelihood: `log p_e(x | u)` of every member, `(e, n)`.
        success: `p(valid | u)`, `(n,)`.
        seconds: Expected time of a simulation, `(n,)`.
    """

    u: Tensor
    beta: Tensor
    log_likelihood: Tensor
    success: Tensor
    seconds: Tensor

    @property
    def disagreement(self) -> Tensor:
        """`s(u)`, in nats, `(n,)`; large values are tempered, since a member may be absurd in a tail."""
        if len(self.log_likelihood) < 2:
            return torch.ones(len(self.u))
        spread = self.log_likelihood.std(dim=0).nan_to_num(0.0)
        return spread.clamp(max=float(spread.quantile(0.95)) + 1e-6)

    @property
    def information(self) -> Tensor:
        """`beta^2 s(u)^2`, `(n,)`: what there is to learn at each candidate."""
        return (self.beta * self.disagreement).square()

    @property
    def worth(self) -> Tensor:
        """What a simulation yields for its cost: `p(valid | u) / E[t | u]`, 1 on average, `(n,)`."""
        value = self.success / self.seconds
        return value / value.mean()

    @property
    def epistemic(self) -> float:
        """Root mean square of `beta s(u)`, in nats: how far the log of the tempered posteriors is not known.

        NaN where a single member has nobody to disagree with.
        """
        return float(self.information.mean().sqrt()) if len(self.log_likelihood) > 1 else math.nan


class Acquisition(Protocol):
    """How the candidates to simulate are chosen; `acquisition.method: file.py:Name` names a user's class."""

    def choose(self, candidates: Candidates, n: int, pending: Tensor, generator: torch.Generator) -> Tensor:
        """Rows of `n` candidates, `(n,)`, no row twice.

        Arguments:
            candidates: What there is to choose from; their draws follow the tempered posteriors.
            n: How many, at most as many as there are.
            pending: Whitened parameters `(m, d)` with a result since the surrogate was fitted, then those in flight.
            generator: Source of randomness.
        """
        ...


class RemovedVariance(AcquisitionFunction):
    r"""What observing `X` removes of the integrated variance of a Gaussian process that awaits `X_pending`.

    Up to a constant the same as BoTorch's `qNegIntegratedPosteriorVariance` for q = 1 (Seo et al. 2000), which
    conditions a copy of the model on `X_pending` for every candidate anew. Here this is done once for each set of
    pending points, and a candidate costs one column,

    .. math:: w' \, \frac1m \sum_j \frac{c(u_j, u')^2}{v(u') + \sigma^2}.

    The last column of `X` is `log w'`, the logarithm of what the candidate is worth by itself.

    Arguments:
        model: A `SingleTaskGP`; only its kernel and its noise are used: the process has seen no data.
        mc_points: Where the variance is integrated, `(m, d)`.
        noise: `sigma^2` of a simulation.
        X_pending: `(p, d + 1)` or None; its last column does not matter.
    """

    def __init__(self, model: SingleTaskGP, mc_points: Tensor, noise: float, X_pending: Tensor | None = None) -> None:
        super().__init__(model)
        self.kernel, self.noise, self.mc_points = model.covar_module, noise, mc_points
        self.set_X_pending(X_pending)

    @torch.no_grad()
    def set_X_pending(self, X_pending: Tensor | None = None) -> None:  # noqa: N802 (BoTorch's name)
        """Conditions on pending points; the variance does not depend on what they will show."""
        self.X_pending = X_pending  # type: ignore[assignment]
        self._waiting = None if X_pending is None or not len(X_pending) else X_pending[:, :-1]
        self._factor: Tensor | None = None
        self._mc_half: Tensor | None = None
        if self._waiting is not None:
            gram = self._covariance(self._waiting, self._waiting)
            eye = torch.eye(len(gram), dtype=gram.dtype)
            self._factor = torch.linalg.cholesky(gram + self.noise * eye)
            self._mc_half = self._half(self.mc_points)

    @t_batch_mode_transform(expected_q=1)  # type: ignore[arg-type]
    def forward(self, X: Tensor) -> Tensor:
        """`X` `(b, 1, d + 1)` -> `(b,)`."""
        points, worth = X.squeeze(-2)[:, :-1], X.squeeze(-2)[:, -1].exp()
        covariance, variance = self._covariance(self.mc_points, points), self._diagonal(points)
        if self._factor is not None and self._mc_half is not None:
            half = self._half(points)
            covariance = covariance - self._mc_half.mT @ half
            variance = variance - half.square().sum(dim=0)
        removed = covariance.square() / (variance.clamp(min=0.0) + self.noise)
        value: Tensor = worth * removed.mean(dim=0)
        return value

    def _covariance(self, a: Tensor, b: Tensor) -> Tensor:
        return self.kernel(a, b).to_dense()

    def _diagonal(self, a: Tensor) -> Tensor:
        return self.kernel(a, diag=True)

    def _half(self, points: Tensor) -> Tensor:
        assert self._factor is not None and self._waiting is not None
        return torch.linalg.solve_triangular(self._factor, self._covariance(self._waiting, points), upper=False)


class IntegratedVariance:
    """The `Acquisition` of the module's formula: greedily, one after the other.

    Attributes:
        unfitted: How often the Gaussian process did not fit, and its default scales were used.
    """

    def __init__(self) -> None:
        self.unfitted = 0

    def choose(self, candidates: Candidates, n: int, pending: Tensor, generator: torch.Generator) -> Tensor:
        """See `Acquisition`."""
        weight = candidates.information.double() + 1e-12
        rows = torch.multinomial(weight, _MC_POINTS, replacement=True, generator=generator)
        mc_points = candidates.u[rows].double()
        worth = candidates.worth.double()
        # Enough to choose from: were nearly all of them chosen, their cost would have counted twice.
        size = min(max(_CHOICES, 4 * n), len(weight))
        pool = torch.multinomial(weight * worth, size, generator=generator)
        choices = torch.cat([candidates.u[pool].double(), worth[pool].log()[:, None]], dim=1)
        recent = pending[-_MAX_PENDING:].double()
        recent = torch.cat([recent, recent.new_zeros(len(recent), 1)], dim=1)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            model, fitted = _disagreement_model(candidates, generator)
            self.unfitted += not fitted
            acquisition = RemovedVariance(model, mc_points, _NOISE, recent)
            taken: list[int] = []
            # As BoTorch's optimize_acqf_discrete, which gives points: of two that coincide nobody knows the row.
            for _ in range(n):
                value = acquisition(choices[:, None])
                value[taken] = -torch.inf
                taken.append(int(value.argmax()))
                acquisition.set_X_pending(torch.cat([recent, choices[taken]]))
        return pool[taken]


class LargestVariance:
    """The `Acquisition` that takes the candidates of the largest variance for their cost, each by itself."""

    def choose(self, candidates: Candidates, n: int, pending: Tensor, generator: torch.Generator) -> Tensor:
        """See `Acquisition`."""
        return (candidates.information * candidates.worth).topk(n).indices


class _OneKernel(ExactMarginalLogLikelihood):  # type: ignore[misc]
    """The marginal likelihood of independent outputs that share a kernel, whose prior counts once."""

    def _add_other_terms(self, res: Tensor, params: Any) -> Tensor:
        total: Tensor = super()._add_other_terms(res.sum(), params)
        return total


def _disagreement_model(candidates: Candidates, generator: torch.Generator) -> tuple[SingleTaskGP, bool]:
    """A Gaussian process over `u` with the length scales of the members' standardized deviations; whether it fitted.

    Each member's deviations are an output with a mean and a noise of its own; the kernel is one for all.
    """
    ell = candidates.log_likelihood
    rows = torch.randperm(len(candidates.u), generator=generator)[:_FIT_POINTS]
    u = candidates.u[rows].double()
    deviation = ((ell - ell.mean(dim=0)) / candidates.disagreement.clamp(min=1e-6))[:, rows].double()
    deviation = deviation.nan_to_num(0.0).clamp(-3.0, 3.0).mT
    # Without a batch shape, where that of BoTorch would have length scales for every output.
    kernel = get_covar_module_with_dim_scaled_prior(ard_num_dims=u.shape[1]).to(u)
    model = SingleTaskGP(u, deviation, covar_module=kernel, outcome_transform=None)
    try:
        with torch.enable_grad():
            evidence = _OneKernel(model.likelihood, model)
            # Without a closure of ours BoTorch would fit each output by itself.
            closure = get_loss_closure_with_grads(evidence, get_parameters(evidence, requires_grad=True))
            fit_gpytorch_mll(evidence, closure=closure, optimizer_kwargs={"options": {"maxiter": 50}})
    except (ModelFittingError, RuntimeError) as error:
        logger.warning("the acquisition's Gaussian process did not fit (%s): its default scales are used", error)
        return model.eval(), False
    return model.eval(), True
