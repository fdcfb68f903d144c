"""From a run directory to its report: everything is read back, so that a report can be made again at any time."""

from __future__ import annotations

__all__ = ["comparison", "make_report"]

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from matplotlib.figure import Figure

from learners.posterior import TemperedPosterior

from .checking import CheckResult, read_check
from .figures import corner, predictive, progress, simulations_over_time, temperature_widths
from .observation import Observation
from .report import (
    CalibrationResult,
    Comparison,
    Failure,
    MlflowRun,
    ReportData,
    ReportFigure,
    Width,
    summarize,
    write_report,
)
from .run_directory import RunDirectory
from .store import split_columns
from .trainer import report_betas

_DRAWS = 4000
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


def make_report(run: RunDirectory) -> list[Path]:
    """Writes `report.html` and `figures/*.png`; returns the paths of the latter.

    Raises:
        RunDirectoryError, SavedModelError: No campaign there, or one that has not finished training.
    """
    records = run.records()
    config = records["config"]
    posterior = TemperedPosterior.load(run.path)
    table = run.store().read()
    checks = read_check(run)
    names = posterior.names
    betas = report_betas(posterior.beta_range)
    draws = _draws(posterior, betas)
    figures: dict[str, ReportFigure] = {}
    observation = _observation(records)
    predictions = run.path / "predictive.npz"
    if observation is not None and predictions.exists():
        with np.load(predictions, allow_pickle=False) as arrays:
            bands = {float(beta): arrays[beta] for beta in arrays.files}
        figures["predictive"] = ReportFigure(
            "The data and what the posterior predicts",
            "Posterior predictive bands (50 % and 90 %) at each temperature over the observation, drawn from the "
            "surrogate at posterior draws: no simulations were spent on them.",
            predictive(observation, bands),
            "answer",
        )
    if draws:
        figures["corner"] = ReportFigure(
            "The posterior at several temperatures",
            "Every parameter, its densities scaled to one height, and every pair; contours hold 50 % and 90 %.",
            corner({b: draws[b] for b in _few(betas)}, names),
            "answer",
        )
        figures["widths"] = ReportFigure(
            "Mean and spread against temperature",
            "A lower beta trusts the simulator less: the posterior moves towards the prior and widens.",
            temperature_widths(draws, names),
            "answer",
        )
    theta, _ = split_columns(table)
    beta = np.array([np.nan if b is None else b for b in table["beta"].to_pylist()])
    figures["simulations"] = ReportFigure(
        "Where the simulations went",
        "Parameters in the order of the simulations.",
        simulations_over_time(theta, beta, table["proposal"].to_pylist(), names),
        "simulations",
    )
    if run.metrics.exists():
        history = pd.read_json(run.metrics, lines=True)
        figures["progress"] = ReportFigure(
            "The campaign over time", "Simulations and held-out losses.", progress(history), "spent"
        )
    rows, widths = comparison(run, posterior)
    frame = table.select(["status", "reason", "seconds"]).to_pandas()
    data = ReportData(
        name=config["name"],
        question=_question(config, observation, posterior),
        parameters=names,
        config_yaml=yaml.safe_dump(config, sort_keys=False),
        budget=_budget(config["budget"]),
        counts={str(k): int(v) for k, v in frame["status"].value_counts().items()},
        simulator_seconds=float(frame["seconds"].sum()),
        wall_seconds=float(records.get("finished", records["started"]) - records["started"]),
        versions=_versions(),
        seed=config["seed"],
        posterior={b: summarize(draws[b], names) for b in draws},
        usage=_usage(run.path, posterior, records),
        failures=_failures(frame),
        comparison=rows,
        comparison_rule=(
            "Agreement at beta = 1 means: the mean within one known standard deviation of the known mean, and the "
            f"standard deviation within a factor of {_STD_FACTOR:g} of the known one."
        ),
        widths=widths,
        beta_low=posterior.beta_range[0],
        calibration=[_calibration(result) for result in checks],
        warnings=_warnings(posterior, checks),
        figures=list(figures.values()),
        mlflow=_mlflow(records),
    )
    write_report(data, run.report)
    run.figures.mkdir(exist_ok=True)
    paths = []
    for name, figure in figures.items():
        if isinstance(figure.image, Figure):
            paths.append(run.figures / f"{name}.png")
            figure.image.savefig(paths[-1], dpi=110)
    return paths


