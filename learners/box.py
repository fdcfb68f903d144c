"""A box of parameters mapped to the real line, coordinate by coordinate: identity, logarithm or logit."""

from __future__ import annotations

__all__ = ["log_slope", "rebound", "unbound"]

import torch
from torch import Tensor


def unbound(theta: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Each coordinate's interval mapped to the real line: identity, log or logit."""
    below, above = lower.isfinite(), upper.isfinite()
    low, high = lower.nan_to_num(0.0, posinf=0.0, neginf=0.0), upper.nan_to_num(0.0, posinf=0.0, neginf=0.0)
    left, right = (theta - low).clamp(min=1e-300), (high - theta).clamp(min=1e-300)
    mapped = torch.where(below, left.log(), theta)
    mapped = torch.where(above, torch.where(below, left.log() - right.log(), -right.log()), mapped)
    return mapped


def rebound(free: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The inverse of `unbound`."""
    below, above = lower.isfinite(), upper.isfinite()
    low, high = lower.nan_to_num(0.0, posinf=0.0, neginf=0.0), upper.nan_to_num(0.0, posinf=0.0, neginf=0.0)
    one_sided = torch.where(below, low + free.exp(), torch.where(above, high - (-free).exp(), free))
    return torch.where(below & above, low + (high - low) * free.sigmoid(), one_sided)


def log_slope(theta: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The logarithm of the slope of `unbound`, coordinate by coordinate."""
    below, above = lower.isfinite(), upper.isfinite()
    low, high = lower.nan_to_num(0.0, posinf=0.0, neginf=0.0), upper.nan_to_num(0.0, posinf=0.0, neginf=0.0)
    left, right = (theta - low).clamp(min=1e-300), (high - theta).clamp(min=1e-300)
    slope = torch.where(below, -left.log(), torch.zeros_like(theta))
    slope = torch.where(above & ~below, -right.log(), slope)
    return torch.where(below & above, (high - low).clamp(min=1e-300).log() - left.log() - right.log(), slope)
