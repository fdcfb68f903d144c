"""Does choosing pay? Targeted campaigns with the same budget that differ in where they simulate.

    python -m benchmarks.acquisition --tasks two_moons --arms prior,tempered,default --seeds 1,2 --observations 1

Each cell (task, observation, arm, seed) is one campaign through the public `Campaign`, with nothing but
`acquisition.method` changed, and calibration off, so that all of the budget is learned from. It is measured by C2ST
against exact draws at each beta, without and with `refine=True` (column `refined`). `prior` and `sobol` have the same
ensemble and training, and are the control arms. The peers (bench extra) know beta = 1 only: `npe` is `sbi`'s neural
posterior estimation on prior draws, `tsnpe` its truncated sequential NPE in four rounds, `falcon` falcon-sbi's
sequential estimation while simulations come. Rows are appended to a Parquet file; what is there is not run again. In
the end RESULTS.md shows what is in the file, unless `--out` names another.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from benchmarks.accuracy import RESULTS
from benchmarks.acquisition_table import markdown
from benchmarks.c2st import c2st
from benchmarks.cells import Cells
from benchmarks.exact import exact_draws, observed
from benchmarks.falcon_arm import falcon
from benchmarks.problem import DRAWS, EXAMPLES, problem, simulations
from benchmarks.sbi_arms import npe, tsnpe
from benchmarks.tables import replace_marked
from learners import TemperedPosterior

#: `draw(beta)` gives `(2000, d)`, or None where an arm has no answer.
Draw = Callable[[float], Tensor | None]
OUT = Path("benchmarks/acquisition.parquet")
#: Rows of `benchmarks.accuracy`, to compare with.
AMORTIZED = Path("benchmarks/accuracy.parquet")


def trained(task: str, x_o: Tensor, budget: int, method: str, seed: int) -> TemperedPosterior:
    """One of our own arms; all of the budget is for learning."""
    from orchestrator import Campaign

    settings = {
        "acquisition": {"method": method},
        "calibration": {"share": 0.0},
        "tracking": {"enabled": False},
        "seed": seed,
    }
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        if task == "hudson_bay":
            # As a user runs it: data and model are what the example says.
            overrides = [f"{key}={value}" for key, value in settings.items()]
            file = EXAMPLES / "hudson_bay.yaml"
            campaign = Campaign.from_file(file, [f"budget.simulations={budget}", *overrides], directory)
        else:
            campaign = Campaign(task, observation=x_o.numpy(), budget=budget, directory=directory, **settings)
        return campaign.run(progress=False).posterior


def one_round(task: str, x_o: Tensor, budget: int, seed: int) -> Draw:
    """`sbi`'s NPE on prior draws, the same as in `benchmarks.accuracy`."""
    given = problem(task)
    fitted = npe(given, *simulations(given, budget, seed), seed)
    return lambda beta: fitted.draw(x_o, beta)


def rounds(task: str, x_o: Tensor, budget: int, seed: int) -> Draw:
    """`sbi`'s TSNPE in four rounds."""
    fitted = tsnpe(problem(task), x_o, budget, seed)
    return lambda beta: fitted.draw(x_o, beta)


PEERS = {"npe": one_round, "tsnpe": rounds, "falcon": falcon}


def main(
    tasks: Annotated[str, typer.Option(help="Names, comma-separated.")] = "two_moons,slcp,gaussian_linear",
    arms: Annotated[str, typer.Option(help="Values of `acquisition.method`, or peers.")] = "prior,tempered,default",
    budget: Annotated[int, typer.Option(help="Simulations.")] = 1000,
    seeds: Annotated[str, typer.Option(help="Seeds.")] = "1,2,3,4,5",
    betas: Annotated[str, typer.Option(help="Temperatures with references.")] = "0.1,0.3,0.5,0.7,1,1.5,2",
    observations: Annotated[str, typer.Option(help="Numbers of the observations.")] = "1,2,3",
    out: Annotated[Path, typer.Option(help="Parquet file to append to.")] = OUT,
) -> None:
    """Runs the cells that are not in the table yet, and prints each."""
    cells = Cells(out)
    wanted = [float(beta) for beta in betas.split(",")]
    for seed in map(int, seeds.split(",")):
        for task in tasks.split(","):
            for number in map(int, observations.split(",")):
                for arm in arms.split(","):
                    key = {"task": task, "observation": number, "arm": arm, "seed": seed, "budget": budget}
                    if len(cells.of(key)):
                        continue
                    cell = cells.put(key, _measured(task, number, arm, budget, seed, wanted))
                    scores = ", ".join(f"beta {b:g}: {c:.3f}" for b, c in zip(cell["beta"], cell["c2st"], strict=True))
                    print(f"{task} {number} {arm} seed {seed} ({cell['seconds'][0]:.0f} s): {scores}", flush=True)
    if out == OUT:
        replace_marked("benchmarks.acquisition", markdown(cells.table, Cells(AMORTIZED).table), RESULTS)


def _drawn(posterior: TemperedPosterior, seed: int, refine: bool, beta: float) -> Tensor:
    return posterior.sample((DRAWS,), beta=beta, seed=seed, refine=refine)


def _measured(task: str, number: int, arm: str, budget: int, seed: int, betas: list[float]) -> list[dict[str, float]]:
    x_o = observed(task, number)
    started = time.perf_counter()
    peer = PEERS.get(arm)
    refined: Callable[[float], Tensor] | None = None
    if peer is None:
        posterior = trained(task, x_o, budget, arm, seed)
        draw: Draw = partial(_drawn, posterior, seed, False)
        refined = partial(_drawn, posterior, seed, True)
    else:
        draw = peer(task, x_o, budget, seed)
    seconds = time.perf_counter() - started
    drawn = {beta: draws for beta in betas if (draws := draw(beta)) is not None}
    exact = torch.stack([exact_draws(task, number, beta) for beta in drawn])
    scores = c2st(exact, torch.stack(list(drawn.values()))).tolist()
    corrected = [float("nan")] * len(drawn)
    if refined is not None:
        corrected = c2st(exact, torch.stack([refined(beta) for beta in drawn])).tolist()
    rows = zip(drawn, scores, corrected, strict=True)
    return [{"beta": b, "c2st": score, "refined": better, "seconds": seconds} for b, score, better in rows]


if __name__ == "__main__":
    typer.run(main)
