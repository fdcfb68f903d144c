"""The explorer's pair plot: one Bokeh figure, made once, that gets new outlines with every move of the slider."""

from __future__ import annotations

__all__ = ["PairPicture"]

from collections.abc import Sequence
from typing import Any

import contourpy
import numpy as np
from bokeh.models import ColumnDataSource, FixedTicker, GlyphRenderer, LinearAxis
from matplotlib.ticker import MaxNLocator

from simulators.outcome import Array

from .corner import MASSES, MOST_PARAMETERS, Binned, binned, density, hpd_levels, pair_density
from .explorer_style import NEUTRAL, empty_figure, recolor, short
from .figure_style import finite_rows, limits

_GAP = 0.14
_BINS = 48
#: Radians by which labels that are wider than their places are turned.
_SLANT = 0.8
#: Share of the widest posterior that may lie beyond either end of an axis, lest the narrow ones become dots.
_TAIL = 0.06
#: What contour_generator would choose.
_CONTOURS: dict[str, Any] = {
    "corner_mask": True,
    "line_type": contourpy.LineType.Separate,
    "fill_type": contourpy.FillType.OuterOffset,
    "quad_as_tri": False,
    "z_interp": contourpy.ZInterp.Linear,
}


class PairPicture:
    """Every parameter and every pair, in one figure: cell (row, column) is a unit square of its own.

    Arguments:
        names: Names of the d parameters; of more than ten the first ten are shown.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names[:MOST_PARAMETERS]
        self._ranges: list[tuple[float, float]] = [(0.0, 1.0)] * len(self.names)
        side = len(self.names) * (1.0 + _GAP) - _GAP
        self.figure = empty_figure(
            x_range=(-0.02, side + 0.02), y_range=(-0.02, side + 0.02), aspect_ratio=1.0, min_width=68 * len(self.names)
        )
        self.figure.grid.visible = False
        self._ticks = [self.figure.xaxis[0], self.figure.yaxis[0]]
        for axis in self._ticks:
            axis.major_tick_line_alpha = 0.0
            axis.axis_line_alpha = 0.0
            axis.major_label_text_font_size = "10px"
        self._ticks[0].major_label_orientation = _SLANT
        self._name_axes()
        self._frames()
        self._reference = ColumnDataSource({"x": [], "y": []})
        self._inner, self._outer = (ColumnDataSource({"x": [], "y": []}) for _ in range(2))
        self.figure.line(
            "x", "y", source=self._reference, line_color=NEUTRAL, line_width=1.2, line_dash=[4, 3], line_alpha=0.9
        )
        self._outer.name = "outlines"
        self._colored: list[GlyphRenderer] = [
            self.figure.patch("x", "y", source=self._inner, fill_alpha=0.25, line_width=0.8),
            self.figure.line("x", "y", source=self._outer, line_width=1.7),
        ]

    def frame(self, widest: Array, narrowest: Array, reference: Array | None = None) -> None:
        """Sets the axes to hold the posterior `(n, d)` at both ends of the temperatures, and draws another, dashed."""
        ends = finite_rows(widest), finite_rows(narrowest)
        for j in range(len(self.names)):
            (a, b), (c, d) = limits(ends[0][:, j], tail=_TAIL), limits(ends[1][:, j])
            self._ranges[j] = (min(a, c), max(b, d))
        labels: tuple[dict[float, str], dict[float, str]] = ({}, {})
        for j, (low, high) in enumerate(self._ranges):
            ticks = np.asarray(MaxNLocator(3 if len(self.names) > 3 else 6, prune="both").tick_values(low, high))
            for value in ticks[(ticks > low) & (ticks < high)].tolist():
                place = (value - low) / (high - low)
                labels[0][_origin(j) + place] = f"{value:g}"
                if j > 0:
                    labels[1][_origin(len(self.names) - 1 - j) + place] = f"{value:g}"
        for axis, texts in zip(self._ticks, labels, strict=True):
            axis.ticker = FixedTicker(ticks=list(texts))
            axis.major_label_overrides = dict(texts)
        lines = [] if reference is None else self._outlines(finite_rows(reference))[1]
        self._reference.data = _joined(lines)

    def update(self, draws: Array, color: str) -> None:
        """Shows draws `(n, d)`."""
        inner, outer = self._outlines(finite_rows(draws))
        self._inner.data, self._outer.data = _joined(inner), _joined(outer)
        recolor(self._colored, color)

    def _outlines(self, rows: Array) -> tuple[list[Array], list[Array]]:
        """Outlines of areas that hold 50 %, and of 90 %, in the figure's coordinates, each `(m, 2)`."""
        outer: list[Array] = []
        inner: list[Array] = []
        columns = [binned(v, _BINS) if len(v) > 1 and np.ptp(v) > 0.0 else None for v in rows.T[: len(self.names)]]
        for row in range(len(self.names)):
            for column in range(row):
                lines = self._pair(columns[column], columns[row], row, column)
                outer += lines[0]
                inner += lines[1]
            curve = self._marginal(rows[:, row], row)
            if len(curve):
                outer.append(curve)
                # The density falls to zero at both ends of its grid: the curve closes along the cell's floor.
                floor = _floor(row, len(self.names))
                inner.append(np.concatenate([[[curve[0, 0], floor]], curve, [[curve[-1, 0], floor]]]))
        return inner, outer

    def _marginal(self, values: Array, j: int) -> Array:
        if len(values) < 2 or np.ptp(values) <= 0.0:
            return np.empty((0, 2))
        grid, height = density(values)
        low, high = self._ranges[j]
        seen = (grid >= low) & (grid <= high)
        x = _origin(j) + (grid[seen] - low) / (high - low)
        return np.column_stack([x, _floor(j, len(self.names)) + 0.92 * height[seen] / height.max()])

    def _pair(self, x: Binned | None, y: Binned | None, row: int, column: int) -> tuple[list[Array], list[Array]]:
        if x is None or y is None:
            return [], []
        (x_low, x_high), (y_low, y_high) = self._ranges[column], self._ranges[row]
        mass = pair_density(x, y)
        levels = hpd_levels(mass, MASSES)
        columns, rows = (x.grid >= x_low) & (x.grid <= x_high), (y.grid >= y_low) & (y.grid <= y_high)
        if columns.sum() < 2 or rows.sum() < 2:
            return [], []
        inside = mass[rows][:, columns]
        across, up = np.empty_like(inside), np.empty_like(inside)
        across[:] = _origin(column) + (x.grid[columns] - x_low) / (x_high - x_low)
        up.T[:] = _floor(row, len(self.names)) + (y.grid[rows] - y_low) / (y_high - y_low)
        # Without contour_generator, which first makes a masked array: most of the time, for grids as small as these.
        contours = contourpy.SerialContourGenerator(across, up, inside, None, **_CONTOURS)  # type: ignore[arg-type]
        outer, inner = ([np.asarray(line) for line in contours.lines(level)] for level in levels)
        return outer, inner

    def _name_axes(self) -> None:
        n = len(self.names)
        places = {_origin(j) + 0.5: name for j, name in enumerate(self.names)}
        above = {_floor(j, n) + 0.5: name for j, name in enumerate(self.names) if j > 0}
        # Of many parameters or on a phone a cell is as wide as eight signs.
        slanted = n > 2 and max(map(len, self.names)) > 8
        for side, texts in (("below", places), ("left", above)):
            axis = LinearAxis(
                ticker=FixedTicker(ticks=list(texts)),
                major_label_overrides={place: short(name) for place, name in texts.items()},
                major_tick_line_alpha=0.0,
                axis_line_alpha=0.0,
                major_label_text_font_size="11px" if slanted else "12px",
                major_label_text_font_style="bold",
                major_label_orientation=_SLANT if slanted else "horizontal" if side == "below" else "vertical",
                major_label_standoff=0,
            )
            self.figure.add_layout(axis, side)

    def _frames(self) -> None:
        n = len(self.names)
        cells = [(r, c) for r in range(n) for c in range(r + 1)]
        left, floor = [_origin(c) for _, c in cells], [_floor(r, n) for r, _ in cells]
        top = [f + (0.0 if r == c else 1.0) for f, (r, c) in zip(floor, cells, strict=True)]
        style: dict[str, Any] = {"line_color": NEUTRAL, "line_alpha": 0.55}
        self.figure.segment(left, floor, [x + 1.0 for x in left], floor, **style)
        self.figure.segment(left, floor, left, top, **style)


def _origin(column: int) -> float:
    """Left edge of a column's cells."""
    return column * (1.0 + _GAP)


def _floor(row: int, n: int) -> float:
    """Lower edge of a row's cells, the first row on top."""
    return (n - 1 - row) * (1.0 + _GAP)


def _joined(lines: Sequence[Array]) -> dict[str, np.ndarray]:
    """All lines as one, gaps as NaN: one array is sent much faster than many."""
    gap = np.full((1, 2), np.nan)
    parts = [part for line in lines for part in (line, gap)]
    points = np.concatenate(parts).astype(np.float32) if parts else np.empty((0, 2), np.float32)
    return {"x": points[:, 0], "y": points[:, 1]}
