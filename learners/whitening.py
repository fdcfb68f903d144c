r"""Whitening: a bijection `theta -> u` under which the prior becomes a standard normal.

.. math:: u = T(\theta), \quad \theta \sim p(\theta) \Rightarrow u \sim \mathcal N(0, I),
    \qquad \log p(\theta) = \log \mathcal N(u; 0, I) + \log |\partial u / \partial \theta|

Everything is learned in `u`: no posterior mass can leak outside the prior's support, where that is known to be a box,
and the posterior at `beta -> 0` is the base distribution of the flow itself. A whitening is plain numbers, saved as
JSON; the prior object is not needed once a posterior is trained.
"""

from __future__ import annotations

__all__ = ["AffineWhitening", "MarginalWhitening", "Whitening", "whiten", "whitening_from_dict"]

import abc
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
import torch.distributions as D
from torch import Tensor
from torch.distributions import constraints

from simulators.errors import PriorError
from simulators.prior import Marginal, ProductPrior, check_prior, prior_draws

from .constants import TINY
from .single import single_ends

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
#: Of the correlation matrix of prior draws; below, float32 draws lie in a plane.
_MIN_EIGENVALUE = 1e-9
#: Share of a parameter's prior draws that may be nearer to zero than single precision can tell.
_MOST_TINY = 0.01
#: Values of single precision in the central 68 % of a parameter's prior at least.
_FEWEST_VALUES = 100


def log_normal(u: Tensor) -> Tensor:
    """Log density `(*,)` of the standard normal at `u` `(*, d)`."""
    return (-0.5 * u.square() - _LOG_SQRT_2PI).sum(dim=-1)


class Whitening(abc.ABC):
    """A bijection between parameters `theta` `(*, d)` and whitened parameters `u` `(*, d)`."""

    dim: int

    @property
    def exact(self) -> bool:
        """Whether the prior is quite normal in u, so that the whitening is all there is to know of it."""
        return True

    @property
    def knows_prior(self) -> bool:
        """Whether `log_prior` is that of the prior: a saved whitening that is not exact has lost it."""
        return True

    @property
    def curved(self) -> tuple[int, ...]:
        """Which parameters are no line in u, neither themselves nor their logarithms."""
        return ()

    @abc.abstractmethod
    def to_u(self, theta: Tensor) -> Tensor:
        """Whitened parameters, `(*, d)`, in double precision."""

    @abc.abstractmethod
    def to_theta(self, u: Tensor) -> Tensor:
        """Parameters, `(*, d)`, in double precision; inverse of `to_u`."""

    def to_single(self, u: Tensor) -> Tensor:
        """`to_theta` in single precision, as users get it; rounding steps neither onto nor over a bound."""
        return self.to_theta(u).float().clamp(*self.ends)

    @property
    @abc.abstractmethod
    def ends(self) -> tuple[Tensor, Tensor]:
        """The least and the largest numbers of single precision, `(d,)` each, between the support's bounds."""

    @abc.abstractmethod
    def log_abs_det(self, theta: Tensor) -> Tensor:
        """`log |du/dtheta|`, shape `(*,)`."""

    @abc.abstractmethod
    def in_support(self, theta: Tensor) -> Tensor:
        """Whether each `theta` lies in the prior's support, shape `(*,)`, boolean.

        Of a prior that is known to its object only, a saved whitening has the box around its support.
        """

    def log_prior_ratio(self, u: Tensor) -> Tensor:
        """`log p(u) - log N(u; 0, I)`, shape `(*,)`: zero where the whitening is exact."""
        return torch.zeros(u.shape[:-1], dtype=u.dtype, device=u.device)

    def log_prior(self, theta: Tensor) -> Tensor:
        """`log p(theta)`, shape `(*,)`, as far as the whitening knows the prior."""
        u = self.to_u(theta)
        return log_normal(u) + self.log_prior_ratio(u) + self.log_abs_det(theta)

    @abc.abstractmethod
    def as_dict(self) -> dict[str, Any]:
        """JSON form, read back by `whitening_from_dict`."""


class MarginalWhitening(Whitening):
    r"""Independent parameters: `u_i = Phi^{-1}(F_i(theta_i))`, affine (in the logarithm) where F_i is (log-)normal."""

    def __init__(self, marginals: Sequence[Marginal]) -> None:
        self.marginals = tuple(marginals)
        self.dim = len(self.marginals)

    @property
    def curved(self) -> tuple[int, ...]:
        return tuple(i for i, marginal in enumerate(self.marginals) if not _is_line(marginal))

    @cached_property
    def ends(self) -> tuple[Tensor, Tensor]:
        return _single([_marginal_ends(marginal) for marginal in self.marginals])

    def to_u(self, theta: Tensor) -> Tensor:
        columns = theta.double().unbind(-1)
        return torch.stack([_to_u(m, t) for m, t in zip(self.marginals, columns, strict=True)], dim=-1)

    def to_theta(self, u: Tensor) -> Tensor:
        columns = u.double().unbind(-1)
        return torch.stack([_to_theta(m, c) for m, c in zip(self.marginals, columns, strict=True)], dim=-1)

    def log_abs_det(self, theta: Tensor) -> Tensor:
        columns = theta.double().unbind(-1)
        log_prior = sum(m.log_prob(t) for m, t in zip(self.marginals, columns, strict=True))
        return log_prior - log_normal(self.to_u(theta))

    def in_support(self, theta: Tensor) -> Tensor:
        columns = theta.double().unbind(-1)
        inside = [m.log_prob(t).isfinite() for m, t in zip(self.marginals, columns, strict=True)]
        return torch.stack(inside, dim=-1).all(dim=-1)

    def as_dict(self) -> dict[str, Any]:
        return {"kind": "marginal", "marginals": [m.as_dict() for m in self.marginals]}


