"""The figures of a report. Every function is pure: arrays in, a `matplotlib` figure out, no global state."""

from __future__ import annotations

__all__ = [
    "corner",
    "cost",
    "fit_by_temperature",
    "predictive",
    "progress",
    "sbc_ranks",
    "simulations_over_time",
    "temperature_widths",
    "utilization",
]

import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, StrMethodFormatter

from simulators.outcome import Array

from .corner import corner
from .figure_style import (
    ACCENT,
    BAD,
    INK,
    KINDS,
    MOST_PANELS,
    MUTED,
    beta_color,
    finite_rows,
    limits,
    log_axis,
    panel_grid,
    plain,
    span_is_wide,
    tidy,
)
from .predictive import predictive
from .rank_band import ecdf, rank_band
from .recommendation import LEVEL, Recommendation
from .spending_figures import cost, progress, utilization

MOST_POINTS = 5000
#: Quantiles of the central 68 % and the median.
_CENTRAL = (0.16, 0.5, 0.84)


def sbc_ranks(ranks: Array, names: Sequence[str], population: str) -> Figure:
    """Difference between the ranks' ECDF and the uniform one, with the 95 % simultaneous band, a panel a parameter.

    The band is simultaneous over the parameters too: level `1 - 0.05 / d` in each panel (Bonferroni), so that 95 %
    of the figures of calibrated posteriors have no curve outside.

    Arguments:
        ranks: `(n, d)` in [0, 1].
        names: Names of the d parameters.
        population: What theta was drawn from; the title.
    """
    n, d = ranks.shape
    figure, panels = panel_grid(d, 1.9, heading=0.75, sharey=True)
    z, low, high = rank_band(n, 1.0 - 0.05 / d) if n else (np.array([0.5]), np.zeros(1), np.ones(1))
    for i, axes in enumerate(panels):
        curve = ecdf(ranks[:, i], z)
        inside = n == 0 or bool(((low <= curve) & (curve <= high)).all())
        ends = np.concatenate([[0.0], z, [1.0]])
        axes.fill_between(ends, _closed(low - z), _closed(high - z), step=None, color="#cfd8e3", linewidth=0)
        axes.axhline(0.0, color=MUTED, linewidth=0.8)
        axes.plot(ends, _closed(curve - z), color=ACCENT if inside else BAD, linewidth=1.7, drawstyle="steps-mid")
        tidy(axes, grid=False)
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.5, 1], ["0", "½", "1"])
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.set_title(plain(names[i], 18), pad=16)
        axes.annotate(
            "inside the band" if inside else "leaves the band",
            (0.5, 1.0),
            (0, 4),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=MUTED if inside else BAD,
        )
    figure.supxlabel("rank of the true parameter", fontsize=11, color=INK)
    figure.supylabel("ECDF − uniform", fontsize=11, color=INK)
    title = plain(f"{population[:1].upper()}{population[1:]} ({n} simulations)", 400) + _shown(len(panels), d)
    figure.suptitle(textwrap.fill(title, int(10 * figure.get_size_inches()[0])), fontsize=12, color=INK)
    return figure


def simulations_over_time(
    theta: Array, beta: Array, proposal: Sequence[str] | np.ndarray, names: Sequence[str]
) -> Figure:
    """Where the simulations went, in the order of their ids; above 5,000 a random subset is drawn.

    Arguments:
        theta: `(n, d)`, row i is simulation i.
        beta: Temperature that each serves, `(n,)`, NaN where there is none; its panel is left out if there never is.
        proposal: How each theta was chosen, `(n,)`; the colours.
        names: Names of the d parameters.
    """
    n, d = theta.shape
    ids = np.arange(n)
    if n > MOST_POINTS:
        ids = np.sort(np.random.default_rng(0).choice(n, MOST_POINTS, replace=False))
    kinds = np.asarray(proposal)[ids].astype(str)
    columns = [(plain(names[i], 18), theta[ids, i]) for i in range(min(d, MOST_PANELS))]
    if np.isfinite(beta).any():
        columns.append(("β served", np.asarray(beta, dtype=np.float64)[ids]))
    order = sorted(set(kinds.tolist()), key=lambda kind: int(np.flatnonzero(kinds == kind)[0]))
    palette = {kind: KINDS[i % len(KINDS)] for i, kind in enumerate(order)}
    figure, panels = panel_grid(len(columns), 1.65, columns=2, heading=1.0 if len(order) > 3 else 0.7)
    colors = np.array([palette[kind] for kind in kinds.tolist()], dtype=object)
    size = 4.0 if len(ids) > 1000 else 9.0
    for axes, (name, values) in zip(panels, columns, strict=True):
        axes.scatter(ids, values, s=size, c=colors.tolist(), alpha=0.6, linewidths=0)
        tidy(axes)
        axes.set_title(name)
        if span_is_wide(values, 2.0 if name != "β served" else 0.7):
            low, high = limits(np.log10(values[np.isfinite(values)]))
            log_axis(axes, 10.0**low, 10.0**high)
        else:
            axes.set_ylim(limits(values))
        axes.set_xlim(-0.02 * max(1, n), 1.02 * max(1, n))
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    figure.supxlabel("simulation", fontsize=11, color=INK)
    if len(columns) < d:
        figure.suptitle(f"The first {MOST_PANELS} of {d} parameters", fontsize=12, color=INK)
    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=7, color=color, label=plain(kind))
        for kind, color in palette.items()
    ]
    if handles:
        figure.legend(
            handles=handles,
            loc="outside upper center",
            ncols=3,
            fontsize=10,
            frameon=False,
            columnspacing=1.0,
            handletextpad=0.2,
        )
    return figure


