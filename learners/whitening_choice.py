"""Which whitening fits a prior, and which priors have none."""

from __future__ import annotations

__all__ = ["whiten"]

import math
from collections.abc import Sequence

import torch
import torch.distributions as D
from torch import Tensor

from simulators.errors import PriorError
from simulators.prior import Marginal, ProductPrior, check_prior, prior_draws

from .box import unbound
from .support import bounds_of, support_of
from .whitening import AffineWhitening, MarginalWhitening, Whitening

#: Of the correlation matrix of prior draws; below, float32 draws lie in a plane.
_MIN_EIGENVALUE = 1e-9
#: Share of a parameter's prior draws that may be nearer to zero than single precision can tell.
_MOST_TINY = 0.01
#: Values of single precision in the central 68 % of a parameter's prior at least.
_FEWEST_VALUES = 100


def whiten(prior: D.Distribution, num_samples: int = 20_000) -> Whitening:
    """The whitening that fits a prior: exact where its form is known, else from moments of its draws.

    Raises:
        PriorError: Not a distribution over `(d,)` vectors, not on the CPU, or too narrow or too near to zero for single
            precision.
    """
    check_prior(prior)
    prior_draws(prior, 1, torch.Generator().manual_seed(0))  # says if they are on another device
    whitening = _whitening(prior, num_samples)
    _check_resolution(whitening, getattr(prior, "names", range(whitening.dim)))
    return whitening


def _whitening(prior: D.Distribution, num_samples: int) -> Whitening:
    if isinstance(prior, ProductPrior):
        return MarginalWhitening(tuple(prior.marginals.values()))
    if isinstance(prior, D.MultivariateNormal):
        free = torch.full_like(prior.loc, math.inf)
        return AffineWhitening(prior.loc, prior.scale_tril, -free, free)
    if isinstance(prior, D.Independent):
        marginals = _marginals(prior.base_dist)
        if marginals is not None:
            return MarginalWhitening(marginals)
    # The same draws wherever the prior is whitened: learner, proposals and a later process must agree.
    theta = prior_draws(prior, num_samples, torch.Generator().manual_seed(0)).double()
    if not theta.isfinite().all():
        raise PriorError("the prior draws values that are NaN or infinite; every draw must be finite")
    lower, upper = bounds_of(support_of(prior), theta.shape[-1])
    free = unbound(theta, lower, upper)
    return AffineWhitening(free.mean(0), _scale_tril(free), lower, upper, prior, exact=False)


def _check_resolution(whitening: Whitening, names: Sequence[str | int]) -> None:
    """Raises `PriorError` if a parameter has few values in single precision, which all draws are in, or vanishes."""
    u = torch.randn(2000, whitening.dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theta = whitening.to_theta(u)
    least = torch.finfo(torch.float32).tiny
    tiny = (theta.abs() < least).double().mean(dim=0)
    for i in (tiny > _MOST_TINY).nonzero().flatten().tolist():
        raise PriorError(
            f"{tiny[i]:.0%} of the prior's draws of parameter {names[i]} are nearer to zero than {least:.2g}, which "
            "single precision cannot tell apart; take the logarithm of the parameter, and its exponential in the "
            "simulator, or choose a prior that is less vague"
        )
    low, middle, high = torch.quantile(theta, torch.tensor([0.16, 0.5, 0.84]).double(), dim=0)
    coarse = high - low < _FEWEST_VALUES * torch.finfo(torch.float32).eps * middle.abs()
    for i in coarse.nonzero().flatten().tolist():
        raise PriorError(
            f"the prior of parameter {names[i]} is too narrow for where it lies: its central 68 %, {low[i]:.10g} to "
            f"{high[i]:.10g}, has fewer than {_FEWEST_VALUES} values of single precision; subtract an offset (such as "
            f"{middle[i]:.8g}) from the parameter, and add it in the simulator"
        )


def _scale_tril(draws: Tensor) -> Tensor:
    """Cholesky factor `(d, d)` of the covariance of `draws` `(n, d)`."""
    deviation = draws.std(dim=0)
    fixed = (deviation <= 1e-12 * draws.mean(dim=0).abs()).nonzero().flatten().tolist()
    if fixed:
        raise PriorError(f"the prior never varies theta's columns {fixed}; leave constants out of theta")
    correlation = torch.atleast_2d(torch.corrcoef(draws.mT))
    if torch.linalg.eigvalsh(correlation)[0] < _MIN_EIGENVALUE:
        raise PriorError(
            f"the prior's draws do not fill {draws.shape[-1]} dimensions: a column is determined by the others, as in "
            "a Dirichlet, whose draws sum to one; leave that column out of theta, and compute it in the simulator"
        )
    return deviation[:, None] * torch.linalg.cholesky(correlation)


def _marginals(base: D.Distribution) -> list[Marginal] | None:
    """The univariate marginals of a batch of independent distributions, None where one has no quantiles."""
    if len(base.batch_shape) != 1 or base.event_shape:
        return None
    names = list(base.arg_constraints)
    try:
        columns = {name: getattr(base, name).expand(base.batch_shape).tolist() for name in names}
        return [
            Marginal(type(base).__name__, {name: column[i] for name, column in columns.items()})
            for i in range(base.batch_shape[0])
        ]
    except (PriorError, AttributeError):
        return None
