"""How accurate is the amortized posterior for a budget of prior simulations, at every temperature?

    python -m benchmarks.accuracy --tasks two_moons --budgets 1000 --seeds 1,2,3 --betas 0.1,1,2

Each cell (task, budget, seed) is one fit through the public `TemperedPosterior.fit` on draws of the prior, measured
by C2ST against exact draws at each observation and beta. `ours-walk` is the tempering sampler on the same surrogate:
what the network would be without the error of amortizing. With `--peers` (the `bench` extra) `sbi`'s NPE learns from
the same simulations; it knows beta = 1 only. Rows are appended to a Parquet file method by method;
what is there is not run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer
from torch import Tensor

from benchmarks.c2st import c2st
from learners import TemperedPosterior
from learners.learner import Learner
from simulators import get_task
from simulators.tasks.task import Task

REFERENCES = Path(__file__).with_name("references")
DRAWS = 2000


@dataclass(frozen=True)
class Fitted:
    """A fitted method: `draw(x, beta)` gives `(2000, d)`, NaN or None where it has no answer."""

    name: str
    fit_seconds: float
    draw: Callable[[Tensor, float], Tensor | None]


def ours(task: Task, theta: Tensor, x: Tensor, seed: int) -> Iterator[Fitted]:
    """The network."""
    started = time.perf_counter()
    posterior = TemperedPosterior.fit(theta, x, task.prior, seed=seed)
    seconds = time.perf_counter() - started
    yield Fitted("ours", seconds, lambda x_o, beta: posterior.sample((DRAWS,), x=x_o, beta=beta, seed=seed))


def walk(task: Task, theta: Tensor, x: Tensor, seed: int) -> Iterator[Fitted]:
    """The tempering sampler on the same surrogate: a fit is deterministic for its seed."""
    started = time.perf_counter()
    learner = Learner(task.prior, (0.1, 2.0), seed=seed)
    learner.add_prior_draws(theta, x)
    learner.fit_surrogate()
    seconds = time.perf_counter() - started
    yield Fitted("ours-walk", seconds, lambda x_o, beta: learner.walk(x_o, beta, DRAWS))


def npe(task: Task, theta: Tensor, x: Tensor, seed: int) -> Iterator[Fitted]:
    """`sbi`'s neural posterior estimation with a neural spline flow."""
    from sbi.inference import NPE

    torch.manual_seed(seed)
    started = time.perf_counter()
    inference = NPE(prior=task.prior, density_estimator="nsf", show_progress_bars=False)
    inference.append_simulations(theta.float(), x.float()).train()
    posterior = inference.build_posterior()
    seconds = time.perf_counter() - started

    def draw(x_o: Tensor, beta: float) -> Tensor | None:
        return posterior.sample((DRAWS,), x=x_o.float(), show_progress_bars=False) if beta == 1.0 else None

    yield Fitted("sbi NPE", seconds, draw)


def main(
    tasks: Annotated[str, typer.Option(help="Names, comma-separated.")] = "two_moons,slcp,gaussian_linear",
    budgets: Annotated[str, typer.Option(help="Simulations.")] = "1000",
    seeds: Annotated[str, typer.Option(help="Seeds.")] = "1,2,3",
    betas: Annotated[str, typer.Option(help="Temperatures with references.")] = "0.1,0.3,0.5,0.7,1,1.5,2",
    observations: Annotated[str, typer.Option(help="Numbers of the observations.")] = "1,2,3,4,5",
    peers: Annotated[bool, typer.Option(help="Run sbi as well.")] = False,
    sampler: Annotated[bool, typer.Option(help="Measure the sampler on the surrogate as well.")] = True,
    out: Annotated[Path, typer.Option(help="Parquet file to append to.")] = Path("benchmarks/accuracy.parquet"),
) -> None:
    """Runs the cells that are not in the table yet, and prints the summary."""
    table = pd.read_parquet(out) if out.exists() else pd.DataFrame()
    for name in tasks.split(","):
        for budget in map(int, budgets.split(",")):
            for seed in map(int, seeds.split(",")):
                done = set() if table.empty else _done(table, name, budget, seed)
                task = get_task(name)
                for method in _methods(task, budget, seed, peers, sampler, done):
                    rows = _measure(method, name, map(float, betas.split(",")), map(int, observations.split(",")))
                    cell = pd.DataFrame(rows).assign(task=name, budget=budget, seed=seed)
                    table = pd.concat([table, cell], ignore_index=True)
                    table.to_parquet(out)
                    print(f"{name} {budget} seed {seed} {method.name}: {summary(cell)}", flush=True)


def summary(table: pd.DataFrame) -> str:
    """Mean C2ST over the observations at each beta."""
    means = table.groupby("beta")["c2st"].mean()
    return ", ".join(f"beta {beta:g}: {value:.3f}" for beta, value in means.items())


def _done(table: pd.DataFrame, task: str, budget: int, seed: int) -> set[str]:
    cell = table[(table["task"] == task) & (table["budget"] == budget) & (table["seed"] == seed)]
    return set(cell["method"])


def _methods(task: Task, budget: int, seed: int, peers: bool, sampler: bool, done: set[str]) -> Iterator[Fitted]:
    torch.manual_seed(1000 * seed + budget)
    np.random.seed(1000 * seed + budget)
    theta = task.prior.sample(torch.Size([budget]))
    x = torch.as_tensor(task.simulate(theta))
    if "ours" not in done:
        yield from ours(task, theta, x, seed)
    if sampler and "ours-walk" not in done:
        yield from walk(task, theta, x, seed)
    if peers and "sbi NPE" not in done:
        yield from npe(task, theta, x, seed)


def _measure(
    method: Fitted, task: str, betas: Iterator[float], observations: Iterator[int]
) -> list[dict[str, float | str]]:
    reference = pd.read_parquet(REFERENCES / f"{task}.parquet")
    observed = pd.read_parquet(REFERENCES / f"{task}_observations.parquet").set_index("observation")
    rows: list[dict[str, float | str]] = []
    wanted = list(betas)
    for number in observations:
        x_o = torch.tensor(np.array(observed.loc[number, "x"]), dtype=torch.float64)
        for beta in wanted:
            started = time.perf_counter()
            draws = method.draw(x_o, beta)
            seconds = time.perf_counter() - started
            if draws is None:
                continue
            same = (reference["observation"] == number) & np.isclose(reference["beta"], beta)
            exact = np.stack(reference.loc[same, "theta"].to_list())
            score = c2st(exact, draws.double().numpy())
            rows.append(
                {
                    "method": method.name,
                    "observation": number,
                    "beta": beta,
                    "c2st": score,
                    "fit_seconds": method.fit_seconds,
                    "draw_seconds": seconds,
                }
            )
    return rows


if __name__ == "__main__":
    typer.run(main)
