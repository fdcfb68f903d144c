"""Which temperatures the pictures and tables show."""

from __future__ import annotations

__all__ = ["report_betas"]


def report_betas(beta_range: tuple[float, float]) -> list[float]:
    """Up to five temperatures to show: the ends of the range, 1, and what lies between."""
    low, high = beta_range
    between = [b for b in (0.1, 0.3, 0.5, 1.0) if low < b < high]
    return sorted({low, *between[-3:], high})
