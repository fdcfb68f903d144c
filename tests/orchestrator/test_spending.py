"""What was spent: identities of the timeline, costs by kind, and what runtime depends on."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.figure import Figure

from orchestrator.journal import append_line
from orchestrator.run_directory import RunDirectory
from orchestrator.spending import KindCost, cost_by_kind, runtime_dependence, timeline
from orchestrator.spending_figures import cost, progress, utilization
from orchestrator.spending_report import read_history


def rendered(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=40)
    return buffer.getvalue()


def test_workers_that_never_rest_are_fully_used() -> None:
    started = np.repeat(np.arange(10.0), 3) + 1.7e9
    times = timeline(started, np.ones(30), np.tile(["a", "b", "c"], 10))
    assert times is not None
    assert times.slots == 3
    assert times.utilization == pytest.approx(1.0)
    np.testing.assert_allclose(times.busy, 3.0)
    assert times.edges[-1] == pytest.approx(10.0)


def test_a_gap_is_idle_time() -> None:
    # Two slots; one works throughout, the other half of the time between the first and the last start.
    started = np.array([0.0, 1.0, 2.0, 3.0, 0.0, 1.0, 4.0])
    seconds = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    times = timeline(started, seconds, np.array([0, 0, 0, 0, 1, 1, 1]))
    assert times is not None
    assert times.slots == 2
    assert times.utilization == pytest.approx((4 + 2) / (2 * 4))
    width = float(times.edges[1])
    assert float(times.busy.sum()) * width == pytest.approx(seconds.sum())


def test_a_batch_is_one_worker() -> None:
    """A batched simulator's rows share their start, and each has its share of the time."""
    started = np.repeat([0.0, 10.0], 5)
    times = timeline(started, np.full(10, 2.0), np.full(10, "a"))
    assert times is not None
    assert times.slots == 1
    # The window ends when the last row of the last batch begins: all but the last two seconds.
    assert times.utilization == pytest.approx(1.0)


def test_clocks_that_disagree_a_little_make_no_worker() -> None:
    started = np.arange(100.0)
    times = timeline(started, np.full(100, 1.0 + 5e-4), np.zeros(100))
    assert times is not None
    assert times.slots == 1


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_simulations_have_no_timeline(n: int) -> None:
    assert timeline(np.zeros(n), np.ones(n), np.zeros(n)) is None


def test_costs_add_up_by_kind() -> None:
    table = pa.table(
        {
            "proposal": ["prior", "tempered", "prior", "tempered", "prior"],
            "status": ["ok", "ok", "timeout", "ok", "ok"],
            "seconds": [1.0, 10.0, 2.0, 20.0, 3.0],
        }
    )
    assert cost_by_kind(table) == [KindCost("tempered", 2, 0, 30.0), KindCost("prior", 3, 1, 6.0)]
    assert cost_by_kind(table.slice(0, 0)) == []
    imported = pa.table({"proposal": ["imported"], "status": ["ok"], "seconds": pa.array([None], pa.float64())})
    assert cost_by_kind(imported) == [KindCost("imported", 1, 0, 0.0)]


def test_dependence_is_found_where_it_is_monotone_or_not() -> None:
    rng = np.random.default_rng(0)
    theta = rng.normal(size=(5000, 3))
    seconds = np.exp(theta[:, 0] + 2.0 * np.abs(theta[:, 1]) + 0.1 * rng.normal(size=5000))
    first, second, third = runtime_dependence(theta, seconds)
    variance = 1.0 + 4.0 * (1.0 - 2.0 / np.pi) + 0.01
    assert first == pytest.approx(1.0 / variance, abs=0.05)
    # Twenty groups do not resolve the tails, where |theta| varies most.
    assert second == pytest.approx(4.0 * (1.0 - 2.0 / np.pi) / variance, abs=0.07)
    assert third < 0.01


def test_no_dependence_of_constant_or_few_runtimes() -> None:
    theta = np.random.default_rng(0).normal(size=(500, 2))
    assert runtime_dependence(theta, np.ones(500)).tolist() == [0.0, 0.0]
    assert runtime_dependence(theta[:50], np.exp(theta[:50, 0])).tolist() == [0.0, 0.0]


def test_figures_show_what_depends() -> None:
    rng = np.random.default_rng(0)
    theta = rng.normal(size=(4000, 2))
    seconds = np.exp(2 * theta[:, 1])
    figure = cost(seconds, theta, ["a", "b"], runtime_dependence(theta, seconds))
    assert [axes.get_title() for axes in figure.axes] == ["Simulations by duration", "b"]
    assert figure.axes[1].get_ylabel() == "seconds"
    assert len(figure.axes[1].collections[0].get_offsets()) == 3000  # type: ignore[arg-type]
    assert rendered(figure)
    assert rendered(cost(np.zeros(3), np.zeros((3, 1)), ["a"], np.zeros(1)))
    times = timeline(np.arange(50.0), rng.uniform(0.1, 0.9, 50), np.zeros(50))
    assert times is not None
    assert rendered(utilization(times))


@pytest.mark.parametrize("torn", [b'{"seconds": 2.0, "simu', bytes(30), b"[" * 100_000, b"[1, 2]\n", b"\xff\n"])
def test_a_torn_line_costs_one_line(torn: bytes, tmp_path: Path) -> None:
    """What a machine that goes down leaves; a later campaign begins a line of its own."""
    run = RunDirectory(tmp_path)
    assert not len(read_history(run))
    append_line(run.metrics, json.dumps({"seconds": 1.0}))
    run.metrics.write_bytes(run.metrics.read_bytes() + torn)
    append_line(run.metrics, json.dumps({"seconds": 3.0, "simulations": 5.0}))
    append_line(run.metrics, json.dumps({"seconds": 4.0, "simulations": 6.0}))
    history = read_history(run)
    assert history["seconds"].tolist() == [1.0, 3.0, 4.0]
    assert rendered(progress(history))


@pytest.mark.parametrize("depending", [1, 3])
def test_titles_of_costs_keep_to_their_panels(depending: int) -> None:
    theta = np.random.default_rng(0).normal(size=(100, 3))
    explained = np.array([0.5, 0.4, 0.3]) * (np.arange(3) < depending)
    figure = cost(np.exp(theta[:, 0]), theta, ["M" * 30] * 3, explained)
    assert rendered(figure)
    titles = [axes.title.get_window_extent() for axes in figure.axes]
    assert not any(a.overlaps(b) for i, a in enumerate(titles) for b in titles[:i])
    assert all(title.x0 >= 0 and title.x1 <= figure.bbox.x1 for title in titles)