def temperature_widths(draws: Mapping[float, Array], names: Sequence[str]) -> Figure:
    """Posterior median and the central 68 % against beta, a panel a parameter.

    Not mean and standard deviation: of a parameter that is positive and hardly known they reach below zero.

    Arguments:
        draws: beta to draws `(n, d)`; rows with NaN are left out.
        names: Names of the d parameters.
    """
    samples = {beta: rows for beta, values in sorted(draws.items()) if len(rows := finite_rows(values))}
    heading = 0.3 if len(names) > MOST_PANELS else 0.0
    figure, panels = panel_grid(len(names), 2.0, heading=heading)
    betas = np.array(list(samples))
    shown = np.array([np.quantile(rows, _CENTRAL, axis=0) for rows in samples.values()])
    for i, axes in enumerate(panels):
        if len(betas):
            low, median, high = shown[:, :, i].T
            axes.fill_between(betas, low, high, color="#cfd8e3", linewidth=0)
            axes.plot(betas, median, color=MUTED, linewidth=1.2)
            for beta, m, *reach in zip(betas.tolist(), median, median - low, high - median, strict=True):
                bars, color = [[length] for length in reach], beta_color(beta)
                axes.errorbar(beta, m, bars, color=color, marker="o", markersize=4.5, capsize=3, linewidth=1.5)
        tidy(axes)
        axes.set_title(plain(names[i], 18))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(_apart(betas)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    figure.supxlabel("β", fontsize=11, color=INK)
    figure.suptitle(_shown(len(panels), len(names)).strip(" ,"), fontsize=12, color=INK)
    return figure


def fit_by_temperature(found: Recommendation) -> Figure:
    """The posterior predictive p-value of the observation against beta, and the recommended temperature."""
    figure, (axes,) = panel_grid(1, 2.4)
    axes.axhspan(0.0, LEVEL, color="#f6d9cf", linewidth=0)
    axes.plot(found.beta, found.p_value, color=MUTED, linewidth=1.2)
    for beta, p in zip(found.beta.tolist(), found.p_value.tolist(), strict=True):
        axes.plot(beta, p, "o", color=beta_color(beta), markersize=4.5)
    if found.recommended is not None:
        axes.axvline(found.recommended, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
    tidy(axes)
    axes.set_xscale("log")
    axes.set_xticks(ticks := _apart(found.beta[[0, len(found.beta) // 2, -1]]), [f"{beta:.2g}" for beta in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0.0, 1.03)
    axes.set_xlabel("β")
    axes.set_ylabel("p")
    return figure


def _closed(inner: Array) -> Array:
    """A curve over (0, 1) with its two ends, which are zero by definition."""
    return np.concatenate([[0.0], inner, [0.0]])


def _shown(panels: int, d: int) -> str:
    return f", the first {panels} of {d} parameters" if panels < d else ""


def _apart(betas: Array) -> list[float]:
    """The temperatures whose tick labels do not touch on a logarithmic axis, those near 1 first."""
    kept: list[float] = []
    gap = 0.2 * math.log(betas.max() / betas.min()) if len(betas) else 0.0
    for beta in sorted(betas.tolist(), key=lambda b: abs(math.log(b))):
        if all(abs(math.log(beta / other)) > gap for other in kept):
            kept.append(beta)
    return kept
