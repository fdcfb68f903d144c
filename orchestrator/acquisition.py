r"""Choosing (theta, beta): which simulations remove most of what the surrogate does not know.

The members `e` of the surrogate disagree by `s(u) = sd_e log p_e(x | u)`; the tempered posterior at beta is uncertain
by `beta s(u)`. A candidate is worth the integrated variance that it removes from the tempered posteriors that the user
will ask for,

.. math:: \alpha(u') = -\int \mathbb E_\beta\!\left[p_\beta(u \mid x)\, \beta^2\right] s(u)^2\,
    \operatorname{Var}[g(u) \mid u', \text{pending}]\, du, \qquad \log p_e - \overline{\log p} = s \cdot g_e,

with `g` a Gaussian process whose length scales are fitted to the members' deviations. The integral is a mean over
`mc_points` drawn from the weighted tempered posteriors; everything that the surrogate has not seen yet is `X_pending`.
"""

from __future__ import annotations

__all__ = ["Candidates", "NegIntegratedVariance", "choose"]

import logging
import warnings
from dataclasses import dataclass

import torch
from botorch.acquisition.acquisition import AcquisitionFunction
from botorch.exceptions.errors import ModelFittingError
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.optim.optimize import optimize_acqf_discrete
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
    """

    u: Tensor
    beta: Tensor
    log_likelihood: Tensor

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


class NegIntegratedVariance(AcquisitionFunction):
    r"""The negative integrated posterior variance of a Gaussian process after observing `X` and `X_pending`.

    The same quantity as BoTorch's `qNegIntegratedPosteriorVariance` for q = 1 (Seo et al. 2000), which conditions a
    copy of the model on `X_pending` for every candidate anew. Here this is done once for each set of pending
    points, and a candidate costs one column,

    .. math:: -\frac1m \sum_j \left[ v(u_j) - \frac{c(u_j, u')^2}{v(u') + \sigma^2} \right].

    Arguments:
        model: A `SingleTaskGP`; only its kernel and its noise are used: the process has seen no data.
        mc_points: Where the variance is integrated, `(m, d)`.
        noise: `sigma^2` of a simulation.
        X_pending: `(p, d)` or None.
    """

    def __init__(self, model: SingleTaskGP, mc_points: Tensor, noise: float, X_pending: Tensor | None = None) -> None:
        super().__init__(model)
        self.kernel, self.noise, self.mc_points = model.covar_module, noise, mc_points
        self.set_X_pending(X_pending)

    @torch.no_grad()
    def set_X_pending(self, X_pending: Tensor | None = None) -> None:  # noqa: N802 (BoTorch's name)
        """Conditions on pending points; the variance does not depend on what they will show."""
        self.X_pending = X_pending  # type: ignore[assignment]
        self._factor: Tensor | None = None
        self._mc_half: Tensor | None = None
        self._mc_variance = self._diagonal(self.mc_points)
        if X_pending is not None and len(X_pending):
            gram = self._covariance(X_pending, X_pending)
            eye = torch.eye(len(X_pending), dtype=gram.dtype)
            self._factor = torch.linalg.cholesky(gram + self.noise * eye)
            self._mc_half = self._half(self.mc_points)
            self._mc_variance = self._mc_variance - self._mc_half.square().sum(dim=0)

    @t_batch_mode_transform(expected_q=1)  # type: ignore[arg-type]
    def forward(self, X: Tensor) -> Tensor:
        """`X` `(b, 1, d)` -> `(b,)`."""
        points = X.squeeze(-2)
        covariance, variance = self._covariance(self.mc_points, points), self._diagonal(points)
        if self._factor is not None and self._mc_half is not None:
            half = self._half(points)
            covariance = covariance - self._mc_half.mT @ half
            variance = variance - half.square().sum(dim=0)
        removed = covariance.square() / (variance.clamp(min=0.0) + self.noise)
        remaining: Tensor = self._mc_variance[:, None] - removed
        return -remaining.mean(dim=0)

    def _covariance(self, a: Tensor, b: Tensor) -> Tensor:
        return self.kernel(a, b).to_dense()

    def _diagonal(self, a: Tensor) -> Tensor:
        return self.kernel(a, diag=True)

    def _half(self, points: Tensor) -> Tensor:
        assert self._factor is not None and self.X_pending is not None
        return torch.linalg.solve_triangular(self._factor, self._covariance(self.X_pending, points), upper=False)


def choose(candidates: Candidates, n: int, pending: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The `n` most informative candidates, given what is in flight.

    Arguments:
        candidates: See `Candidates`; their draws follow the tempered posteriors.
        n: How many to choose.
        pending: Whitened parameters `(m, d)` in flight or finished since the surrogate was fitted.
        generator: Source of randomness.

    Returns:
        `u` `(n, d)` and `beta` `(n,)`.
    """
    weight = candidates.information.double() + 1e-12
    rows = torch.multinomial(weight, _MC_POINTS, replacement=True, generator=generator)
    mc_points = candidates.u[rows].double()
    pool = torch.multinomial(weight, min(max(_CHOICES, n), len(weight)), generator=generator)
    choices = candidates.u[pool].double()
    recent = pending[-_MAX_PENDING:].double()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = _disagreement_model(candidates, generator)
        acquisition = NegIntegratedVariance(model, mc_points, _NOISE, recent if len(recent) else None)
        chosen, _ = optimize_acqf_discrete(acquisition, q=n, choices=choices, unique=True)
    nearest = torch.cdist(chosen.to(choices), choices).argmin(dim=1)
    return candidates.u[pool[nearest]], candidates.beta[pool[nearest]]


def _disagreement_model(candidates: Candidates, generator: torch.Generator) -> SingleTaskGP:
    """A Gaussian process over `u` with the length scales of the members' standardized deviations."""
    ell = candidates.log_likelihood
    rows = torch.randperm(len(candidates.u), generator=generator)[:_FIT_POINTS]
    u = candidates.u[rows].double()
    deviation = ((ell[0] - ell.mean(dim=0)) / candidates.disagreement.clamp(min=1e-6))[rows].double()
    deviation = deviation.nan_to_num(0.0).clamp(-3.0, 3.0).unsqueeze(-1)
    fitted = SingleTaskGP(u, deviation, outcome_transform=None)
    try:
        with torch.enable_grad():
            fit_gpytorch_mll(
                ExactMarginalLogLikelihood(fitted.likelihood, fitted),
                optimizer_kwargs={"options": {"maxiter": 50}},
            )
    except (ModelFittingError, RuntimeError) as error:
        logger.warning("the acquisition's Gaussian process did not fit (%s): its default scales are used", error)
    return fitted.eval()
