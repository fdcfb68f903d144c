"""From a run directory to its report: everything is read back, so that a report can be made again at any time.

A campaign that has not finished has a report too, of what there is.
"""

from __future__ import annotations

__all__ = ["comparison", "make_report"]

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from learners.posterior import TemperedPosterior
from learners.threads import bounded_threads
from simulators.errors import RefinementError, SavedModelError
from simulators.outcome import Array

from .checking import CheckResult, read_check
from .cpus import usable_cpus
from .failures import failure_table
from .figures import corner, fit_by_temperature, predictive, temperature_widths
from .learner_parts import load_own_posterior
from .observation import Observation, recorded_observation
from .predictive_bank import PredictiveBank, load_bank
from .recommendation import Recommendation, recommend
from .rendering import Renderer
from .report import (
    RESOLUTIONS,
    CalibrationResult,
    Comparison,
    Failure,
    ReportData,
    ReportFigure,
    Width,
    summarize,
    write_report,
)
from .report_words import limits, question, tracked, usage, warnings
from .run_directory import RunDirectory
from .spending import cost_by_kind
from .spending_report import COLUMNS, busy_times, read_history, simulated, spending_figures
from .temperatures import report_betas
from .versions import versions

_DRAWS = 4000
_SHOWN_FAILURES = 10
#: A posterior agrees with a known one if its mean is within one standard deviation and its own is within a factor.
_STD_FACTOR = 1.6


def comparison(run: RunDirectory, posterior: TemperedPosterior) -> tuple[list[Comparison], list[Width]]:
    """The posterior beside the known one at beta = 1, and its widths at the lowest temperature and at 1.

    Both are empty where there is nothing to compare with.
    """
    low, high = posterior.beta_range
    if posterior.default_x is None or not low <= 1.0 <= high:
        return [], []
    reference = run.records()["config"]["reference"]
    one = posterior.sample((_DRAWS,), beta=1.0, seed=0).double()
    rows = []
    for name, known in reference.items():
        values = one[:, posterior.names.index(name)]
        mean, std = float(values.mean()), float(values.std())
        near = abs(mean - known["mean"]) <= known["std"]
        ok = near and 1 / _STD_FACTOR <= std / known["std"] <= _STD_FACTOR
        rows.append(Comparison(name, known["mean"], known["std"], mean, std, ok))
    if low >= 1.0:
        return rows, []
    wide = posterior.sample((_DRAWS,), beta=low, seed=0).double().std(dim=0).tolist()
    narrow = one.std(dim=0).tolist()
    widths = [Width(n, w, s, w > s) for n, w, s in zip(posterior.names, wide, narrow, strict=True)]
    return rows, widths


def make_report(run: RunDirectory, own_code: bool = False) -> list[Path]:
    """Writes `report.html` and `figures/*.png`; returns the paths of the latter.

    Arguments:
        run: The run directory.
        own_code: See `load_own_posterior`.

    Raises:
        RunDirectoryError, SavedModelError: No campaign there, or its posterior is damaged.
    """
    records = run.records()
    with Renderer(apart=usable_cpus() > 1) as renderer:
        data = _spent(run, records)
        _begin(renderer, data.figures)
        if run.posterior.exists():
            with bounded_threads(1):
                posterior = load_own_posterior(run, own_code)
                data = _answered(data, run, posterior, recorded_observation(records), renderer)
        pictures = write_report(data, run.report, renderer)
    run.figures.mkdir(exist_ok=True)
    paths = [run.figures / f"{figure.name}.png" for figure in data.figures]
    for path, png in zip(paths, pictures, strict=True):
        path.write_bytes(png)
    return paths


def _begin(renderer: Renderer, figures: Sequence[ReportFigure]) -> None:
    """Has figures drawn while others are made."""
    for figure in figures:
        if not isinstance(figure.image, bytes):
            renderer.submit(figure.image, RESOLUTIONS[0])


def _spent(run: RunDirectory, records: dict[str, Any]) -> ReportData:
    """The report of a campaign that has no posterior yet."""
    config = records["config"]
    table = run.store().read(COLUMNS)
    names = list(records.get("names") or config["parameters"])
    history = read_history(run)
    begun = records.get("started", 0.0)
    ended = records.get("finished") or (history["time"].max() if "time" in history else begun)
    timed = simulated(table)
    times = busy_times(timed)
    return ReportData(
        name=config["name"],
        question=question(config, recorded_observation(records)),
        parameters=names,
        config_yaml=yaml.safe_dump(config, sort_keys=False),
        budget=limits(config["budget"]),
        counts=_counts(table),
        simulator_seconds=float(pc.sum(timed["seconds"]).as_py() or 0.0),
        wall_seconds=float(ended - begun),
        versions=versions(),
        seed=config["seed"],
        usage=usage(run.path, None, records),
        trained=False,
        failures=_failures(table),
        costs=cost_by_kind(table),
        timeline=times,
        figures=spending_figures(table, names, history, times),
        mlflow=tracked(records),
    )


