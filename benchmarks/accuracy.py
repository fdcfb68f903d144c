"""How accurate is the amortized posterior for a budget of prior simulations, at every temperature?

    python -m benchmarks.accuracy --tasks two_moons --budgets 1000 --seeds 1,2,3 --betas 0.1,1,2

Each cell (task, budget, seed) is one fit through the public `TemperedPosterior.fit` on draws of the prior, measured
by C2ST against exact draws at each observation and beta. `refined` are draws of the same fit with `refine=True`. `walk`
is the tempering sampler on the same surrogate: what the network would be without the error of amortizing. With the
`bench` extra `sbi` learns from the same simulations: NPE, which knows beta = 1 only, and NLE with slice sampling,
tempered by a factor on its log-likelihood. Rows are appended to a Parquet file method by method; what is there is not
run again. In the end RESULTS.md shows what is in the file, unless `--out` names another.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from torch import Tensor

from benchmarks.accuracy_table import markdown
from benchmarks.c2st import c2st
from benchmarks.cells import Cells
from benchmarks.exact import exact_draws, observed
from benchmarks.problem import DRAWS, Fitted, Problem, problem, simulations
from benchmarks.sbi_arms import nle, npe
from benchmarks.tables import replace_marked
from learners import TemperedPosterior
from learners.learner import Learner

OUT = Path("benchmarks/accuracy.parquet")
RESULTS = Path(__file__).with_name("RESULTS.md")


@lru_cache(maxsize=1)
def _network(task: Problem, theta: Tensor, x: Tensor, seed: int) -> tuple[TemperedPosterior, float]:
    """The posterior, and the seconds that it took: fitted once for all that draw from it."""
    started = time.perf_counter()
    posterior = TemperedPosterior.fit(theta, x, task.prior, seed=seed)
    return posterior, time.perf_counter() - started


def ours(task: Problem, theta: Tensor, x: Tensor, seed: int) -> Fitted:
    """The network."""
    posterior, seconds = _network(task, theta, x, seed)
    return Fitted(seconds, lambda x_o, beta: posterior.sample((DRAWS,), x=x_o, beta=beta, seed=seed))


def refined(task: Problem, theta: Tensor, x: Tensor, seed: int) -> Fitted:
    """The network, its draws corrected by what it was distilled from."""
    posterior, seconds = _network(task, theta, x, seed)
    return Fitted(seconds, lambda x_o, beta: posterior.sample((DRAWS,), x=x_o, beta=beta, seed=seed, refine=True))


def walk(task: Problem, theta: Tensor, x: Tensor, seed: int) -> Fitted:
    """The tempering sampler on the same surrogate: a fit is deterministic for its seed."""
    started = time.perf_counter()
    learner = Learner(task.prior, (0.1, 2.0), seed=seed)
    learner.add_prior_draws(theta, x)
    learner.fit_surrogate()
    seconds = time.perf_counter() - started
    return Fitted(seconds, lambda x_o, beta: learner.walk(x_o, beta, DRAWS))


METHODS = {"ours": ours, "refined": refined, "walk": walk, "npe": npe, "nle": nle}


def main(
    tasks: Annotated[str, typer.Option(help="Names, comma-separated.")] = "two_moons,slcp,gaussian_linear",
    budgets: Annotated[str, typer.Option(help="Simulations.")] = "1000",
    seeds: Annotated[str, typer.Option(help="Seeds.")] = "1,2,3",
    betas: Annotated[str, typer.Option(help="Temperatures with references.")] = "0.1,0.3,0.5,0.7,1,1.5,2",
    observations: Annotated[str, typer.Option(help="Numbers of the observations.")] = "1,2,3,4,5",
    methods: Annotated[str, typer.Option(help="Of ours, refined, walk, npe, nle (bench extra).")] = "ours,refined",
    out: Annotated[Path, typer.Option(help="Parquet file to append to.")] = OUT,
) -> None:
    """Runs the cells that are not in the table yet, and prints the summary."""
    cells, wanted = Cells(out), [int(number) for number in observations.split(",")]
    # Seeds outermost: whatever the time allows is as broad as it can be.
    for seed, budget, name in product(seeds.split(","), budgets.split(","), tasks.split(",")):
        task = problem(name)
        theta, x = simulations(task, int(budget), int(seed))
        for method in methods.split(","):
            key = {"method": method, "task": name, "budget": int(budget), "seed": int(seed)}
            there = cells.of(key)
            if len(there) and set(wanted) <= set(there["observation"]):
                continue
            fitted = METHODS[method](task, theta, x, int(seed))
            cell = cells.put(key, _measure(fitted, name, [float(beta) for beta in betas.split(",")], wanted))
            print(f"{name} {budget} seed {seed} {method} ({fitted.fit_seconds:.0f} s): {summary(cell)}", flush=True)
    if out == OUT:
        replace_marked("benchmarks.accuracy", markdown(cells.table), RESULTS)


def summary(table: pd.DataFrame) -> str:
    """Mean C2ST over the observations at each beta."""
    means = table.groupby("beta")["c2st"].mean()
    return ", ".join(f"beta {beta:g}: {value:.3f}" for beta, value in means.items())


def _measure(
    method: Fitted, task: str, betas: Sequence[float], observations: Sequence[int]
) -> list[dict[str, float | str]]:
    cells: list[dict[str, float | str]] = []
    exact, drawn = [], []
    for number in observations:
        x_o = observed(task, number)
        for beta in betas:
            started = time.perf_counter()
            draws = method.draw(x_o, beta)
            seconds = time.perf_counter() - started
            if draws is None:
                continue
            exact.append(exact_draws(task, number, beta))
            drawn.append(draws)
            cells.append({"observation": number, "beta": beta, "draw_seconds": seconds})
    scores = c2st(torch.stack(exact), torch.stack(drawn))
    pairs = zip(cells, scores.tolist(), strict=True)
    return [cell | {"c2st": score, "fit_seconds": method.fit_seconds} for cell, score in pairs]


if __name__ == "__main__":
    typer.run(main)
