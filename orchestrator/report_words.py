"""What a report says in words: the question, the limits, what to be wary of, and how to go on."""

from __future__ import annotations

__all__ = ["limits", "question", "tracked", "usage", "warnings"]

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from learners.asking import p_text
from learners.posterior import TemperedPosterior

from .checking import CheckResult
from .observation import Observation
from .report import MlflowRun

#: Efficiency below which the network's own draws should not be used.
_INEFFICIENT = 0.1


def question(config: dict[str, Any], observation: Observation | None) -> str:
    """What the campaign is to answer."""
    low, high = config["temperature"]["low"], config["temperature"]["high"]
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


def limits(budget: dict[str, Any]) -> str:
    """What the campaign may spend."""
    found = []
    if budget["simulations"] is not None:
        found.append(f"{budget['simulations']:,} simulations")
    if budget["hours"] is not None:
        found.append(f"{budget['hours']:g} hours of simulating")
    if budget.get("simulator_hours") is not None:
        found.append(f"{budget['simulator_hours']:g} hours of simulators' time")
    return " or ".join(found)


def warnings(posterior: TemperedPosterior, checks: list[CheckResult], efficiency: Mapping[float, float]) -> list[str]:
    """What speaks against trusting the posterior."""
    found = []
    low = [f"{b:g}" for b, share in efficiency.items() if share < _INEFFICIENT]
    if low:
        found.append(
            f"The network is far from what it was distilled from at beta = {', '.join(low)} (efficiency below "
            f"{_INEFFICIENT:g}): sample with refine=True there."
        )
    if posterior.default_x is not None:
        z = posterior.features(torch.atleast_2d(posterior.default_x))
        p_value = float(posterior.familiarity.p_value(z)[0])
        if p_value < 0.01:
            found.append(
                f"The observation is unlike the simulated data ({p_text(p_value)}): the simulator may be unable to "
                "produce it. Prefer a low beta."
            )
    if posterior.metadata.get("source") == "cost":
        found.append("What beta multiplies is a cost, not a log-likelihood: simulations cannot check this posterior.")
    elif not checks:
        found.append("The posterior was not checked: too few simulations were kept for calibration.")
    return found


def tracked(records: dict[str, Any]) -> MlflowRun | None:
    """The campaign in MLflow, if it is there."""
    run = records.get("mlflow")
    if run is None or not records["config"]["tracking"]["enabled"]:
        return None
    model = records["config"]["tracking"]["model"] or records["config"]["name"]
    return MlflowRun(run["uri"], run["run_id"], model)


def usage(path: Path, posterior: TemperedPosterior | None, records: dict[str, Any], beta: float = 1.0) -> str:
    """What to copy and paste; `beta` is the temperature of the examples."""
    if posterior is None:
        return f"temperflow status {path}\ntemperflow report {path}   # this page, anew"
    x = "" if posterior.default_x is not None else "x=x_o, "
    low, high = posterior.beta_range
    beta = min(max(beta, low), high)
    lines = [
        "from learners import TemperedPosterior",
        "",
        f'posterior = TemperedPosterior.load("{path}")',
        f"theta = posterior.sample((1000,), {x}beta={beta:.3g})  # (1000, {posterior.dim_theta})",
        f"log_q = posterior.log_prob(theta, {x}beta={beta:.3g})",
        f"theta = posterior.sample((1000,), {x}beta={beta:.3g}, refine=True)  # slower, without the network's error",
    ]
    in_mlflow = tracked(records)
    if in_mlflow is not None:
        lines += [
            "",
            "# or the best of its name in the model registry",
            f'posterior = TemperedPosterior.load("models:/{in_mlflow.model_name}@champion")',
            "# or with MLflow alone",
            "import mlflow",
            f'model = mlflow.pyfunc.load_model("models:/{in_mlflow.model_name}@champion")',
            f'draws = model.predict(x_as_data_frame, params={{"beta": {beta:.3g}, "num_samples": 1000}})',
        ]
    commands = [
        "",
        "# or from the command line",
        f"# temperflow sample {path} --beta {beta:.3g} -n 1000 --out draws.csv",
        f"# temperflow explore {path}",
    ]
    return "\n".join(lines + commands)
