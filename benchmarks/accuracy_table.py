"""The table of `benchmarks.accuracy` in RESULTS.md."""

from __future__ import annotations

__all__ = ["markdown"]

import pandas as pd

from benchmarks.tables import as_table, number

_TASKS = ["two_moons", "slcp", "gaussian_linear", "gaussian_mixture", "lotka_volterra", "sir", "bernoulli_glm"]
#: C2ST at beta = 1 that is wanted, by budget and task.
_WANTED = {
    1000: dict(zip(_TASKS, (0.57, 0.88, 0.54, 0.62, 0.90, 0.56, 0.70), strict=True)),
    10000: dict(zip(_TASKS, (0.51, 0.70, 0.51, 0.52, 0.80, 0.52, 0.58), strict=True)),
}
_NAMES = {
    "ours": "network",
    "refined": "network, refined",
    "walk": "sampler on the same surrogate",
    "npe": "`sbi` NPE",
    "nle": "`sbi` NLE + MCMC",
}


def markdown(table: pd.DataFrame) -> str:
    """Median over the seeds of the mean over the observations, a line for each task, budget and method."""
    betas = sorted(table["beta"].unique())
    titles = ["task", "simulations", "method", "seeds; observations"]
    titles += [f"**{beta:g}**" if beta == 1 else f"{beta:g}" for beta in betas] + ["seeds at 1", "wanted at 1"]
    lines = []
    order = [(b, t, m) for b in sorted(table["budget"].unique()) for t in _TASKS for m in _NAMES]
    for budget, task, method in order:
        same = (table["budget"] == budget) & (table["task"] == task) & (table["method"] == method)
        cells = table[same]
        if cells.empty:
            continue
        means = cells.groupby(["seed", "beta"])["c2st"].mean().unstack("beta")
        observations = int(cells["observation"].nunique())
        line = [task, f"{budget:,}", _NAMES[method], f"{len(means)}; {observations}"]
        medians = means.median()
        line += [number(medians.get(beta), strong=beta == 1) for beta in betas]
        seeds = sorted(means[1.0]) if 1.0 in means else []
        line.append(f"{seeds[0]:.3f} to {seeds[-1]:.3f}" if len(seeds) > 1 else "")
        wanted = _WANTED.get(int(budget), {}).get(task)
        line.append(f"{wanted:.2f}" if wanted is not None and method in ("ours", "refined") else "")
        lines.append(line)
    return as_table(titles, lines)
