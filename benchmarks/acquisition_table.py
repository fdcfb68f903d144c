"""The table of `benchmarks.acquisition` in RESULTS.md; beside the arms what ten times as many prior draws reach."""

from __future__ import annotations

__all__ = ["markdown"]

import pandas as pd

from benchmarks.tables import as_table, number

_TASKS = ["two_moons", "slcp", "gaussian_linear", "lotka_volterra", "sir", "hudson_bay"]
#: C2ST at beta = 1 that is wanted with 1,000 simulations, by task.
_WANTED = {"two_moons": 0.53, "slcp": 0.80, "gaussian_linear": 0.52, "lotka_volterra": 0.68, "sir": 0.52}
_ARMS = {
    "default": "**default acquisition**",
    "default, refined": "the same, refined",
    "tempered": "tempered density, nothing chosen",
    "variance": "largest variance",
    "sobol": "Sobol",
    "prior": "prior draws",
    "npe": "`sbi` NPE, prior draws",
    "tsnpe": "`sbi` TSNPE, four rounds",
    "falcon": "falcon-sbi",
    "ten times": "prior draws, ten times as many",
}


def markdown(table: pd.DataFrame, accuracy: pd.DataFrame) -> str:
    """Median over the seeds of the mean over the observations, a line for each task and arm.

    Arguments:
        table: Rows of `benchmarks.acquisition`.
        accuracy: Rows of `benchmarks.accuracy`, for the amortized network with ten times the budget.
    """
    refined = table.assign(c2st=table.get("refined"), arm=table["arm"] + ", refined")
    many = accuracy[accuracy["method"] == "ours"].assign(arm="ten times", budget=accuracy["budget"] // 10)
    everything = pd.concat([table, refined.dropna(subset=["c2st"]), many])
    betas = sorted(table["beta"].unique())
    lines = []
    for budget in sorted(table["budget"].unique()):
        for task in _TASKS:
            here = everything[(everything["task"] == task) & (everything["budget"] == budget)]
            seen = here[here["arm"] == "default"]["observation"].unique()
            for arm, name in _ARMS.items():
                cells = here[(here["arm"] == arm) & here["observation"].isin(seen)]
                if cells.empty or not len(seen):
                    continue
                means = cells.groupby(["seed", "beta"])["c2st"].mean().unstack("beta")
                at_one = sorted(means[1.0])
                seeds = "; ".join(
                    f"{seed}: {', '.join(map(str, sorted(of['observation'].unique())))}"
                    for seed, of in cells.groupby("seed")
                )
                goal = _WANTED.get(task) if budget == 1000 and arm.startswith("default") else None
                lines.append(
                    [
                        task,
                        f"{budget:,}",
                        name,
                        seeds,
                        *(number(means.median().get(beta), strong=beta == 1) for beta in betas),
                        f"{at_one[0]:.3f} to {at_one[-1]:.3f}" if len(at_one) > 1 else "",
                        "" if goal is None else f"{goal:.2f}",
                    ]
                )
    titles = ["task", "simulations", "arm", "seed: observations"]
    titles += [f"**{beta:g}**" if beta == 1 else f"{beta:g}" for beta in betas]
    return as_table([*titles, "seeds at 1", "wanted at 1"], lines)