def _draws(posterior: TemperedPosterior, betas: list[float]) -> dict[float, np.ndarray]:
    if posterior.default_x is None:
        return {}
    return {b: posterior.sample((_DRAWS,), beta=b, seed=0).double().numpy() for b in betas}


def _few(betas: list[float]) -> list[float]:
    """The lowest, the highest and the one nearest to 1: more contours on top of each other cannot be read."""
    middle = min(betas, key=lambda b: abs(np.log(b)))
    return sorted({betas[0], middle, betas[-1]})


def _observation(records: dict[str, Any]) -> Observation | None:
    stored = records.get("observation")
    if stored is None:
        return None
    index = None if stored["index"] is None else np.array(stored["index"])
    return Observation(np.array(stored["x"]), tuple(stored["series"]), index, stored["index_name"])


def _question(config: dict[str, Any], observation: Observation | None, posterior: TemperedPosterior) -> str:
    low, high = posterior.beta_range
    family = f"p(theta) p(x | theta)^beta for every beta from {low:g} to {high:g}"
    section = config["simulator"]
    program = " ".join(section.get("command") or [])  # Not in campaigns from before there were programs.
    simulator = section["function"] or section["task"] or program or "a Python callable"
    if observation is None:
        return f"An amortized campaign: {family}, for any x that the simulator ({simulator}) can produce."
    series = f" ({', '.join(observation.series)})" if observation.series else ""
    return (
        f"A targeted campaign: {family}, given {len(observation.x)} observed numbers{series} and the simulator "
        f"({simulator}). The network answers other x as well, but is at its best near the observation."
    )


def _budget(budget: dict[str, Any]) -> str:
    limits = []
    if budget["simulations"] is not None:
        limits.append(f"{budget['simulations']:,} simulations")
    if budget["hours"] is not None:
        limits.append(f"{budget['hours']:g} hours of simulating")
    return " or ".join(limits)


def _failures(frame: pd.DataFrame) -> list[Failure]:
    failed = frame[frame["status"] != "ok"]
    counts = failed.groupby(["status", "reason"]).size().sort_values(ascending=False)
    return [Failure(str(key[0]), str(key[1]), int(n)) for key, n in counts.head(10).items()]  # type: ignore[index]


def _calibration(result: CheckResult) -> CalibrationResult:
    return CalibrationResult(result.population, np.array(result.ranks), result.p_values, result.passed, result.verdict)


def _warnings(posterior: TemperedPosterior, checks: list[CheckResult]) -> list[str]:
    found = []
    if posterior.default_x is not None:
        z = posterior.scaling(torch.atleast_2d(posterior.default_x))
        p_value = float(posterior.familiarity.p_value(z)[0])
        if p_value < 0.01:
            found.append(
                f"The observation is unlike the simulated data (p = {p_value:.2g}): the simulator may be unable to "
                "produce it. Prefer a low beta."
            )
    if not checks:
        found.append("The posterior was not checked: too few simulations were kept for calibration.")
    return found


def _mlflow(records: dict[str, Any]) -> MlflowRun | None:
    tracked = records.get("mlflow")
    if tracked is None or not records["config"]["tracking"]["enabled"]:
        return None
    model = records["config"]["tracking"]["model"] or records["config"]["name"]
    return MlflowRun(tracked["uri"], tracked["run_id"], model, None)


def _usage(path: Path, posterior: TemperedPosterior, records: dict[str, Any]) -> str:
    x = "" if posterior.default_x is not None else "x=x_o, "
    lines = [
        "from learners import TemperedPosterior",
        "",
        f'posterior = TemperedPosterior.load("{path}")',
        f"theta = posterior.sample((1000,), {x}beta=0.5)      # (1000, {posterior.dim_theta})"
        if posterior.beta_range[0] <= 0.5 <= posterior.beta_range[1]
        else f"theta = posterior.sample((1000,), {x}beta={posterior.beta_range[1]:g})",
        f"log_q = posterior.log_prob(theta, {x}beta=1.0)" if x else "log_q = posterior.log_prob(theta, beta=1.0)",
    ]
    tracked = _mlflow(records)
    if tracked is not None:
        lines += [
            "",
            "# or from the model registry",
            "import mlflow",
            f'model = mlflow.pyfunc.load_model("models:/{tracked.model_name}/1")  # or another version',
            'draws = model.predict(x_as_data_frame, params={"beta": 0.5, "num_samples": 1000})',
        ]
    return "\n".join(lines)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("temperflow", "torch", "zuko", "botorch", "ray", "mlflow", "pyarrow", "numpy", "scipy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
