"""How many simulator-seconds does choosing save where a simulation's length depends on theta, for every x at once?

    python -m benchmarks.thrift --tasks epidemic,radio --arms prior,default --seconds 15,30 --seeds 1,2,3

Each cell (task, arm, seconds, seed) is one amortized campaign through the public `Campaign`, limited by nothing but the
time that its simulations take, with nothing but `acquisition.method` changed. It is measured by the held-out log-score,
the mean of `log q(theta | x, beta = 1)` over fresh draws of the prior and their simulations (higher is better; a proper
score). An arm saves half if it scores with half of the seconds what prior draws score with all. The two simulators are
those of `examples/`, as a user would write them. Rows are appended to a Parquet file; what is there is not run again.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch.distributions import Distribution

from benchmarks.cells import Cells
from simulators.loading import load_object

_EXAMPLES = Path(__file__).parents[1] / "examples"
_HELD_OUT = 1000
#: Seed of the simulations that score; campaigns have others.
_SCORING = 20_261_126


def example(task: str) -> tuple[Callable[..., Any], Distribution]:
    """The simulator and the prior of one of the examples."""
    simulate, prior = (load_object(f"{_EXAMPLES / task}.py:{name}") for name in ("simulate", "PRIOR"))
    return simulate, prior


def held_out(task: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws of the prior `(n, d)` and their x `(n, k)`."""
    simulate, prior = example(task)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SCORING)
        theta = prior.sample((_HELD_OUT,)).double()
    x = np.stack([simulate(row, _SCORING + i) for i, row in enumerate(theta.numpy())])
    return theta, torch.tensor(x)


def campaign(task: str, method: str, seconds: float, seed: int) -> Any:
    """The posterior and the simulations of one campaign; all of the budget is for learning."""
    from orchestrator import Campaign

    simulate, prior = example(task)
    with tempfile.TemporaryDirectory() as folder:
        result = Campaign(
            simulate,
            prior,
            budget={"simulator_hours": seconds / 3600},
            directory=Path(folder) / "run",
            acquisition={"method": method},
            calibration={"share": 0.0},
            tracking={"enabled": False},
            seed=seed,
        ).run(progress=False)
        return result.posterior, result.simulations()


def main(
    tasks: Annotated[str, typer.Option(help="Of epidemic and radio.")] = "epidemic,radio",
    arms: Annotated[str, typer.Option(help="Values of `acquisition.method`.")] = "prior,default",
    seconds: Annotated[str, typer.Option(help="Seconds of simulators' time.")] = "15,30",
    seeds: Annotated[str, typer.Option(help="Seeds.")] = "1,2,3,4,5",
    out: Annotated[Path, typer.Option(help="Parquet file to append to.")] = Path("benchmarks/thrift.parquet"),
) -> None:
    """Runs the cells that are not in the table yet, and prints each."""
    cells = Cells(out)
    scoring: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for seed, task, budget, arm in product(seeds.split(","), tasks.split(","), seconds.split(","), arms.split(",")):
        key = {"task": task, "arm": arm, "seconds": float(budget), "seed": int(seed)}
        if len(cells.of(key)):
            continue
        if task not in scoring:
            scoring[task] = held_out(task)
        started = time.perf_counter()
        posterior, simulations = campaign(task, arm, float(budget), int(seed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a few x of the prior are always unusual
            log_q = posterior.log_prob(*scoring[task], beta=1.0).double()
        cell = {
            "log_score": float(log_q.mean()),
            "standard_error": float(log_q.std() / len(log_q) ** 0.5),
            "simulations": len(simulations),
            "spent": float(np.sum(simulations["seconds"])),
            "wall": time.perf_counter() - started,
        }
        cells.put(key, [cell])
        print(
            f"{task} {arm} {budget} s seed {seed}: log-score {cell['log_score']:.3f} +- {cell['standard_error']:.3f}, "
            f"{cell['simulations']} simulations in {cell['spent']:.1f} s ({cell['wall']:.0f} s in all)",
            flush=True,
        )
    print(
        cells.table.groupby(["task", "seconds", "arm"])["log_score"].agg(["median", "min", "max", "count"]).to_string()
    )


if __name__ == "__main__":
    typer.run(main)
