"""Figures that are drawn in another process: the same pictures, whatever becomes of that process."""

from __future__ import annotations

import os
import signal

import numpy as np
import pandas as pd
import psutil
import pytest
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from orchestrator.figures import (
    corner,
    cost,
    fit_by_temperature,
    predictive,
    progress,
    sbc_ranks,
    simulations_over_time,
    temperature_widths,
    utilization,
)
from orchestrator.observation import Observation
from orchestrator.recommendation import Recommendation
from orchestrator.rendering import Renderer, png
from orchestrator.spending import timeline

DPI = 60


def a_figure() -> Figure:
    """With a layout, a logarithmic axis and a legend outside the panels."""
    rng = np.random.default_rng(0)
    theta = np.exp(3 * rng.normal(size=(200, 2)))
    return simulations_over_time(theta, rng.uniform(0.1, 2, size=200), ["prior", "tempered"] * 100, ["a$b", "c"])


def renderers() -> list[int]:
    return [p.pid for p in psutil.Process().children() if "orchestrator.rendering" in " ".join(p.cmdline())]


def all_figures() -> list[Figure]:
    rng = np.random.default_rng(0)
    names = ["a", "b", "c"]
    draws = {beta: 2.0 + rng.normal(size=(300, 3)) / beta**0.5 for beta in (0.1, 1.0, 2.0)}
    observation = Observation(np.exp(rng.normal(size=21) * 2))
    predicted = {beta: np.exp(rng.normal(size=(100, 21))) for beta in draws}
    seconds, theta = np.exp(2 * rng.normal(size=400)), rng.normal(size=(400, 3))
    history = pd.DataFrame({"seconds": np.arange(9.0), "simulations": np.arange(9) * 100, "surrogate_loss": 1.0})
    recommendation = Recommendation(np.array([0.1, 1.0]), np.array([0.5, 0.01]), 0.1)
    times = timeline(np.arange(50.0), np.full(50, 1.5), np.arange(50) % 2)
    assert times is not None
    return [
        a_figure(),
        corner(draws, names),
        cost(seconds, theta, names, np.array([0.4, 0.0, 0.2])),
        fit_by_temperature(recommendation),
        predictive(observation, predicted),
        progress(history),
        sbc_ranks(rng.uniform(size=(100, 3)), names, "prior"),
        temperature_widths(draws, names),
        utilization(times),
    ]


def test_pictures_are_those_drawn_here(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [png(figure, DPI) for figure in all_figures()]
    monkeypatch.setattr("orchestrator.rendering.png", lambda *_: pytest.fail("drawn here"))
    with Renderer() as renderer:
        assert len(renderers()) == 1
        assert [renderer.submit(figure, DPI).result() for figure in all_figures()] == expected
    assert renderers() == []


def test_a_figure_is_drawn_once_for_each_resolution() -> None:
    figure = a_figure()
    with Renderer(apart=False) as renderer:
        assert renderers() == []
        assert renderer.submit(figure, DPI) is renderer.submit(figure, DPI)
        assert renderer.submit(figure, 2 * DPI).result() != renderer.submit(figure, DPI).result()


def test_goes_on_here_when_the_process_is_killed() -> None:
    with Renderer() as renderer:
        first = renderer.submit(a_figure(), DPI).result()
        os.kill(renderers()[0], signal.SIGKILL)
        assert renderer.submit(a_figure(), DPI).result() == first


def test_draws_here_what_cannot_be_sent() -> None:
    figure = a_figure()
    figure.axes[0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    with Renderer() as renderer:
        assert renderer.submit(figure, DPI).result().startswith(b"\x89PNG")
        assert renderer.submit(a_figure(), DPI).result() == png(a_figure(), DPI)


def test_an_error_is_that_of_the_figure() -> None:
    figure = a_figure()
    figure.axes[0].set_title(r"$\nonsense$")
    with Renderer() as renderer, pytest.raises(ValueError, match="nonsense"):
        renderer.submit(figure, DPI).result()


def fails_in_the_middle() -> None:
    with Renderer() as renderer:
        renderer.submit(a_figure(), DPI)
        raise RuntimeError("in the middle")


def test_leaves_no_process_behind_when_the_report_fails() -> None:
    with pytest.raises(RuntimeError, match="in the middle"):
        fails_in_the_middle()
    assert renderers() == []