def _answered(
    data: ReportData,
    run: RunDirectory,
    posterior: TemperedPosterior,
    observation: Observation | None,
    renderer: Renderer,
) -> ReportData:
    """`data` with all that needs a posterior."""
    names, betas = posterior.names, report_betas(posterior.beta_range)
    draws: dict[float, Array] = {}
    efficiency: dict[float, float] = {}
    figures: list[ReportFigure] = []
    recommendation = None
    if observation is not None:
        draws = {b: posterior.sample((_DRAWS,), beta=b, seed=0).double().numpy() for b in betas}
        efficiency = _efficiency(posterior, betas)
        answers = _posterior_figures(draws, names)
        _begin(renderer, answers)
        bank = load_bank(run, posterior)
        if bank is not None:
            recommendation = recommend(posterior, bank, observation.x)
            figures += _prediction_figures(posterior, bank, observation, recommendation)
            _begin(renderer, figures)
        figures += answers
    rows, widths = comparison(run, posterior)
    checks = read_check(run)
    return dataclasses.replace(
        data,
        trained=True,
        usage=usage(run.path, posterior, run.records(), _example_beta(recommendation)),
        posterior={b: summarize(draws[b], names) for b in draws},
        efficiency=efficiency,
        recommendation=recommendation,
        comparison=rows,
        comparison_rule=(
            "Agreement at beta = 1 means: the mean within one known standard deviation of the known mean, and the "
            f"standard deviation within a factor of {_STD_FACTOR:g} of the known one."
        ),
        widths=widths,
        beta_low=posterior.beta_range[0],
        calibration=[_calibration(result) for result in checks],
        warnings=warnings(posterior, checks, efficiency),
        figures=[*figures, *data.figures],
    )


def _prediction_figures(
    posterior: TemperedPosterior,
    bank: PredictiveBank,
    observation: Observation,
    recommendation: Recommendation | None,
) -> list[ReportFigure]:
    found = []
    if recommendation is not None:
        caption = (
            "Posterior predictive p-value of the observation at each temperature; red: below 0.05. Dashed: the "
            "recommended temperature."
        )
        picture = fit_by_temperature(recommendation)
        found.append(ReportFigure("Does the posterior predict the data?", caption, picture, "temperature", "fit"))
    draws = {b: bank.at(posterior, b, observation.x) for b in report_betas(posterior.beta_range)}
    if not any(d.enough for d in draws.values()):
        return found
    caption = (
        "Posterior predictive bands (50 % and 90 %) at each temperature over the observation, drawn from "
        f"{bank.origin}: no simulations were spent on them."
    )
    picture = predictive(observation, {b: d.resampled() for b, d in draws.items() if d.enough})
    return [*found, ReportFigure("The data and what the posterior predicts", caption, picture, "answer", "predictive")]


def _posterior_figures(draws: dict[float, Array], names: Sequence[str]) -> list[ReportFigure]:
    pairs = corner({b: draws[b] for b in _few(list(draws))}, names)
    pairs_caption = "Every parameter, its densities scaled to one height, and every pair; contours hold 50 % and 90 %."
    widths = temperature_widths(draws, names)
    widths_caption = (
        "Median and central 68 %. A lower beta trusts the simulator less: the posterior moves to the prior."
    )
    return [
        ReportFigure("The posterior at several temperatures", pairs_caption, pairs, "answer", "corner"),
        ReportFigure("Median and spread against temperature", widths_caption, widths, "answer", "widths"),
    ]


def _failures(table: pa.Table) -> list[Failure]:
    rows = failure_table(table, _SHOWN_FAILURES)
    return [Failure(row["status"], row["reason"], row["simulations"]) for row in rows]


def _counts(table: pa.Table) -> dict[str, int]:
    """Status to number of simulations, the most frequent first."""
    counts = {row["values"]: row["counts"] for row in pc.value_counts(table["status"]).to_pylist()}
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _example_beta(recommendation: Recommendation | None) -> float:
    return 1.0 if recommendation is None or recommendation.recommended is None else recommendation.recommended


def _few(betas: list[float]) -> list[float]:
    """The lowest, the highest and the one nearest to 1: more contours on top of each other cannot be read."""
    middle = min(betas, key=lambda b: abs(np.log(b)))
    return sorted({betas[0], middle, betas[-1]})


def _calibration(result: CheckResult) -> CalibrationResult:
    return CalibrationResult(result.population, np.array(result.ranks), result.p_values, result.passed, result.verdict)


def _efficiency(posterior: TemperedPosterior, betas: Sequence[float]) -> dict[float, float]:
    """At the posterior's observation, beta by beta; empty where there is nothing to compare the network with."""
    try:
        return {b: posterior.efficiency(beta=b) for b in betas}
    except (RefinementError, SavedModelError):
        return {}  # of an earlier version
