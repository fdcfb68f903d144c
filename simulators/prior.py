r"""Priors: independent named parameters, each a (possibly truncated) distribution.

.. math:: p(\theta) = \prod_{i=1}^{d} p_i(\theta_i)

Any `torch.distributions.Distribution` over `(d,)` vectors may serve as a prior; `ProductPrior` is what
the `parameters` section of a configuration file builds.
"""

from __future__ import annotations

__all__ = ["Marginal", "ProductPrior", "check_prior", "prior_draws"]

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.distributions as D
from torch import Size, Tensor
from torch.distributions import constraints

from .errors import PriorError, nearest

#: What must lie between the bounds. Of less, numbers near 1 are too coarse to tell the quantiles apart.
_LEAST_MASS = 1e-9
#: Half of the distance from 1 to the next number: nearer to 0 or 1 no level comes in a truncated distribution.
_LEAST_LEVEL = 2.0**-53

_FROM_SCIPY = ("Gamma", "InverseGamma", "Chi2", "Beta", "StudentT", "Gumbel")


@dataclass(frozen=True)
class Marginal:
    """One parameter's prior: a distribution of `torch.distributions`, truncated to `[low, high]`.

    Arguments:
        distribution: Name of a univariate class of `torch.distributions`, such as `"Normal"`.
        arguments: Its arguments by name, such as `{"loc": 0.0, "scale": 1.0}`.
        low: Lower bound; the density is zero below and renormalized above.
        high: Upper bound.

    Raises:
        PriorError: An unknown distribution, wrong arguments, an empty interval, or a distribution that has
            no `cdf` and `icdf`.
    """

    distribution: str
    arguments: Mapping[str, float] = field(default_factory=dict)
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        probe = self.untruncated()
        if probe.event_shape or probe.batch_shape:
            raise PriorError(
                f"a parameter's distribution must be univariate, but {self.distribution} with "
                f"{dict(self.arguments)} has shape {tuple(probe.batch_shape + probe.event_shape)}; "
                "give one distribution per parameter, or use `prior: file.py:name` for a joint one"
            )
        if not self.low < self.high:
            raise PriorError(f"bounds must satisfy low < high, but came as low={self.low}, high={self.high}")
        if self.truncated and self.distribution == "Uniform":
            raise PriorError("the bounds of a Uniform are its arguments `low` and `high`; give them only there")
        try:
            low, high = self.mass_bounds()
            self.cdf(self.median())
        except RuntimeError as error:  # NotImplementedError is one.
            raise PriorError(
                f"'{self.distribution}' has no quantile function, which a single parameter's distribution "
                "needs; choose another one or give the whole prior by `prior: file.py:name`"
            ) from error
        if not high - low > _LEAST_MASS:
            raise PriorError(
                f"{self.distribution}{dict(self.arguments)} has less than {_LEAST_MASS:g} of its mass between "
                f"{self.low} and {self.high}; widen the bounds"
            )

    @property
    def truncated(self) -> bool:
        return math.isfinite(self.low) or math.isfinite(self.high)

    def untruncated(self) -> D.Distribution:
        """The distribution without its bounds, in double precision."""
        return self._untruncated

    def mass_bounds(self) -> tuple[float, float]:
        """Values of the untruncated CDF at `low` and `high`."""
        return self._mass_bounds

    @cached_property
    def _untruncated(self) -> D.Distribution:
        classes = {name: getattr(D, name) for name in D.__all__ if isinstance(getattr(D, name), type)}
        known = [name for name, kind in classes.items() if issubclass(kind, D.Distribution)]
        if self.distribution not in known:
            hint = nearest(self.distribution, known)
            raise PriorError(f"'{self.distribution}' is no class of torch.distributions; {hint}")
        arguments = {k: torch.tensor(_number(k, v), dtype=torch.float64) for k, v in self.arguments.items()}
        try:
            # Said outright: some libraries switch torch's own checks off for the whole process.
            result: D.Distribution = classes[self.distribution](**arguments, validate_args=True)
        except (TypeError, ValueError, NotImplementedError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise PriorError(
                f"torch.distributions.{self.distribution} cannot be built from {dict(self.arguments)}: {reason}"
            ) from error
        return result

    @cached_property
    def _mass_bounds(self) -> tuple[float, float]:
        bounds = (self.low, 0.0), (self.high, 1.0)
        low, high = (float(self._cdf(torch.tensor(b).double())) if math.isfinite(b) else q for b, q in bounds)
        return low, high

    def median(self) -> Tensor:
        """`()`, a point of the support in double precision."""
        return self.icdf(torch.tensor(0.5, dtype=torch.float64))

    def sample(self, shape: Size) -> Tensor:
        """Draws of the given shape in float32, never outside the support."""
        if self.truncated:
            theta = self.icdf(torch.rand(shape, dtype=torch.float64))
        else:
            theta = self.untruncated().sample(shape)
        single = theta.float()
        # Rounding may step over a bound: a neighbour towards the median is inside again.
        inward = torch.nextafter(single, self.median().float())
        return torch.where(self.log_prob(single.double()).isfinite(), single, inward)

    def log_prob(self, theta: Tensor) -> Tensor:
        """Log density at `theta` `(*,)`; minus infinity outside the support."""
        base = self.untruncated()
        assert base.support is not None
        inside = (theta >= self.low) & (theta <= self.high) & base.support.check(theta)
        # A point of the support stands in where theta is outside: no NaN, and validation is content.
        safe = torch.where(inside, theta, self.median())
        low, high = self.mass_bounds() if self.truncated else (0.0, 1.0)
        log_prob = base.log_prob(safe)
        if self.distribution == "Uniform":
            # Torch's is half open, and its draws in single precision may be the upper bound.
            log_prob = log_prob.nan_to_num(neginf=float(base.log_prob(self.median())))
        return torch.where(inside, log_prob - math.log(high - low), -math.inf)

    def cdf(self, theta: Tensor) -> Tensor:
        """Cumulative distribution at `theta` `(*,)` in double precision, truncation included."""
        low, high = self.mass_bounds() if self.truncated else (0.0, 1.0)
        return ((self._cdf(theta.double()) - low) / (high - low)).clamp(0.0, 1.0)

    def icdf(self, quantile: Tensor) -> Tensor:
        """Inverse of `cdf`; never outside the bounds."""
        low, high = self.mass_bounds() if self.truncated else (0.0, 1.0)
        level = low + (high - low) * quantile.double()
        if self.truncated:
            # Rounding may make it 1 far in a tail, whose quantile is infinite.
            level = level.clamp(_LEAST_LEVEL, 1.0 - _LEAST_LEVEL)
        frozen = self._scipy()
        if frozen is None:
            theta = self.untruncated().icdf(level)
        else:
            theta = torch.as_tensor(frozen.ppf(level.cpu().numpy())).to(level.device)
        return theta.clamp(self.low, self.high)

    def _cdf(self, theta: Tensor) -> Tensor:
        frozen = self._scipy()
        if frozen is not None:
            return torch.as_tensor(frozen.cdf(theta.cpu().numpy())).to(theta.device)
        base = self.untruncated()
        # Below the support (a LogNormal below zero) the formula is undefined, but the CDF is zero.
        safe = theta.clamp(min=getattr(base.support, "lower_bound", -math.inf))
        safe = safe.clamp(max=getattr(base.support, "upper_bound", math.inf))
        return base.cdf(safe).nan_to_num(0.0)

    def _scipy(self) -> Any:
        """The same distribution in scipy where torch lacks `cdf` or `icdf`, or they fail in the tails."""
        if self.distribution not in _FROM_SCIPY:
            return None
        # Half a second that a posterior of normal priors need not wait for.
        from scipy import stats

        a = {name: float(value) for name, value in self.arguments.items()}
        match self.distribution:
            case "Gamma":
                return stats.gamma(a["concentration"], scale=1 / a["rate"])
            case "InverseGamma":
                return stats.invgamma(a["concentration"], scale=a["rate"])
            case "Chi2":
                return stats.chi2(a["df"])
            case "Beta":
                return stats.beta(a["concentration1"], a["concentration0"])
            case "StudentT":
                return stats.t(a["df"], a.get("loc", 0.0), a.get("scale", 1.0))
            case _:
                return stats.gumbel_r(a["loc"], a["scale"])

    def as_dict(self) -> dict[str, Any]:
        """JSON form, read back by `from_dict`; unbounded sides are left out."""
        bounds = {k: v for k, v in (("low", self.low), ("high", self.high)) if math.isfinite(v)}
        return {"distribution": self.distribution, **dict(self.arguments), **bounds}

    @classmethod
    def from_dict(cls, spec: Mapping[str, Any]) -> Marginal:
        """Builds from `{"distribution": name, argument: value, ..., "low": ..., "high": ...}`.

        `low` and `high` are the arguments themselves for `Uniform`, the truncation for all others.
        """
        values = dict(spec)
        if "distribution" not in values:
            raise PriorError(f"a parameter needs a `distribution`, such as Normal, but came with {values}")
        name = str(values.pop("distribution"))
        if name == "Uniform":
            return cls(name, values)
        low, high = values.pop("low", -math.inf), values.pop("high", math.inf)
        return cls(name, values, _number("low", low), _number("high", high))


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PriorError(
            f"expected one number for `{name}`, but came {value!r}; give one univariate distribution per "
            "parameter, or use `prior: file.py:name` for a joint one"
        ) from error


class ProductPrior(D.Distribution):
    r"""Independent named parameters, `event_shape` `(d,)`, samples in float32.

    Arguments:
        marginals: Name → marginal, in the order of theta's columns.

    Example:
        >>> prior = ProductPrior({"rate": Marginal("Normal", {"loc": 1.0, "scale": 0.5}, low=0.0)})
        >>> prior.sample((3,)).shape
        torch.Size([3, 1])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, marginals: Mapping[str, Marginal]) -> None:
        if not marginals:
            raise PriorError("a prior needs at least one parameter, but none was given")
        self.marginals = dict(marginals)
        super().__init__(event_shape=Size([len(self.marginals)]), validate_args=False)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.marginals)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        return _ProductSupport(self)

    def sample(self, sample_shape: Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        shape = Size(sample_shape)
        return torch.stack([m.sample(shape) for m in self.marginals.values()], dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        columns = value.double().unbind(-1)
        terms = [m.log_prob(column) for m, column in zip(self.marginals.values(), columns, strict=True)]
        return torch.stack(terms, dim=-1).sum(dim=-1).to(torch.promote_types(value.dtype, torch.float32))


class _ProductSupport(constraints.Constraint):
    event_dim = 1

    def __init__(self, prior: ProductPrior) -> None:
        self.prior = prior
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        return self.prior.log_prob(value).isfinite()


def check_prior(prior: object) -> D.Distribution:
    """Returns the prior if it is one over `(d,)` vectors, else raises `PriorError` with the remedy."""
    if not isinstance(prior, D.Distribution):
        raise PriorError(
            f"expected a torch.distributions.Distribution as prior, but got {type(prior).__name__}; "
            "for independent parameters use `parameters:` in the configuration or simulators.ProductPrior"
        )
    if prior.batch_shape or len(prior.event_shape) != 1:
        raise PriorError(
            "a prior must have event_shape (d,) and no batch_shape, but came with event_shape "
            f"{tuple(prior.event_shape)} and batch_shape {tuple(prior.batch_shape)}; wrap it in "
            "torch.distributions.Independent(prior, 1)"
        )
    return prior


def prior_draws(prior: D.Distribution, n: int, generator: torch.Generator) -> Tensor:
    """`theta` `(n, d)`, decided by `generator`.

    torch's distributions know only the global generator, which is left as it was.

    Raises:
        PriorError: They are not on the CPU.
    """
    with torch.random.fork_rng(devices=[]):
        # `torch.manual_seed` also formats a traceback for each kind of device, which costs more than the draws.
        torch.default_generator.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        theta: Tensor = prior.sample(Size([n]))
    if theta.device.type != "cpu":
        raise PriorError(
            f"expected a prior whose draws are on the CPU, but they are on {theta.device}; build it from tensors on "
            "the CPU: networks are trained on a GPU all the same, with LearnerOptions(device='cuda')"
        )
    # Rounding may step onto a bound where the density is zero: a neighbour towards the others is inside again.
    outside = prior.log_prob(theta).isneginf()
    if outside.any():
        theta = torch.where(outside[:, None], torch.nextafter(theta, theta.mean(dim=0)), theta)
    return theta
