"""What all figures share: ink, one colour a temperature, text taken literally, limits that ignore stray points."""

from __future__ import annotations

__all__ = [
    "ACCENT",
    "BAD",
    "GRID",
    "INK",
    "KINDS",
    "MOST_PANELS",
    "MUTED",
    "beta_color",
    "beta_label",
    "finite_rows",
    "limits",
    "log_axis",
    "panel_grid",
    "plain",
    "span_is_wide",
    "tidy",
]

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from simulators.outcome import Array

INK, MUTED, GRID, ACCENT, BAD = "#1b2430", "#5c6773", "#e3e7ec", "#2563a8", "#c2410c"

MOST_PANELS = 20

#: Colours of categories, apart from each other for colour-blind readers too (Okabe & Ito).
KINDS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5c6773")

#: From cold (large beta) to hot (beta near 0).
_TEMPERATURES = LinearSegmentedColormap.from_list(
    "temperatures", ["#08303f", "#0f6e84", "#3a55b4", "#8a3ba3", "#cf3d6b", "#ec7a3c", "#f2b134"]
)
_MEAN_BETA, _STEEPNESS = 0.5, 1.0


def beta_color(beta: float) -> str:
    """The colour of a temperature: warm for small beta, dark for large, the same in every figure.

    A logistic curve in log beta spreads the usual range over the colormap and leaves no two temperatures alike.
    """
    place = 1.0 / (1.0 + (max(beta, 1e-12) / _MEAN_BETA) ** _STEEPNESS)
    return to_hex(_TEMPERATURES(place))


def beta_label(beta: float) -> str:
    """How a temperature is called in legends."""
    return f"β = {beta:g}"


def plain(text: str, length: int = 26) -> str:
    """`text` on one line and at most `length` long, its dollars not taken for mathematics."""
    line = " ".join(str(text).split())
    if len(line) > length:
        line = line[: length - 1] + "…"
    return line.replace("$", r"\$")


def tidy(axes: Axes, *, grid: bool = True) -> None:
    """The look of a panel: no box, a faint grid, dark text."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#9aa4af")
    axes.tick_params(which="both", colors=MUTED, labelcolor=INK, labelsize=10, length=3, width=0.8)
    axes.tick_params(which="minor", length=2)
    for label in (axes.xaxis.label, axes.yaxis.label, axes.title):
        label.set_color(INK)
        label.set_fontsize(11)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(True, color=GRID, linewidth=0.8)


def finite_rows(draws: Array) -> Array:
    """The rows of `draws` `(n, d)` (or `(n,)`) without NaN or infinity, as `(m, d)`."""
    values = np.asarray(draws, dtype=np.float64)
    if values.ndim == 1:
        values = values[:, None]
    return values[np.isfinite(values).all(axis=1)]


def limits(values: Array, tail: float = 0.001, pad: float = 0.06) -> tuple[float, float]:
    """An interval that holds all finite `values` but a share `tail` on either side, and has a width."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = _ends(finite, tail)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = 0.5 * abs(low) or 0.5
        return low - margin, low + margin
    return low - pad * (high - low), high + pad * (high - low)


def _ends(values: Array, tail: float) -> tuple[float, float]:
    """`np.quantile(values, [tail, 1 - tail])`, whose calls are most of its time for a thousand values."""
    last = values.size - 1
    k = min(int(tail * last), max(last - 1, 0))
    share, places = tail * last - k, [k, min(k + 1, last), max(last - k - 1, 0), last - k]
    a, b, c, d = np.partition(values, places)[places].tolist()
    return a + share * (b - a), d - share * (d - c)


def span_is_wide(values: Array, decades: float = 1.0) -> bool:
    """Whether all finite `values` are positive and span more than `decades`: a logarithmic axis suits them."""
    finite = values[np.isfinite(values)]
    return bool(finite.size > 1 and finite.min() > 0 and finite.max() > 10.0**decades * finite.min())


def log_axis(axes: Axes, low: float, high: float) -> None:
    """A logarithmic vertical axis from `low` to `high`, labelled with plain numbers where there is room for them."""
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    decades = np.log10(high / low)
    if decades > 4:
        return
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if decades > 1 else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def panel_grid(
    count: int, height: float, columns: int = 3, heading: float = 0.0, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels, at most `MOST_PANELS` + 1, in as many rows as are needed."""
    count = max(1, min(count, MOST_PANELS + 1 if columns == 2 else MOST_PANELS))
    columns = min(count, 2 if count == 4 else columns)
    rows = math.ceil(count / columns)
    # Narrow enough for the text to be readable on a phone.
    width = max(4.4, 0.6 + (2.4 if columns <= 2 else 1.65) * columns)
    figure = Figure(figsize=(width, 0.5 + heading + height * rows), facecolor="white", layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=sharey).ravel().tolist()
    for axes in panels[count:]:
        axes.remove()
    return figure, panels[:count]
