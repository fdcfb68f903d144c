"""The explorer's predictive bands over the observation: Bokeh figures that get new quantiles with every move."""

from __future__ import annotations

__all__ = ["BandPicture"]

from collections.abc import Mapping
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, FixedTicker, GlyphRenderer, LogTicker, PrintfTickFormatter
from bokeh.plotting import figure

from simulators.outcome import Array

from .explorer_style import NEUTRAL, empty_figure, recolor, short
from .figure_style import INK, span_is_wide
from .observation import Observation
from .predictive import Series, component_names, series_of, view

#: Columns of the sources: the quantiles of `predictive.QUANTILES` and where they are.
_KEYS = ("q05", "q25", "q50", "q75", "q95")
_OBSERVED: dict[str, Any] = {"size": 6, "fill_color": "white", "line_color": INK, "line_width": 1.3}


class BandPicture:
    """What the posterior predicts over one observation: a figure a series, or one for few components.

    Arguments:
        observation: What was observed, `(k,)`.
        widest: Quantiles `(5, k)` at the lowest temperature, which the axes shall hold too; None if unknown.

    Raises:
        ObservationError: The observation is not made of series of equal length.
    """

    def __init__(self, observation: Observation, widest: Array | None) -> None:
        self._series = series_of(observation)
        self._views: list[tuple[float, float]] = []
        self._sources: list[ColumnDataSource] = []
        self._colored: list[GlyphRenderer] = []
        bands = [] if widest is None else [widest]
        self.figures: list[figure] = []
        for i, series in enumerate(self._series):
            span = view(series.x, [band[:, series.part] for band in bands], span_is_wide(series.x))
            self._views.append(span)
            self.figures.append(self._row(series, span, last=i == len(self._series) - 1))
        if not self._series:
            x = observation.x
            ends = np.array([x, *(band[k] for band in bands for k in (0, -1))])
            self._views = [_padded(column, 0.06) for column in ends.T]
            self.figures.append(self._components(component_names(observation), x))

    def update(self, quantiles: Array | None, color: str) -> None:
        """Shows the quantiles `(5, k)` of the predictive, or none."""
        recolor(self._colored, color)
        if quantiles is None:
            for source in self._sources:
                source.data = {key: [] for key in ("at", *_KEYS)}
            return
        if not self._series:
            self._sources[0].data = _columns(np.arange(quantiles.shape[1]), self._placed(quantiles))
            return
        for series, source, (low, high) in zip(self._series, self._sources, self._views, strict=True):
            # What lies far outside cannot be seen, but would overflow the canvas (and is no logarithm, below zero).
            reach = high - low
            floor = low / 10.0 if span_is_wide(series.x) else low - reach
            source.data = _columns(series.index, np.clip(quantiles[:, series.part], floor, high + reach))

    def _row(self, series: Series, span: tuple[float, float], last: bool) -> figure:
        plot = empty_figure(
            height=250 if last else 215,
            y_axis_type="log" if span_is_wide(series.x) else "linear",
            y_range=span,
            x_range=_padded(series.index, 0.02),
            y_axis_label=short(series.name, 24),
            x_axis_label=short(series.index_name, 24) if last else None,
        )
        plot.xgrid.visible = False
        plot.yaxis.formatter = PrintfTickFormatter(format="%g")
        if span_is_wide(series.x):
            plot.yaxis.ticker = LogTicker(mantissas=[1, 3], desired_num_ticks=8)
        source = self._source()
        self._colored += [
            plot.varea("at", "q05", "q95", source=source, fill_alpha=0.2),
            plot.varea("at", "q25", "q75", source=source, fill_alpha=0.35),
            plot.line("at", "q50", source=source, line_width=2),
        ]
        plot.scatter(series.index, series.x, **_OBSERVED)
        return plot

    def _components(self, names: list[str], x: Array) -> figure:
        """One row a component, each on a scale of its own, which its label tells."""
        count = len(names)
        plot = empty_figure(height=70 + 46 * count, x_range=(-0.03, 1.03), y_range=(count - 0.4, -0.6))
        plot.grid.visible = False
        plot.xaxis.visible = False
        plot.yaxis.ticker = FixedTicker(ticks=list(range(count)))
        plot.yaxis.major_label_overrides = {
            i: f"{short(name)}\n{low:.3g} … {high:.3g}"
            for i, (name, (low, high)) in enumerate(zip(names, self._views, strict=True))
        }
        rows = np.arange(count)
        plot.segment(np.zeros(count), rows, np.ones(count), rows, line_color=NEUTRAL, line_alpha=0.35)
        source = self._source()
        self._colored += [
            plot.segment("q05", "at", "q95", "at", source=source, line_width=3),
            plot.segment("q25", "at", "q75", "at", source=source, line_width=10),
        ]
        plot.scatter(
            "q50", "at", source=source, size=7, marker="dash", angle=np.pi / 2, line_color="white", line_width=2
        )
        plot.scatter(self._placed(x[None])[0], rows, **_OBSERVED)
        return plot

    def _source(self) -> ColumnDataSource:
        self._sources.append(ColumnDataSource({key: [] for key in ("at", *_KEYS)}))
        return self._sources[-1]

    def _placed(self, values: Array) -> Array:
        """`values` `(m, k)` on each component's scale from 0 to 1; what lies outside is put at the edge."""
        low, high = np.array(self._views).T
        return np.clip((values - low) / (high - low), -0.02, 1.02)


def _columns(at: Array, quantiles: Array) -> Mapping[str, Array]:
    return {"at": at, **dict(zip(_KEYS, quantiles, strict=True))}


def _padded(values: Array, share: float) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = share * (high - low) or abs(low) / 2 or 0.5
    return low - margin, high + margin