class AffineWhitening(Whitening):
    r"""`u = L^{-1} (f(theta) - m)`: exact for a multivariate normal (`f` the identity).

    For any other prior, `f` maps each coordinate's support to the real line and `m`, `L` are the moments
    of prior draws; then `p(u)` is not quite normal, and `log_prior_ratio` gives the difference.

    Arguments:
        mean: `(d,)`.
        scale: Lower triangular `(d, d)`.
        lower, upper: Bounds `(d,)` of the support, infinite where there is none.
        prior: The prior, where the map is not exact.
        exact: Whether it is.
    """

    def __init__(
        self,
        mean: Tensor,
        scale: Tensor,
        lower: Tensor,
        upper: Tensor,
        prior: D.Distribution | None = None,
        exact: bool = True,
    ) -> None:
        self.mean, self.scale = mean.double(), scale.double()
        self.lower, self.upper = lower.double(), upper.double()
        self.prior, self._exact = prior, exact
        self.dim = mean.shape[-1]

    @cached_property
    def ends(self) -> tuple[Tensor, Tensor]:
        bounds = zip(self.lower.tolist(), self.upper.tolist(), strict=True)
        return _single([single_ends(low, high, lambda t, a=low, b=high: a < t < b) for low, high in bounds])  # type: ignore[misc]

    def to_u(self, theta: Tensor) -> Tensor:
        centered = _unbound(theta.double(), self.lower, self.upper) - self.mean
        return torch.linalg.solve_triangular(self.scale, centered.unsqueeze(-1), upper=False).squeeze(-1)

    def to_theta(self, u: Tensor) -> Tensor:
        return _rebound(u.double() @ self.scale.mT + self.mean, self.lower, self.upper)

    def log_abs_det(self, theta: Tensor) -> Tensor:
        log_slope = _unbound_log_slope(theta.double(), self.lower, self.upper).sum(dim=-1)
        return log_slope - self.scale.diagonal().log().sum()

    def in_support(self, theta: Tensor) -> Tensor:
        inside = ((theta > self.lower) & (theta < self.upper)).all(dim=-1)
        if self.prior is None or not inside.any():
            return inside
        # A support may be less than the box around it. In single precision, as the prior itself draws.
        rows, center = theta[inside].float(), self.to_theta(torch.zeros(self.dim)).float()
        possible = _log_prior(self.prior, rows).isfinite()
        # Rounding may step over a bound: a neighbour towards the others is inside again.
        possible |= _log_prior(self.prior, torch.nextafter(rows, center)).isfinite()
        return inside.masked_scatter(inside, possible)

    @property
    def exact(self) -> bool:
        return self._exact

    @property
    def knows_prior(self) -> bool:
        return self._exact or self.prior is not None

    @property
    def curved(self) -> tuple[int, ...]:
        return tuple((self.lower.isfinite() & self.upper.isfinite()).nonzero().flatten().tolist())

    def log_prior_ratio(self, u: Tensor) -> Tensor:
        if self.prior is None:
            return super().log_prior_ratio(u)
        u_cpu = u.double().cpu()  # where the prior's own tensors are
        theta = self.to_theta(u_cpu)
        # In one row of rows: some priors take no others.
        log_prior = _log_prior(self.prior, theta.float().reshape(-1, theta.shape[-1])).double().reshape(u.shape[:-1])
        return (log_prior - self.log_abs_det(theta) - log_normal(u_cpu)).to(u)

    def as_dict(self) -> dict[str, Any]:
        finite = {"lower": self.lower, "upper": self.upper}
        bounds = {k: [x if math.isfinite(x) else None for x in v.tolist()] for k, v in finite.items()}
        form = {"kind": "affine", "mean": self.mean.tolist(), "scale": self.scale.tolist(), **bounds}
        return form if self._exact else {**form, "exact": False}


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
    lower, upper = _bounds(_support(prior), theta.shape[-1])
    free = _unbound(theta, lower, upper)
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


def whitening_from_dict(spec: dict[str, Any]) -> Whitening:
    """Inverse of `Whitening.as_dict`."""
    if spec["kind"] == "marginal":
        return MarginalWhitening([Marginal.from_dict(m) for m in spec["marginals"]])
    bounds = {"lower": -math.inf, "upper": math.inf}
    lower, upper = (_double([free if x is None else x for x in spec[key]]) for key, free in bounds.items())
    # Earlier versions did not say.
    exact = bool(spec.get("exact", True))
    return AffineWhitening(_double(spec["mean"]), _double(spec["scale"]), lower, upper, exact=exact)


