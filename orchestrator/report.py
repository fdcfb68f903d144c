"""The report of a campaign: one HTML file that needs nothing else, for a desk, a phone, light and dark."""

from __future__ import annotations

__all__ = [
    "RESOLUTIONS",
    "CalibrationResult",
    "Comparison",
    "Failure",
    "MlflowRun",
    "ReportData",
    "ReportFigure",
    "Section",
    "Summary",
    "Width",
    "summarize",
    "write_report",
]

import base64
import contextlib
import math
import os
import struct
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from simulators.outcome import Array, Status

from .figure_style import finite_rows
from .figures import sbc_ranks
from .recommendation import LEVEL, Recommendation
from .rendering import Renderer
from .spending import KindCost, Timeline
from .tracking_uri import without_secret

Section = Literal["spent", "temperature", "answer", "calibration", "simulations"]

MOST_BYTES = 5 * 2**20
_TEXT_BYTES = 2**18
#: Dots per inch, tried in turn until the figures fit.
RESOLUTIONS = (144, 110, 80, 60)
_CSS_PIXELS = 96


@dataclass(frozen=True, eq=False)
class ReportFigure:
    """A figure and where it belongs; `image` is a `Figure`, or PNG bytes; `name` that of its file, without suffix."""

    title: str
    caption: str
    image: Figure | bytes
    section: Section
    name: str = "figure"


@dataclass(frozen=True)
class Failure:
    """How many simulations ended with this status for this reason."""

    status: str
    reason: str
    count: int


@dataclass(frozen=True)
class Summary:
    """One parameter's posterior at one temperature: mean, standard deviation and quantiles."""

    parameter: str
    mean: float
    std: float
    q05: float
    q50: float
    q95: float


@dataclass(frozen=True)
class Comparison:
    """One parameter's posterior at beta = 1 beside the known one; `ok` is the caller's verdict."""

    parameter: str
    expected_mean: float
    expected_std: float
    mean: float
    std: float
    ok: bool

    @property
    def difference(self) -> float:
        """`(mean - expected_mean) / expected_std`."""
        return (self.mean - self.expected_mean) / self.expected_std

    @property
    def ratio(self) -> float:
        """`std / expected_std`."""
        return self.std / self.expected_std


@dataclass(frozen=True)
class Width:
    """One parameter's standard deviation at the lowest temperature and at beta = 1; `ok` if the former is larger."""

    parameter: str
    std_low: float
    std_one: float
    ok: bool


@dataclass(frozen=True, eq=False)
class CalibrationResult:
    """SBC over one population.

    Attributes:
        population: What theta was drawn from, in words.
        ranks: `(n, d)` in [0, 1].
        p_values: Of the hypothesis that a parameter's ranks are uniform, `(d,)`.
        passed: Overall.
        verdict: One honest sentence.
    """

    population: str
    ranks: Array
    p_values: Sequence[float]
    passed: bool
    verdict: str


@dataclass(frozen=True)
class MlflowRun:
    """Where the run is tracked; credentials in the URI are left out of the report."""

    tracking_uri: str
    run_id: str
    model_name: str | None = None


@dataclass(frozen=True, eq=False)
class ReportData:
    """All that a report says.

    Attributes:
        name: Name of the campaign.
        question: What was asked, in sentences: targeted or amortized, and what was observed.
        parameters: Names of the d parameters.
        config_yaml: The configuration.
        budget: The budget in words.
        counts: Status to number of simulations.
        simulator_seconds: Sum over all simulations.
        wall_seconds: Of the whole campaign.
        versions: Program to version.
        seed: Seed of the campaign.
        usage: Code that uses the model, to be copied.
        posterior: beta to one summary a parameter.
        efficiency: beta to `TemperedPosterior.efficiency` at the observation; empty where that is not known.
        trained: Whether there is a posterior; if not, the campaign is under way, or waits to be continued.
        failures: The most frequent ones.
        costs: One entry a kind of proposal.
        timeline: Simulations at work over time, None if too few have run.
        recommendation: Which temperature to use, None where that cannot be said.
        comparison: Beside a known posterior, empty if there is none.
        comparison_rule: What counts as agreement, in words.
        widths: Whether the posterior widens at the lowest temperature.
        beta_low: That temperature.
        calibration: One result a population.
        warnings: What the reader must know.
        figures: In the order in which they appear within their sections.
        mlflow: None if the campaign was not tracked.
    """

    name: str
    question: str
    parameters: Sequence[str]
    config_yaml: str
    budget: str
    counts: Mapping[str, int]
    simulator_seconds: float
    wall_seconds: float
    versions: Mapping[str, str]
    seed: int
    usage: str
    posterior: Mapping[float, Sequence[Summary]] = field(default_factory=dict)
    efficiency: Mapping[float, float] = field(default_factory=dict)
    trained: bool = True
    failures: Sequence[Failure] = ()
    costs: Sequence[KindCost] = ()
    timeline: Timeline | None = None
    recommendation: Recommendation | None = None
    comparison: Sequence[Comparison] = ()
    comparison_rule: str = ""
    widths: Sequence[Width] = ()
    beta_low: float | None = None
    calibration: Sequence[CalibrationResult] = ()
    warnings: Sequence[str] = ()
    figures: Sequence[ReportFigure] = ()
    mlflow: MlflowRun | None = None

    @property
    def simulations(self) -> int:
        """All simulations."""
        return sum(self.counts.values())

    @property
    def failed(self) -> int:
        """Simulations that are not ok."""
        return self.simulations - self.counts.get(Status.OK, 0)


