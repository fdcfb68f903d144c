"""One visitor's page of the explorer: the slider and the pictures that follow it, the observation, the download."""

from __future__ import annotations

__all__ = ["ExplorerPage", "page_variables"]

import base64
import html
import io
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from bokeh.document import Document
from bokeh.models import (
    Button,
    Column,
    ColumnDataSource,
    CustomJS,
    CustomJSTickFormatter,
    Div,
    NumericInput,
    Slider,
    Spinner,
)
from jinja2 import Environment, FileSystemLoader

from learners.asking import p_text
from simulators.errors import TemperflowError
from simulators.outcome import Array

from .explorer import Explored
from .explorer_bands import BandPicture
from .explorer_observation import MOST_UPLOAD_BYTES, ObservationTable, read_upload
from .explorer_pairs import PairPicture
from .explorer_style import TEXT, WIDGETS
from .figure_style import beta_color
from .figures import sbc_ranks
from .observation import Observation
from .predictive import QUANTILES
from .predictive_bank import PredictiveDraws, PredictivePath
from .recommendation import p_value
from .report import summarize

#: Draws of a picture: enough for smooth contours, few enough for a slider.
_DRAWS = 1000
_MOST_DOWNLOADED = 100_000
_STEPS = 400
#: So long after the last move words and numbers follow.
_REST_MS = 120
_SAVE = """
if (file.data.name.length) {
  const link = document.createElement("a")
  link.href = URL.createObjectURL(new Blob([file.data.text[0]], {type: "text/csv"}))
  link.download = file.data.name[0]
  link.click()
  URL.revokeObjectURL(link.href)
}
"""


def page_variables(explored: Explored) -> dict[str, Any]:
    """What the page says that is the same for all visitors, rank pictures included."""
    names = explored.posterior.names
    return {
        "explored": explored,
        "names": names,
        "beta_range": explored.posterior.beta_range,
        "most_upload_bytes": MOST_UPLOAD_BYTES,
        "checks": [(check, _picture(np.array(check.ranks), names, check.population)) for check in explored.checks],
    }


