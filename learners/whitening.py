r"""Whitening: a bijection `theta -> u` under which the prior becomes a standard normal.

.. math:: u = T(\theta), \quad \theta \sim p(\theta) \Rightarrow u \sim \mathcal N(0, I),
    \qquad \log p(\theta) = \log \mathcal N(u; 0, I) + \log |\partial u / \partial \theta|

Everything is learned in `u`: no posterior mass can leak outside the prior's support, where that is known to be a box,
and the posterior at `beta -> 0` is the base distribution of the flow itself. A whitening is plain numbers, saved as
JSON; the prior object is not needed once a posterior is trained.
"""

from __future__ import annotations

__all__ = ["AffineWhitening", "MarginalWhitening", "Whitening", "log_normal", "whitening_from_dict"]

import abc
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
import torch.distributions as D
from torch import Tensor

from simulators.prior import Marginal

from .box import log_slope, rebound, unbound
from .constants import TINY
from .single import single_ends
from .support import bounds_of, log_prob_of

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


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
        centered = unbound(theta.double(), self.lower, self.upper) - self.mean
        return torch.linalg.solve_triangular(self.scale, centered.unsqueeze(-1), upper=False).squeeze(-1)

    def to_theta(self, u: Tensor) -> Tensor:
        return rebound(u.double() @ self.scale.mT + self.mean, self.lower, self.upper)

    def log_abs_det(self, theta: Tensor) -> Tensor:
        slope = log_slope(theta.double(), self.lower, self.upper).sum(dim=-1)
        return slope - self.scale.diagonal().log().sum()

    def in_support(self, theta: Tensor) -> Tensor:
        inside = ((theta > self.lower) & (theta < self.upper)).all(dim=-1)
        if self.prior is None or not inside.any():
            return inside
        # A support may be less than the box around it. In single precision, as the prior itself draws.
        rows, center = theta[inside].float(), self.to_theta(torch.zeros(self.dim)).float()
        possible = log_prob_of(self.prior, rows).isfinite()
        # Rounding may step over a bound: a neighbour towards the others is inside again.
        possible |= log_prob_of(self.prior, torch.nextafter(rows, center)).isfinite()
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
        log_prior = log_prob_of(self.prior, theta.float().reshape(-1, theta.shape[-1])).double().reshape(u.shape[:-1])
        return (log_prior - self.log_abs_det(theta) - log_normal(u_cpu)).to(u)

    def as_dict(self) -> dict[str, Any]:
        finite = {"lower": self.lower, "upper": self.upper}
        bounds = {k: [x if math.isfinite(x) else None for x in v.tolist()] for k, v in finite.items()}
        form = {"kind": "affine", "mean": self.mean.tolist(), "scale": self.scale.tolist(), **bounds}
        return form if self._exact else {**form, "exact": False}


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
    (low,), (high,) = (bound.tolist() for bound in bounds_of(marginal.untruncated().support, 1))
    # At a bound of the support the density may be zero or infinite: there, log_prob is not finite.
    return single_ends(
        max(low, marginal.low),
        min(high, marginal.high),
        lambda theta: bool(marginal.log_prob(torch.tensor(theta, dtype=torch.float64)).isfinite()),
    )


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