@dataclass(frozen=True)
class _Image:
    """A figure ready for the page: `width` in CSS pixels."""

    title: str
    caption: str
    section: Section
    png: bytes
    width: int

    @property
    def source(self) -> str:
        """A data URL."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


def summarize(draws: Array, names: Sequence[str]) -> list[Summary]:
    """One summary a parameter of posterior draws `(n, d)`; rows with NaN are left out."""
    rows = finite_rows(draws)
    if not len(rows):
        return [Summary(name, *[math.nan] * 5) for name in names]
    mean, std, quantiles = rows.mean(axis=0), rows.std(axis=0), np.quantile(rows, [0.05, 0.5, 0.95], axis=0)
    return [
        Summary(name, float(mean[i]), float(std[i]), *(float(q) for q in quantiles[:, i]))
        for i, name in enumerate(names)
    ]


def write_report(data: ReportData, path: Path, renderer: Renderer | None = None) -> list[bytes]:
    """Writes the report as one HTML file, whole or not at all; a report already at `path` is replaced.

    Returns the PNGs of `data.figures` as they are in the page. They are drawn by `renderer`, or here.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=_number, duration=_duration, beta=lambda beta: f"{beta:g}", sentence=_sentence)
    with contextlib.nullcontext(renderer) if renderer else Renderer(apart=False) as drawing:
        images = _images(data, drawing)
    page = environment.get_template("report.html.j2").render(
        data=data,
        images=images[: len(data.figures)],
        rank_images=images[len(data.figures) :],
        betas=sorted(data.posterior),
        main_beta=min(data.posterior, key=lambda beta: abs(math.log(beta)), default=None),
        level=LEVEL,
        tracking_uri=without_secret(data.mlflow.tracking_uri) if data.mlflow else "",
    )
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return [image.png for image in images[: len(data.figures)]]


def _images(data: ReportData, renderer: Renderer) -> list[_Image]:
    """All figures at the best resolution at which they fit; the last are the ranks, one a population."""
    ranks = [
        ReportFigure(
            f"Ranks: {result.population}",
            "Difference between the distribution of the ranks and a uniform one. Of calibrated posteriors, 95 in 100 "
            "have all curves inside the grey bands everywhere.",
            sbc_ranks(result.ranks, data.parameters, result.population),
            "calibration",
        )
        for result in data.calibration
    ]
    figures = [*data.figures, *ranks]
    images: list[_Image] = []
    for dpi in RESOLUTIONS:
        drawn = [f.image if isinstance(f.image, bytes) else renderer.submit(f.image, dpi) for f in figures]
        images = [
            _image(figure, png if isinstance(png, bytes) else png.result())
            for figure, png in zip(figures, drawn, strict=True)
        ]
        if sum(4 * len(image.png) // 3 for image in images) < MOST_BYTES - _TEXT_BYTES:
            break
    return images


def _image(figure: ReportFigure, png: bytes) -> _Image:
    if isinstance(figure.image, bytes):
        width = min(900, int(struct.unpack(">I", png[16:20])[0]))
    else:
        width = round(figure.image.get_size_inches()[0] * _CSS_PIXELS)
    return _Image(figure.title, figure.caption, figure.section, png, width)


def _number(value: float) -> str:
    """Three significant digits, in plain notation where that is short."""
    if not math.isfinite(value):
        return "–"
    if value == 0.0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if not -4 <= magnitude <= 6:
        return f"{value:.2e}".replace("-", "−")
    return f"{value:,.{max(0, 2 - magnitude)}f}".replace("-", "−")


def _duration(seconds: float) -> str:
    """Such as `3 h 05 min`."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} days {hours % 24} h"


def _sentence(text: str) -> str:
    """`text` with a capital first letter."""
    return text[:1].upper() + text[1:]