class ExplorerPage:
    """Widgets and pictures of one visitor.

    Arguments:
        explored: What is explored; shared by all visitors, changed by none.
    """

    def __init__(self, explored: Explored) -> None:
        self.explored, self.posterior = explored, explored.posterior
        self.observation = explored.observation
        low, high = self.posterior.beta_range
        self.beta = min(max(1.0, low), high)
        self._waiting, self._words = False, None
        best = None if explored.recommendation is None else explored.recommendation.recommended
        start, end = math.log10(low), math.log10(high) if high > low else math.log10(low) + 1e-6
        self.slider = Slider(
            start=start,
            end=end,
            step=(end - start) / _STEPS,
            value=math.log10(self.beta),
            title="Temperature β",
            format=CustomJSTickFormatter(code="return (10 ** tick).toPrecision(3)"),
            disabled=high == low,
            sizing_mode="stretch_width",
            name="slider",
            stylesheets=[WIDGETS],
        )
        self.exact = NumericInput(mode="float", placeholder="exact β", width=100, name="exact", stylesheets=[WIDGETS])
        self.one = _button("one", "β = 1", 80, visible=low <= 1.0 <= high)
        self.best = _button("best", f"recommended: {best or 0.0:.2g}", 150, visible=best is not None)
        self.message, self.facts, self.summary = (
            # Names and messages are shown as they are: MathJax would follow a link in what looks like a formula.
            Div(name=name, disable_math=True, sizing_mode="stretch_width", stylesheets=[TEXT])
            for name in ("message", "facts", "summary")
        )
        self.pairs = PairPicture(self.posterior.names)
        self.pairs.figure.name = "pairs"
        self.message.visible = False
        self.bands: BandPicture | None = None
        self.path: PredictivePath | None = None
        self.band_column = Column(sizing_mode="stretch_width", name="bands")
        self.table = ObservationTable(self.observation, self._edited)
        self.upload = ColumnDataSource({"name": [], "content": []}, name="upload")
        self.reset = _button("reset", "Back to the first", 150)
        self.count = Spinner(low=1, high=_MOST_DOWNLOADED, value=1000, step=1000, title="Draws", width=120)
        self.count.update(name="count", stylesheets=[WIDGETS])
        self.download = _button("download", "Download as CSV", 170, button_type="primary")
        self.file = ColumnDataSource({"name": [], "text": []}, name="file")
        self._connect(best)

    def attach(self, document: Document, variables: dict[str, Any]) -> None:
        """Puts everything into a new visitor's document."""
        self.document = document
        environment = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True)
        document.template = environment.get_template("explorer.html.j2")
        document.title = f"{self.explored.name} – temperflow explorer"
        document.template_variables.update(variables)
        # The page's script reaches the sources by their names.
        wires = Div(visible=False, disable_math=True, name="wires", tags=[self.upload, self.file])
        controls = (self.slider, self.exact, self.one, self.best, self.message, self.facts, self.reset, self.count)
        for root in (
            *controls,
            self.pairs.figure,
            self.band_column,
            self.summary,
            self.table.widget,
            self.download,
            wires,
        ):
            document.add_root(root)
        self._observe(self.observation)

    def _connect(self, best: float | None) -> None:
        self.slider.on_change("value", lambda _attr, _old, new: self._draw_soon(10.0 ** float(new)))
        self.exact.on_change("value", lambda _attr, _old, new: self._guarded(lambda: self._jump(new)))
        self.one.on_click(lambda: self._guarded(lambda: self._jump(1.0)))
        self.best.on_click(lambda: self._guarded(lambda: self._jump(best)))
        self.upload.on_change("data", lambda _attr, _old, _new: self._guarded(self._uploaded))
        self.reset.on_click(lambda: self._guarded(lambda: self._observe(self.explored.observation)))
        self.download.on_click(lambda: self._guarded(self._send_draws))
        self.file.js_on_change("data", CustomJS(args={"file": self.file}, code=_SAVE))

    def _draw_soon(self, beta: float) -> None:
        """Of many moves that arrive while one is drawn, the last counts."""
        low, high = self.posterior.beta_range
        self.beta = min(max(beta, low), high)
        if not self._waiting:
            self._waiting = True
            self.document.add_next_tick_callback(self._draw_waiting)

    def _draw_waiting(self) -> None:
        self._waiting = False
        try:
            draws, predicted = self._draw_pictures()
        except Exception as error:
            self._say(f"unexpected {type(error).__name__}: {error}")
        else:
            self._words = self.document.add_timeout_callback(lambda: self._write(draws, predicted), _REST_MS)

    def _jump(self, beta: float | None) -> None:
        """To a temperature that was typed or chosen; one outside the range is refused in words."""
        if beta is None:
            return
        self._sample(self.observation.x, beta)
        self.slider.value = math.log10(beta)
        self._draw_soon(beta)

    def _edited(self) -> None:
        # Not at once: the table is still being written to.
        self.document.add_next_tick_callback(lambda: self._guarded(self._read_table))

    def _read_table(self) -> None:
        observation = self.table.read()
        if not np.array_equal(observation.x, self.observation.x):
            self._observe(observation)

    def _uploaded(self) -> None:
        names, contents = self.upload.data["name"], self.upload.data["content"]
        if len(names):
            self._observe(read_upload(str(names[0]), str(contents[0]), self.explored.observation))

    def _observe(self, observation: Observation) -> None:
        """Shows another observation.

        Raises:
            ObservationError: It does not fit the posterior; nothing has changed then.
        """
        low, high = self.posterior.beta_range
        ends = [self._sample(observation.x, beta) for beta in (low, high)]
        one = self._sample(observation.x, 1.0) if low <= 1.0 <= high else None
        path = None if self.explored.bank is None else PredictivePath(self.explored.bank, self.posterior, observation.x)
        at_low = None if path is None else path.at(low)
        bands = BandPicture(observation, at_low.quantiles(QUANTILES) if at_low is not None and at_low.enough else None)
        self.observation, self.bands, self.path = observation, bands, path
        z = self.posterior.features(torch.as_tensor(observation.x)[None])
        self.familiar = float(self.posterior.familiarity.p_value(z)[0])
        self.document.hold("combine")
        self.pairs.frame(ends[0], ends[1], one)
        self.band_column.children = list(bands.figures)
        self.table.show(observation.x)
        self._draw()

    def _draw(self) -> None:
        self._write(*self._draw_pictures())

    def _draw_pictures(self) -> tuple[Array, PredictiveDraws | None]:
        """Shows the posterior at `beta`; returns its draws and the predictive."""
        assert self.bands is not None
        if self._words is not None:
            # They would be about what was seen before.
            self.document.remove_timeout_callback(self._words)
            self._words = None
        color = beta_color(self.beta)
        draws = self._sample(self.observation.x, self.beta)
        predicted = None if self.path is None else self.path.at(self.beta)
        self.document.hold("combine")
        self.pairs.update(draws, color)
        self.bands.update(predicted.quantiles(QUANTILES) if predicted is not None and predicted.enough else None, color)
        self.document.unhold()
        return draws, predicted

    def _write(self, draws: Array, predicted: PredictiveDraws | None) -> None:
        """What is said in words and numbers; while the slider moves, nobody reads them."""
        self._words = None
        self.summary.text = _summary(draws, self.posterior.names)
        self.facts.text = "".join(f"<p>{html.escape(fact)}</p>" for fact in self._facts(predicted))

    def _sample(self, x: Array, beta: float) -> Array:
        """Always with the same noise, so that the picture moves smoothly with beta."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that x is far from all simulations is among the facts
            return self.posterior.sample((_DRAWS,), x=x, beta=beta, seed=0).double().numpy()

    def _facts(self, predicted: PredictiveDraws | None) -> list[str]:
        """What one must know of the pictures."""
        found = []
        if not self.explored.observed and np.array_equal(self.observation.x, self.explored.observation.x):
            found.append(
                "No observation came with this model. Shown is the centre of the simulated data: enter or upload yours "
                "under Observation."
            )
        if self.familiar < 0.01:
            found.append(f"This observation is unlike the simulated data ({p_text(self.familiar)}). Prefer a low β.")
        if predicted is None:
            found.append("Bands need predictive draws, which are in a campaign's run directory; here are none.")
        elif not predicted.enough:
            found.append(
                f"Of the stored predictive draws only {predicted.effective:.0f} (effective) suit this observation at "
                "this β: too few for bands."
            )
        else:
            assert self.explored.bank is not None
            found.append(
                f"Bands (50 % and 90 %): {predicted.effective:.0f} effective draws by {self.explored.bank.origin}. "
                f"Posterior predictive p-value of the observation: {p_value(predicted, self.observation.x):.2f}."
            )
        return found

    def _send_draws(self) -> None:
        n = min(max(int(self.count.value or 1), 1), _MOST_DOWNLOADED)
        draws = self.posterior.sample((n,), x=self.observation.x, beta=self.beta, seed=0)
        text = pd.DataFrame(draws.numpy(), columns=list(self.posterior.names)).to_csv(index=False)
        self.file.data = {"name": [f"{self.explored.name}_beta_{self.beta:.3g}.csv"], "text": [text]}

    def _guarded(self, action: Callable[[], None]) -> None:
        """Does what the visitor asked; what is wrong with it is said on the page, and the page goes on."""
        try:
            action()
        except TemperflowError as error:
            self._say(str(error))
        except Exception as error:
            self._say(f"unexpected {type(error).__name__}: {error}")
        else:
            self._say("")

    def _say(self, text: str) -> None:
        self.document.unhold()
        self.message.text = f'<p class="bad" role="alert">{html.escape(text)}</p>' if text else ""
        self.message.visible = bool(text)


def _button(name: str, label: str, width: int, **options: Any) -> Button:
    return Button(name=name, label=label, width=width, stylesheets=[WIDGETS], **options)


def _summary(draws: Array, names: tuple[str, ...]) -> str:
    head = "<tr><th>parameter</th><th>mean</th><th>sd</th><th>5 %</th><th>50 %</th><th>95 %</th></tr>"
    rows = [
        f"<tr><th>{html.escape(s.parameter)}</th>"
        + "".join(f"<td>{value:.3g}</td>" for value in (s.mean, s.std, s.q05, s.q50, s.q95))
        + "</tr>"
        for s in summarize(draws, names)
    ]
    return f"<table>{head}{''.join(rows)}</table>"


def _picture(ranks: Array, names: tuple[str, ...], population: str) -> str:
    """The rank plot as a data URL."""
    buffer = io.BytesIO()
    sbc_ranks(ranks, names, population).savefig(buffer, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
