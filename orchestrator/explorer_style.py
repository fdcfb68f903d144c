"""What the explorer's widgets and pictures share: the page's theme, light or dark."""

from __future__ import annotations

__all__ = ["NEUTRAL", "TEXT", "WIDGETS", "empty_figure", "recolor", "short"]

import re
from collections.abc import Iterable
from typing import Any

from bokeh.models import GlyphRenderer
from bokeh.plotting import figure

#: Readable on a light and on a dark page.
NEUTRAL = "#8a94a0"

#: The page's colours reach axes and titles by these variables (a glyph's colour is a number of its own).
_THEME = """:host {
  /* Bokeh clears its canvas half a pixel off: what the first layout drew would stay along two edges. */
  clip-path: inset(2px 0 0 2px);
  --bk-axis-label-text-color: var(--ink); --bk-major-label-text-color: var(--soft); --bk-axis-line-color: var(--line);
  --bk-major-tick-line-color: var(--line); --bk-minor-tick-line-color: transparent; --bk-grid-line-color: var(--line);
  --bk-background-fill-color: var(--card); --bk-border-fill-color: var(--card); --bk-outline-line-color: transparent;
}
@media (prefers-color-scheme: dark) {
  /* The colours of temperatures are made for a light page. Two thirds of the card's colour is the page's. */
  :host { filter: brightness(1.5); --bk-background-fill-color: var(--page); --bk-border-fill-color: var(--page); }
}"""

#: Between the two signs of what would begin TeX for MathJax: `$$`, `\[`, `\(`.
_TEX = re.compile(r"(?<=\$)(?=\$)|(?<=\\)(?=[\[(])")
_NO_WIDTH = "\u200b"

#: For widgets, each of which lives in a shadow root of its own.
WIDGETS = """:host { color: var(--ink); font-family: inherit; font-size: 15px; }
.bk-input-group > label, .bk-slider-title { color: var(--ink); font-size: 15px; }
.bk-slider-value { font-weight: 600; }
.bk-input {
  background: var(--field); color: var(--ink); border: 1px solid var(--line); border-radius: 8px; font-size: 15px;
}
.bk-input::placeholder { color: var(--soft); opacity: 1; }
.bk-btn { border-radius: 8px; font-size: 15px; }
.bk-btn-default { background: var(--field); color: var(--ink); border-color: var(--line); }
.bk-btn-default:hover { background: var(--line); border-color: var(--line); }
.bk-btn-primary { background: var(--accent); color: var(--on-accent); border-color: var(--accent); }
.bk-btn-primary:hover { filter: brightness(1.1); background: var(--accent); border-color: var(--accent); }
.bk-spin-wrapper > .bk-spin-btn { background: var(--field); border-color: var(--line); }
.noUi-target { background: var(--line); border-color: transparent; box-shadow: none; height: 10px; }
.noUi-target .noUi-handle, .noUi-horizontal .noUi-handle {
  background: var(--accent); border: 2px solid var(--card); box-shadow: 0 1px 4px rgb(0 0 0 / 35%);
  width: 24px; height: 24px; right: -12px; top: -8px; border-radius: 50%;
}
.noUi-connect { background: var(--accent); opacity: 0.45; }
.noUi-handle:before, .noUi-handle:after { display: none; }
.slick-header-columns, .slick-header-column.ui-state-default {
  background: var(--field) !important; color: var(--soft); border-color: var(--line) !important;
}
.slick-row, .slick-cell, .slick-viewport { background: var(--card) !important; color: var(--ink); }
.slick-cell { border-color: var(--line) !important; }
.slick-cell.active { outline: 2px solid var(--accent); }
"""

#: For texts and tables that the server writes.
TEXT = """:host { overflow-x: auto; color: var(--ink); font-family: inherit; font-size: 15px; line-height: 1.5; }
p { margin: 0 0 6px; color: var(--soft); }
p.bad {
  color: var(--bad); background: var(--bad-back); border-radius: 8px; padding: 8px 14px; overflow-wrap: anywhere;
}
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { padding: 5px 10px; text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; } th:first-child { text-align: left; }
tr + tr > * { border-top: 1px solid var(--line); } tr + tr > th { color: var(--ink); }
"""


def empty_figure(**options: Any) -> figure:
    """A figure as wide as its place."""
    return figure(
        tools="",
        toolbar_location=None,
        sizing_mode="stretch_width",
        stylesheets=[_THEME],
        **options,
    )


def recolor(renderers: Iterable[GlyphRenderer], color: str) -> None:
    """Gives all glyphs one colour, areas and lines; a part without colour stays without."""
    for renderer in renderers:
        glyph = renderer.glyph
        # Asked for a property that it has not, Bokeh would look for names that are similar.
        own = {"fill_color", "line_color"} & glyph.properties()
        parts = [k for k in own if getattr(glyph, k) is not None]
        glyph.update(**dict.fromkeys(parts, color))


def short(name: str, length: int = 14) -> str:
    """`name`, cut to fit beside an axis, and never taken for TeX: a file's names must not run as a formula's code."""
    return _TEX.sub(_NO_WIDTH, name if len(name) <= length else name[: length - 1] + "…")
