"""What the checks of a finished posterior say, for MLflow."""

from __future__ import annotations

__all__ = ["calibration_error", "track_checks"]

from collections.abc import Sequence

import numpy as np

from .checking import CheckResult
from .tracking import TrackedRun, Tracker
from .tracking_names import as_part


def calibration_error(ranks: Sequence[Sequence[float]]) -> float:
    r"""`max_i \int |F_i(z) - z| dz`, with the distribution function `F_i` of parameter i's ranks `(n, d)`.

    The area between their ECDF and that of uniform ranks, for the worst parameter: 0 is perfect, 1/2 the most.
    """
    ordered = np.sort(np.asarray(ranks), axis=0)
    middle = (np.arange(len(ordered)) + 0.5) / len(ordered)
    return float(np.abs(ordered - middle[:, None]).mean(axis=0).max())


def track_checks(
    tracker: Tracker,
    run: TrackedRun,
    checks: Sequence[CheckResult],
    names: Sequence[str],
    score: float | None,
    step: int,
) -> None:
    """Logs a summary for the campaign's run, and every parameter for the nested one.

    Arguments:
        tracker, run: The campaign's run, and the nested one.
        checks: One a population.
        names: Names of the parameters.
        score: Held-out score in nats, None if there is none.
        step: Simulations so far.
    """
    summary = {} if score is None else {"held_out_score": score}
    for check in checks:
        summary[f"sbc_min_p/{check.kind}"] = min(check.p_values)
        summary[f"calibration_error/{check.kind}"] = calibration_error(check.ranks)
        p_values = {as_part(name): p for name, p in zip(names, check.p_values, strict=True)}
        run.metrics({f"sbc_p/{check.kind}/{name}": p for name, p in p_values.items()}, step)
        run.metrics({f"effective_draws/{check.kind}": check.effective_draws}, step)
        run.tags({f"population.{check.kind}": check.population, f"verdict.{check.kind}": check.verdict})
    tracker.metrics(summary, step)
    run.metrics(summary, step)