def _double(values: Sequence[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _single(pairs: Sequence[tuple[float, float]]) -> tuple[Tensor, Tensor]:
    low, high = torch.tensor(pairs, dtype=torch.float32, device="cpu").unbind(-1)
    return low, high


def _marginal_ends(marginal: Marginal) -> tuple[float, float]:
    (low,), (high,) = (bound.tolist() for bound in _bounds(marginal.untruncated().support, 1))
    # At a bound of the support the density may be zero or infinite: there, log_prob is not finite.
    return single_ends(
        max(low, marginal.low),
        min(high, marginal.high),
        lambda theta: bool(marginal.log_prob(torch.tensor(theta, dtype=torch.float64)).isfinite()),
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


def _support(prior: D.Distribution) -> constraints.Constraint | None:
    """The prior's support, None where it does not tell."""
    try:
        support: constraints.Constraint | None = prior.support
    except NotImplementedError:
        return None
    if support is not None and support.is_discrete:
        raise PriorError("the prior is discrete, but every parameter must be continuous; use a continuous relaxation")
    return support


def _log_prior(prior: D.Distribution, theta: Tensor) -> Tensor:
    """`log p(theta)` `(n,)` of `theta` `(n, d)`: minus infinity outside the support, also where the prior validates."""
    try:
        log_prior: Tensor = prior.log_prob(theta)
    except ValueError:  # one that validates what it is asked, all rows at once
        support = _support(prior)
        if support is None:
            raise
        inside = support.check(theta).reshape(len(theta), -1).all(dim=1)
        log_prior = theta.new_full((len(theta),), -math.inf)
        if inside.any():
            log_prior[inside] = prior.log_prob(theta[inside])
    return log_prior


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


def _bounds(support: Any, dim: int) -> tuple[Tensor, Tensor]:
    """Bounds `(d,)` of a support that is a box; infinite where nothing is known."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if isinstance(support, constraints.cat):
        parts = [_bounds(part, n) for part, n in zip(support.cseq, support.lengths, strict=True)]
        return torch.cat([low for low, _ in parts]), torch.cat([high for _, high in parts])
    lower = torch.as_tensor(getattr(support, "lower_bound", -math.inf)).double().expand(dim).clone()
    upper = torch.as_tensor(getattr(support, "upper_bound", math.inf)).double().expand(dim).clone()
    return lower, upper


def _unbound(theta: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Each coordinate's interval mapped to the real line: identity, log or logit."""
    below, above = lower.isfinite(), upper.isfinite()
    low, high = lower.nan_to_num(0.0, posinf=0.0, neginf=0.0), upper.nan_to_num(0.0, posinf=0.0, neginf=0.0)
    left, right = (theta - low).clamp(min=1e-300), (high - theta).clamp(min=1e-300)
    mapped = torch.where(below, left.log(), theta)
    mapped = torch.where(above, torch.where(below, left.log() - right.log(), -right.log()), mapped)
    return mapped


def _rebound(free: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    below, above = lower.isfinite(), upper.isfinite()
    low, high = lower.nan_to_num(0.0, posinf=0.0, neginf=0.0), upper.nan_to_num(0.0, posinf=0.0, neginf=0.0)
    one_sided = torch.where(below, low + free.exp(), torch.where(above, high - (-free).exp(), free))
    return torch.where(below & above, low + (high - low) * free.sigmoid(), one_sided)


def _unbound_log_slope(theta: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    below, above = lower.isfinite(), upper.isfinite()
    low, high = lower.nan_to_num(0.0, posinf=0.0, neginf=0.0), upper.nan_to_num(0.0, posinf=0.0, neginf=0.0)
    left, right = (theta - low).clamp(min=1e-300), (high - theta).clamp(min=1e-300)
    slope = torch.where(below, -left.log(), torch.zeros_like(theta))
    slope = torch.where(above & ~below, -right.log(), slope)
    return torch.where(below & above, (high - low).clamp(min=1e-300).log() - left.log() - right.log(), slope)


def _is_line(marginal: Marginal) -> bool:
    """Whether the parameter, or its logarithm, is normal."""
    return not marginal.truncated and marginal.distribution in ("Normal", "LogNormal")


def _to_u(marginal: Marginal, theta: Tensor) -> Tensor:
    if _is_line(marginal):
        value = theta if marginal.distribution == "Normal" else theta.log()
        return (value - marginal.arguments["loc"]) / marginal.arguments["scale"]
    return torch.special.ndtri(marginal.cdf(theta).clamp(TINY, 1 - TINY))


def _to_theta(marginal: Marginal, u: Tensor) -> Tensor:
    if _is_line(marginal):
        value = marginal.arguments["loc"] + marginal.arguments["scale"] * u
        return value if marginal.distribution == "Normal" else value.exp()
    return marginal.icdf(torch.special.ndtr(u).clamp(TINY, 1 - TINY))
