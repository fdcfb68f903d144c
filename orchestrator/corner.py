r"""The corner plot: every marginal and every pair of parameters, all temperatures on top of each other.

Densities are kernel estimates on a grid. The bandwidth follows the narrowest quarter of the draws, so that
separate modes stay separate:

.. math:: h = s \, n^{-1/(4 + q)}, \qquad s = \min(\mathrm{sd},\ w_{1/4} / 0.637),

where `w_{1/4}` is the width of the shortest interval that holds a quarter of the draws (0.637 standard deviations
of a normal) and q is 1 or 2. Contours enclose the highest-density regions of 50 % and 90 %.
"""

from __future__ import annotations

__all__ = ["MASSES", "MOST_PARAMETERS", "Binned", "binned", "corner", "density", "hpd_levels", "pair_density"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import contourpy
import numpy as np
from contourpy import FillType, LineType
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator

from simulators.outcome import Array

from .figure_style import INK, beta_color, beta_label, finite_rows, limits, plain, tidy

MOST_PARAMETERS = 10
MASSES = (0.9, 0.5)
_MIN_DRAWS = 20


def corner(draws: Mapping[float, Array], names: Sequence[str]) -> Figure:
    """Marginals and pairs of the posterior at several temperatures.

    Arguments:
        draws: beta to draws `(n, d)`; rows with NaN are left out.
        names: Names of the d parameters. Of more than ten the first ten are shown, as the title then says.
    """
    samples = {beta: finite_rows(values) for beta, values in sorted(draws.items())}
    d = min(len(names), MOST_PARAMETERS)
    side = 4.4 if d == 1 else max(5.6, 1.05 * d + 1.0)
    figure = Figure(figsize=(side, side), facecolor="white")
    top, left = 1.0 - (0.62 if len(names) > d else 0.42) / side, 0.72 / side
    grid = figure.add_gridspec(d, d, left=left, right=0.975, bottom=0.78 / side, top=top, wspace=0.08, hspace=0.08)
    pooled = np.concatenate([values[:, :d] for values in samples.values()]) if samples else np.empty((0, d))
    ranges = [limits(pooled[:, i]) for i in range(d)]
    for row in range(d):
        for column in range(row + 1):
            axes = figure.add_subplot(grid[row, column])
            for beta, values in samples.items():
                if row == column:
                    _marginal(axes, values[:, row], beta_color(beta))
                else:
                    _pair(axes, values[:, column], values[:, row], beta_color(beta))
            _dress(axes, ranges, row, column, names, d)
    figure.align_labels()
    _legend(figure, list(samples), d)
    if len(names) > d:
        figure.suptitle(f"The first {d} of {len(names)} parameters", x=left, ha="left", fontsize=12, color=INK)
    return figure


def density(values: Array, bins: int = 160) -> tuple[Array, Array]:
    """Kernel estimate of the density of `values` `(n,)`: grid `(bins,)` and density `(bins,)`, with unit integral."""
    low, high = limits(values)
    counts, edges = np.histogram(values, bins, (low, high))
    step = float(edges[1] - edges[0])
    kernel = _kernel(bins, step / _bandwidth(values, 1))
    smooth = kernel / kernel.sum(axis=0) @ counts  # What lies near an end stays inside.
    return (edges[1:] + edges[:-1]) / 2, smooth / (smooth.sum() * step)


@dataclass(frozen=True, eq=False)
class Binned:
    """Draws of one parameter, put into bins once for all its pairs.

    Attributes:
        grid: Middles of the bins, `(bins,)`.
        index: Bin of each draw, `(n,)`; `bins` for those outside.
        kernel: What a draw in one bin adds to every bin of a kernel estimate in two dimensions, `(bins, bins)`.
    """

    grid: Array
    index: np.ndarray
    kernel: Array


def binned(values: Array, bins: int = 72) -> Binned:
    """`values` `(n,)`, not all alike, in bins that hold all but stray ones."""
    low, high = limits(values, pad=0.2)
    step = (high - low) / bins
    index = np.floor((values - low) / step).astype(np.int64)
    index[(index < 0) | (index > bins)] = bins
    kernel = _kernel(bins, step / _bandwidth(values, 2))
    kernel /= kernel[:, bins // 2].sum()
    return Binned(np.linspace(low + step / 2, high - step / 2, bins), index, kernel)


def pair_density(x: Binned, y: Binned) -> Array:
    """Kernel estimate of the density of pairs, up to a factor, `(bins, bins)`; rows belong to `y`."""
    bins = len(x.grid)
    counts = np.bincount(y.index * (bins + 1) + x.index, minlength=(bins + 1) ** 2)
    inside = counts.reshape(bins + 1, bins + 1)[:bins, :bins].astype(np.float64)
    # Two small products of matrices take a quarter of the time of two convolutions.
    return np.asarray(y.kernel @ inside @ x.kernel)


def hpd_levels(mass: Array, shares: Sequence[float]) -> list[float]:
    """The levels above which cells of `mass` (any shape) hold each of `shares` of the total."""
    ordered = np.sort(mass, axis=None)[::-1]
    held = np.cumsum(ordered) / ordered.sum()
    return [float(ordered[min(int(np.searchsorted(held, share)), ordered.size - 1)]) for share in shares]


def _kernel(bins: int, step: float) -> Array:
    """What a draw in one bin adds to every bin, `(bins, bins)`, normal; `step` is the width of a bin in bandwidths."""
    distance = np.subtract.outer(np.arange(bins), np.arange(bins)) * step
    return np.asarray(np.exp(-np.square(distance) / 2))


def _bandwidth(values: Array, dimensions: int) -> float:
    ordered = np.sort(values)
    quarter = max(1, len(values) // 4)
    narrowest = float((ordered[quarter:] - ordered[:-quarter]).min()) / 0.637
    scale = min(float(values.std()), narrowest) or float(values.std())
    return float(scale * len(values) ** (-1.0 / (4 + dimensions)))


def _is_constant(values: Array) -> bool:
    return bool(np.ptp(values) <= 1e-9 * np.abs(values).max())


def _marginal(axes: Axes, values: Array, color: str) -> None:
    """Density scaled to a peak of one, so that wide and narrow temperatures are both readable."""
    if values.size == 0:
        return
    if _is_constant(values) or values.size < _MIN_DRAWS:
        axes.vlines(values[:_MIN_DRAWS], 0.0, 1.0, color=color, linewidth=1.6)
        return
    grid, height = density(values)
    axes.plot(grid, height / height.max(), color=color, linewidth=1.6)
    axes.fill_between(grid, height / height.max(), color=color, alpha=0.08, linewidth=0)


def _pair(axes: Axes, x: Array, y: Array, color: str) -> None:
    if x.size < _MIN_DRAWS or _is_constant(x) or _is_constant(y):
        axes.plot(x[:500], y[:500], ".", color=color, markersize=2.5)
        return
    columns, rows = binned(x), binned(y)
    mass = pair_density(columns, rows)
    outer, inner = hpd_levels(mass, MASSES)
    if outer < inner < mass.max():
        # With `contour` and `contourf`, whose sets know much more, the whole figure takes half as long again to build.
        contours = contourpy.contour_generator(
            columns.grid, rows.grid, mass, line_type=LineType.Separate, fill_type=FillType.OuterCode
        )
        areas = [Path(points, codes) for points, codes in zip(*contours.filled(inner, np.inf), strict=True)]
        axes.add_collection(PathCollection(areas, facecolors=[to_rgba(color, 0.22)], linewidths=0), autolim=False)
        for level, width in ((outer, 1.3), (inner, 0.7)):
            lines = LineCollection(contours.lines(level), colors=[color], linewidths=width)  # type: ignore[arg-type]
            axes.add_collection(lines, autolim=False)
    else:
        axes.plot(x[:500], y[:500], ".", color=color, markersize=2.5)


def _dress(axes: Axes, ranges: list[tuple[float, float]], row: int, column: int, names: Sequence[str], d: int) -> None:
    tidy(axes, grid=False)
    size, label_size = (10.0, 11.0) if d <= 5 else (8.5, 9.5)
    axes.set_xlim(ranges[column])
    axes.xaxis.set_major_locator(MaxNLocator(3 if d > 3 else 4, prune="both"))
    axes.tick_params(labelsize=size, labelbottom=row == d - 1, labelleft=row != column and column == 0)
    if row == column:
        axes.set_ylim(0.0, 1.12)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
    else:
        axes.set_ylim(ranges[row])
        axes.yaxis.set_major_locator(MaxNLocator(3 if d > 3 else 4, prune="both"))
    length = 26 if d <= 3 else 12
    if row == d - 1:
        axes.set_xlabel(plain(names[column], length), fontsize=label_size)
        for label in axes.get_xticklabels():
            label.set_rotation(0 if d <= 3 else 45)
    if column == 0 and row > 0:
        axes.set_ylabel(plain(names[row], length), fontsize=label_size)


def _legend(figure: Figure, betas: list[float], d: int) -> None:
    handles = [Line2D([], [], color=beta_color(beta), linewidth=2.5, label=beta_label(beta)) for beta in betas]
    if not handles:
        return
    if d == 1:
        figure.axes[0].legend(handles=handles, fontsize=10, frameon=False)
    else:
        figure.legend(handles=handles, loc="upper right", bbox_to_anchor=(0.97, 0.975), fontsize=11, frameon=False)
