"""Figures of what was spent: progress, workers at work, costs of simulations. Pure, as those of `figures`."""

from __future__ import annotations

__all__ = ["cost", "progress", "utilization"]

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from simulators.outcome import Array

from .figure_style import ACCENT, BAD, INK, MUTED, limits, log_axis, panel_grid, plain, span_is_wide, tidy
from .spending import DEPENDS, Timeline

_MOST_POINTS = 3000
_MOST_PARAMETERS = 3


def progress(history: pd.DataFrame) -> Figure:
    """The campaign over time: one panel for each of its columns that is there.

    Arguments:
        history: Column `seconds` since the start, and any of `simulations`, `failed` (counts), `surrogate_loss`,
            `posterior_loss` (nats), `utilization` (share of the workers that are busy), `epistemic`; NaN where a row
            does not say.
    """
    there = [name for name in history.columns if name != "seconds" and bool(history[name].notna().any())]
    titles = {
        "simulations": "Simulations finished",
        "utilization": "Workers busy",
        "surrogate_loss": "Surrogate loss (nats)",
        "posterior_loss": "Posterior loss (nats)",
        "epistemic": "Epistemic uncertainty",
    }
    shown = [name for name in titles if name in there]
    figure, panels = panel_grid(max(1, len(shown)), 2.1, columns=2)
    seconds = history["seconds"].to_numpy(dtype=np.float64) if "seconds" in history else np.empty(0)
    end = float(np.nanmax(seconds)) if np.isfinite(seconds).any() else 0.0
    scale, unit = _time_unit(end)
    for axes, name in zip(panels, shown, strict=False):
        values = history[name].to_numpy(dtype=np.float64)
        _curve(axes, seconds / scale, values, ACCENT, "finished")
        if name == "simulations" and "failed" in there:
            _curve(axes, seconds / scale, history["failed"].to_numpy(dtype=np.float64), BAD, "of these failed")
            axes.legend(fontsize=9.5, frameon=False)
        tidy(axes)
        axes.set_title(titles[name])
        axes.set_xlim(0.0, max(1e-9, 1.03 * end / scale))
        if name == "utilization":
            axes.set_ylim(0.0, 1.05)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        elif name == "simulations":
            axes.set_ylim(bottom=0.0)
        elif name == "epistemic" and span_is_wide(values):
            log_axis(axes, 0.8 * float(np.nanmin(values)), 1.25 * float(np.nanmax(values)))
    if not shown:
        _say(panels[0], "nothing was recorded")
    figure.supxlabel(f"{unit} since the start", fontsize=11, color=INK)
    return figure


def utilization(times: Timeline) -> Figure:
    """Simulations at work over time, beside the most that ever were at the same time."""
    end = float(times.edges[-1])
    scale, unit = _time_unit(end)
    figure, (axes,) = panel_grid(1, 2.3)
    figure.set_size_inches(6.6, figure.get_size_inches()[1])
    axes.stairs(times.busy, times.edges / scale, fill=True, color=ACCENT, alpha=0.35)
    axes.stairs(times.busy, times.edges / scale, color=ACCENT, linewidth=1.0)
    axes.axhline(times.slots, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
    tidy(axes)
    axes.set_xlim(0.0, max(1e-9, end / scale))
    axes.set_ylim(0.0, 1.1 * times.slots)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=times.slots > 3))
    axes.set_xlabel(f"{unit} since the first simulation")
    axes.set_ylabel("simulations at work")
    return figure


def cost(seconds: Array, theta: Array, names: Sequence[str], explained: Array) -> Figure:
    """How long simulations took, and against the (at most three) parameters on which that depends most.

    Arguments:
        seconds: `(n,)`; of more than 3,000 a random subset is drawn as points, all are in the histogram.
        theta: `(n, d)`.
        names: Names of the d parameters.
        explained: Share of the variance of log seconds that each explains, `(d,)`; those above `DEPENDS` are shown.
    """
    shown = [int(j) for j in np.argsort(-explained)[:_MOST_PARAMETERS] if explained[j] > DEPENDS]
    figure, panels = panel_grid(1 + len(shown), 2.2, columns=2)
    values = np.maximum(seconds[np.isfinite(seconds)], 1e-7)
    wide = span_is_wide(values)
    low, high = limits(np.log10(values) if wide else values)
    edges = np.linspace(low if wide else max(0.0, low), high, 41)
    edges = 10.0**edges if wide else edges
    panels[0].stairs(np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0], edges, fill=True, color=ACCENT)
    tidy(panels[0])
    panels[0].set_title("Simulations by duration")
    panels[0].set_xlabel("seconds")
    if wide:
        panels[0].set_xscale("log")
        panels[0].xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panels[0].xaxis.set_minor_formatter(NullFormatter())
    rows = np.arange(len(seconds))
    if len(rows) > _MOST_POINTS:
        rows = np.random.default_rng(0).choice(len(rows), _MOST_POINTS, replace=False)
    for axes, j in zip(panels[1:], shown, strict=True):
        axes.scatter(theta[rows, j], seconds[rows], s=4.0, color=ACCENT, alpha=0.4, linewidths=0)
        tidy(axes)
        # A panel is as wide as 18 signs and a little: what they mean is said at the side.
        axes.set_title(plain(names[j], 18))
        axes.set_ylabel("seconds")
        axes.set_xlabel(f"explains {100 * explained[j]:.0f} %")
        axes.set_xlim(limits(theta[rows, j]))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        if wide:
            log_axis(axes, 10.0**low, 10.0**high)
        else:
            axes.set_ylim(limits(seconds[rows]))
    return figure


def _time_unit(seconds: float) -> tuple[float, str]:
    if seconds < 120:
        return 1.0, "seconds"
    return (60.0, "minutes") if seconds < 7200 else (3600.0, "hours")


def _curve(axes: Axes, x: Array, y: Array, color: str, label: str) -> None:
    there = np.isfinite(y)
    axes.plot(
        x[there],
        y[there],
        color=color,
        linewidth=1.8,
        label=label,
        marker="o" if there.sum() < 25 else None,
        markersize=3.5,
    )


def _say(axes: Axes, text: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", color=MUTED, transform=axes.transAxes)
