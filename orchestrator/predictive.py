"""The posterior predictive: what the model says data look like, over what was observed."""

from __future__ import annotations

__all__ = ["QUANTILES", "Series", "component_names", "predictive", "series_of", "view"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from simulators.errors import ObservationError
from simulators.outcome import Array

from .figure_style import INK, MUTED, beta_color, beta_label, finite_rows, log_axis, plain, span_is_wide, tidy
from .observation import Observation

#: Quantiles of the central 90 % and 50 %, and the median.
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_FEW = 8
_MOST_PANELS = 24


@dataclass(frozen=True, eq=False)
class Series:
    """Components `part` of an observation that belong together: `x` `(m,)` at `index` `(m,)`, which is `index_name`."""

    name: str
    index: Array
    index_name: str
    x: Array
    part: slice


def predictive(observation: Observation, draws: Mapping[float, Array]) -> Figure:
    """Bands of 50 % and 90 % of the posterior predictive, one row a series and one column a temperature.

    Few components that are not a series in time (k < 8, or one row of a table) are shown as intervals, one panel
    each.

    Arguments:
        observation: The observed data, `(k,)`.
        draws: beta to simulations at draws of its posterior, `(n, k)`; rows with NaN are left out.

    Raises:
        ObservationError: The observation is not made of series of equal length, or draws are not `(n, k)`.
    """
    bands = {beta: _quantiles(values, observation.x.size) for beta, values in sorted(draws.items())}
    rows = series_of(observation)
    if rows:
        return _series(rows, bands)
    return _intervals(component_names(observation), observation.x, bands)


def series_of(observation: Observation) -> list[Series]:
    """The observation's series; none if its components are so few that each is better shown by itself.

    Raises:
        ObservationError: It is not made of series of equal length.
    """
    x = np.asarray(observation.x, dtype=np.float64)
    names = observation.series or ("x",)
    length, rest = divmod(x.size, len(names))
    if rest or (observation.index is not None and len(observation.index) != length):
        raise ObservationError(
            f"expected {len(names)} series of equal length with a common index, got {x.size} values"
            + ("" if observation.index is None else f" and an index of {len(observation.index)}")
        )
    if x.size < _FEW or (length == 1 and x.size <= _MOST_PANELS):
        return []
    if length == 1:
        names, length = ("x",), x.size
    index = observation.index
    if index is None or len(index) != length:
        index = np.arange(length, dtype=np.float64)
    index_name = observation.index_name or ("component" if names == ("x",) else "row")
    parts = [slice(i * length, (i + 1) * length) for i in range(len(names))]
    return [Series(name, index, index_name, x[part], part) for name, part in zip(names, parts, strict=True)]


def _quantiles(values: Array, k: int) -> Array:
    """`(5, k)`, NaN if there are no draws."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != k:
        raise ObservationError(f"expected predictive draws of shape (n, {k}), got {values.shape}")
    finite = finite_rows(values)
    return np.quantile(finite, QUANTILES, axis=0) if len(finite) else np.full((len(QUANTILES), k), np.nan)


def _series(rows: list[Series], bands: Mapping[float, Array]) -> Figure:
    betas = sorted(bands)
    width = max(5.6, 0.8 + 2.3 * len(betas))
    figure = Figure(figsize=(width, 1.0 + 2.2 * len(rows)), facecolor="white", layout="constrained")
    panels = figure.subplots(len(rows), max(1, len(betas)), sharex=True, sharey="row", squeeze=False)
    for row, series in enumerate(rows):
        logarithmic = span_is_wide(series.x)
        for column, beta in enumerate(betas):
            axes = panels[row, column]
            quantiles = bands[beta][:, series.part]
            _band(axes, series, quantiles, beta_color(beta))
            tidy(axes)
            axes.set_title(_held(series.x, quantiles), fontsize=9.5, color=MUTED, pad=4)
            if row == 0:
                axes.annotate(
                    beta_label(beta),
                    (0.5, 1.0),
                    (0, 22),
                    xycoords="axes fraction",
                    textcoords="offset points",
                    ha="center",
                    fontsize=12,
                    fontweight="bold",
                    color=beta_color(beta),
                )
            if row == len(rows) - 1:
                axes.set_xlabel(plain(series.index_name))
            axes.xaxis.set_major_locator(MaxNLocator(3, integer=bool((series.index % 1 == 0).all())))
        span = view(series.x, [bands[beta][:, series.part] for beta in betas], logarithmic)
        if logarithmic:
            log_axis(panels[row, 0], *span)
        else:
            panels[row, 0].set_ylim(span)
        panels[row, 0].set_ylabel(plain(series.name))
    _legend(figure)
    return figure


def _legend(figure: Figure) -> None:
    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=4, color=INK, label="observed"),
        Line2D([], [], color=MUTED, linewidth=1.5, label="median"),
        Patch(color=MUTED, alpha=0.5, linewidth=0, label="50 %"),
        Patch(color=MUTED, alpha=0.2, linewidth=0, label="90 %"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=10, frameon=False)


def _band(axes: Axes, series: Series, quantiles: Array, color: str) -> None:
    q05, q25, q50, q75, q95 = quantiles
    axes.fill_between(series.index, q05, q95, color=color, alpha=0.18, linewidth=0)
    axes.fill_between(series.index, q25, q75, color=color, alpha=0.38, linewidth=0)
    axes.plot(series.index, q50, color=color, linewidth=1.5)
    many = series.x.size > 60
    axes.plot(
        series.index,
        series.x,
        "." if many else "o",
        color=INK,
        markersize=2.5 if many else 3.2,
        label="observed",
    )


def _held(x: Array, quantiles: Array) -> str:
    if np.isnan(quantiles).any():
        return "no valid draws"
    return f"90 % band holds {int(((quantiles[0] <= x) & (x <= quantiles[-1])).sum())} of {x.size}"


def view(x: Array, bands: Sequence[Array], logarithmic: bool) -> tuple[float, float]:
    """Limits that hold the data `x` `(m,)` and the quantiles `(5, m)`, but let no wide band squeeze the data."""
    to, back = (np.log10, lambda v: 10.0**v) if logarithmic else (np.asarray, float)
    low, high = float(to(x.min())), float(to(x.max()))
    span = (high - low) or abs(high) or 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        edges = np.array([to(band[[0, -1]]) for band in bands])
    edges = np.clip(edges[np.isfinite(edges)], low - 0.75 * span, high + 0.75 * span)
    low, high = min([low, *edges]), max([high, *edges])
    return back(low - 0.06 * span), back(high + 0.06 * span)


def component_names(observation: Observation) -> list[str]:
    """A name for each number of the observation."""
    length = observation.x.size // len(observation.series or ("x",))
    if not observation.series:
        return [f"x[{i}]" for i in range(length)]
    labels = range(length) if observation.index is None else observation.index
    return [name if length == 1 else f"{name} {label:g}" for name in observation.series for label in labels]


def _intervals(names: list[str], x: Array, bands: Mapping[float, Array]) -> Figure:
    """One panel a component: the intervals of every temperature beside the observed value."""
    columns = min(len(names), 4 if len(names) != 3 else 3)
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(max(4.0, 0.4 + 1.9 * columns), 0.5 + 2.2 * lines), facecolor="white", layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for i, (axes, name) in enumerate(zip(panels, names, strict=False)):
        for place, (beta, quantiles) in enumerate(bands.items()):
            q05, q25, q50, q75, q95 = quantiles[:, i]
            color = beta_color(beta)
            axes.vlines(place, q05, q95, color=color, linewidth=1.6)
            axes.vlines(place, q25, q75, color=color, linewidth=5.0)
            axes.plot(place, q50, "o", color="white", markeredgecolor=color, markersize=5.5)
        axes.axhline(x[i], color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
        tidy(axes)
        axes.grid(False, axis="x")
        axes.set_xlim(-0.6, len(bands) - 0.4)
        axes.set_xticks(range(len(bands)), [f"{beta:g}" for beta in bands])
        axes.set_title(plain(name))
        axes.yaxis.set_major_locator(MaxNLocator(4))
    for axes in panels[len(names) :]:
        axes.remove()
    figure.supxlabel("β (dashed: observed; bars: 50 % and 90 %)", fontsize=10, color=INK)
    return figure
