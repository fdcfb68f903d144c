"""Where a prior of torch can lie: what its support says, and its density where it may refuse to answer."""

from __future__ import annotations

__all__ = ["bounds_of", "log_prob_of", "support_of"]

import math
from typing import Any

import torch
import torch.distributions as D
from torch import Tensor
from torch.distributions import constraints

from simulators.errors import PriorError


def support_of(prior: D.Distribution) -> constraints.Constraint | None:
    """The prior's support, None where it does not tell.

    Raises:
        PriorError: It is discrete.
    """
    try:
        support: constraints.Constraint | None = prior.support
    except NotImplementedError:
        return None
    if support is not None and support.is_discrete:
        raise PriorError("the prior is discrete, but every parameter must be continuous; use a continuous relaxation")
    return support


def bounds_of(support: Any, dim: int) -> tuple[Tensor, Tensor]:
    """Bounds `(d,)` of a support that is a box; infinite where nothing is known."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if isinstance(support, constraints.cat):
        parts = [bounds_of(part, n) for part, n in zip(support.cseq, support.lengths, strict=True)]
        return torch.cat([low for low, _ in parts]), torch.cat([high for _, high in parts])
    lower = torch.as_tensor(getattr(support, "lower_bound", -math.inf)).double().expand(dim).clone()
    upper = torch.as_tensor(getattr(support, "upper_bound", math.inf)).double().expand(dim).clone()
    return lower, upper


def log_prob_of(prior: D.Distribution, theta: Tensor) -> Tensor:
    """`log p(theta)` `(n,)` of `theta` `(n, d)`: minus infinity outside the support, also where the prior validates."""
    try:
        log_prior: Tensor = prior.log_prob(theta)
    except ValueError:  # one that validates what it is asked, all rows at once
        support = support_of(prior)
        if support is None:
            raise
        inside = support.check(theta).reshape(len(theta), -1).all(dim=1)
        log_prior = theta.new_full((len(theta),), -math.inf)
        if inside.any():
            log_prior[inside] = prior.log_prob(theta[inside])
    return log_prior
