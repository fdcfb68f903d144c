"""Calibration of a finished campaign from the simulations that were kept for it."""

from __future__ import annotations

__all__ = ["CheckResult", "check", "read_check", "why_not"]

import json
from dataclasses import asdict, dataclass

import numpy as np
import torch

from learners.calibration import Calibration, sbc_ranks
from learners.posterior import TemperedPosterior
from simulators.errors import RunDirectoryError
from simulators.outcome import Status

from .proposal import ProposalKind
from .run_directory import RunDirectory
from .store import SimulationStore, split_columns

_MIN_ROWS = 20


@dataclass(frozen=True)
class CheckResult:
    """SBC of one population, in plain values.

    Attributes:
        kind: `prior` or `tempered`.
        population: What theta was drawn from, in words.
        ranks: `(n, d)` in [0, 1].
        p_values: `(d,)`.
        effective_draws: Median effective number of posterior draws behind a rank.
        passed: Whether no parameter is rejected at 5 % (Bonferroni).
    """

    kind: str
    population: str
    ranks: list[list[float]]
    p_values: list[float]
    effective_draws: float
    passed: bool

    @property
    def verdict(self) -> str:
        """One honest sentence."""
        n = len(self.ranks)
        if self.passed:
            return f"No miscalibration was found with {n} simulations; a small one would need more to show."
        return f"Miscalibrated: with {n} simulations the ranks of at least one parameter are not uniform."


def check(
    run: RunDirectory, posterior: TemperedPosterior, draws: int, seed: int, refine: bool = False
) -> list[CheckResult]:
    """Ranks the simulations kept from training, writes `calibration.json`, returns one result a population.

    With `refine` the ranks are among refined draws, and nothing is written: the report is about the network.

    A campaign at temperatures without 1 cannot be checked by SBC and gives an empty list; nor can the posterior of a
    cost, of which the simulator's pairs are no draws.
    """
    low, high = posterior.beta_range
    results: list[CheckResult] = []
    if low <= 1.0 <= high and posterior.metadata.get("source") != "cost":
        kinds = (ProposalKind.CALIBRATION_PRIOR, ProposalKind.CALIBRATION_TEMPERED)
        table = run.store().read(["theta", "x", "proposal"], SimulationStore.successes(*kinds))
        theta, x = split_columns(table)
        kind = np.array(table["proposal"].to_pylist())
        fresh = table["id"].to_numpy() >= int(posterior.metadata.get("calibration_from", 0))
        prior = kind == ProposalKind.CALIBRATION_PRIOR
        tempered = fresh & (kind == ProposalKind.CALIBRATION_TEMPERED)
        if prior.sum() >= _MIN_ROWS:
            ranks = _ranks(posterior, theta[prior], x[prior], "the prior", draws, seed, None, refine)
            results.append(_plain("prior", ranks))
        if not posterior.whitening.knows_prior:
            # The weights of that population need the prior's density: what the campaign found with it stands.
            results += [] if refine else [result for result in read_check(run) if result.kind == "tempered"]
        elif tempered.sum() >= _MIN_ROWS and posterior.default_x is not None:
            population = (
                f"the part of the prior that the tempered posterior of the observation at beta = {low:g} occupies"
            )
            ranks = _ranks(posterior, theta[tempered], x[tempered], population, draws, seed, low, refine)
            results.append(_plain("tempered", ranks))
    if not refine:
        run.write("calibration.json", json.dumps([asdict(r) for r in results]))
    return results


def why_not(run: RunDirectory, posterior: TemperedPosterior) -> str:
    """Why `check` gave nothing, and what to do."""
    low, high = posterior.beta_range
    if posterior.metadata.get("source") == "cost":
        return "a posterior of a `cost` cannot be checked by SBC: the simulator's pairs are no draws of it"
    if not low <= 1.0 <= high:
        return (
            f"a posterior is checked at beta = 1, which is outside the trained range [{low:g}, {high:g}]; give a "
            "`temperature` with 1 inside and run in another --dir"
        )
    counts = run.store().summary().counts
    kinds = {"the prior": ProposalKind.CALIBRATION_PRIOR, "near the observation": ProposalKind.CALIBRATION_TEMPERED}
    there = " and ".join(f"{counts[kind, Status.OK]} from {name}" for name, kind in kinds.items())
    return (
        f"expected at least {_MIN_ROWS} successful simulations of a population to check with, got {there}; raise "
        "`calibration.share`, `calibration.simulations` or the budget and run again"
    )


def read_check(run: RunDirectory) -> list[CheckResult]:
    """What `check` wrote last; empty if it has not run.

    Raises:
        RunDirectoryError: The file is damaged.
    """
    path = run.calibration
    if not path.exists():
        return []
    try:
        results = [CheckResult(**entry) for entry in json.loads(path.read_text())]
        for result in results:
            ranks, p_values = (np.array(value, dtype=np.float64) for value in (result.ranks, result.p_values))
            if ranks.ndim != 2 or p_values.shape != ranks.shape[1:]:
                raise ValueError(f"ranks of shape {ranks.shape} and p-values of shape {p_values.shape}")
    except (ValueError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise RunDirectoryError(
            f"{path} is damaged ({reason}); delete it, and `temperflow check {run.path}` writes it anew"
        ) from error
    return results


def _ranks(
    posterior: TemperedPosterior,
    theta: np.ndarray,
    x: np.ndarray,
    population: str,
    draws: int,
    seed: int,
    beta_low: float | None,
    refine: bool,
) -> Calibration:
    def log_weight(values: torch.Tensor) -> torch.Tensor:
        assert beta_low is not None
        return posterior.log_prob(values, beta=beta_low).double() - posterior.whitening.log_prior(values)

    return sbc_ranks(
        posterior,
        torch.as_tensor(theta),
        torch.as_tensor(x),
        population,
        draws,
        None if beta_low is None else log_weight,
        seed,
        refine,
    )


def _plain(kind: str, result: Calibration) -> CheckResult:
    return CheckResult(
        kind,
        result.population,
        np.round(result.ranks, 5).tolist(),
        result.p_values.tolist(),
        result.effective_draws,
        result.passed,
    )
