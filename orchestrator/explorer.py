"""What the posterior explorer shows: a run directory, a saved posterior, or a model of the registry."""

from __future__ import annotations

__all__ = ["Explored", "load_explored"]

from dataclasses import dataclass
from pathlib import Path

import torch

from learners.posterior import TemperedPosterior

from .checking import CheckResult, read_check
from .learner_parts import load_own_posterior
from .observation import Observation, recorded_observation
from .predictive_bank import PredictiveBank, load_bank
from .recommendation import Recommendation, recommend
from .run_directory import RunDirectory


@dataclass(frozen=True, eq=False)
class Explored:
    """A posterior and what is known around it.

    Attributes:
        name: What to call it.
        source: The path or the registry's URI that it came from.
        posterior: `q(theta | x, beta)`.
        observation: Where to start.
        observed: Whether somebody observed it; else it is the centre of the simulated data.
        bank: For predictive bands, None if there is none.
        checks: Calibration, empty if there was none.
        recommendation: Of a temperature, None if there is none.
    """

    name: str
    source: str
    posterior: TemperedPosterior
    observation: Observation
    observed: bool
    bank: PredictiveBank | None = None
    checks: tuple[CheckResult, ...] = ()
    recommendation: Recommendation | None = None


def load_explored(target: str, own_code: bool = False) -> Explored:
    """A run directory, a saved posterior's folder, or a model of the registry (`models:/NAME@alias`).

    `own_code` is that of `load_own_posterior`.

    Raises:
        RunDirectoryError, SavedModelError: Nothing there, or not trained yet.
    """
    if target.startswith("models:/"):
        return _bare(TemperedPosterior.load(target), target.removeprefix("models:/"), target)
    run = RunDirectory(Path(target))
    if not run.exists and (run.path / "posterior.json").exists():
        return _bare(TemperedPosterior.load(run.path), run.path.name, target)
    records = run.records()
    posterior = load_own_posterior(run, own_code)
    observation = recorded_observation(records)
    bank = load_bank(run, posterior)
    recommendation = None
    if observation is not None and bank is not None:
        recommendation = recommend(posterior, bank, observation.x)
    return Explored(
        records["config"]["name"],
        target,
        posterior,
        observation or _centre(posterior),
        observation is not None,
        bank,
        tuple(read_check(run)),
        recommendation,
    )


def _bare(posterior: TemperedPosterior, name: str, source: str) -> Explored:
    x = posterior.default_x
    observation = _centre(posterior) if x is None else Observation(x.numpy())
    return Explored(name, source, posterior, observation, x is not None)


def _centre(posterior: TemperedPosterior) -> Observation:
    return Observation(posterior.scaling.inverse(torch.zeros(1, posterior.dim_x)).double().numpy()[0])
