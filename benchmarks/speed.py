"""How fast is training, and how fast are answers? Each beside `sbi` in the same run, on the same simulations.

    python -m benchmarks.speed --task slcp --budget 10000

- throughput: pairs a second through a training step of one flow, the same autoregressive spline flow for both (three
  transforms, two hidden layers of 128, 8 bins; batches of 200), on one thread, plain and compiled;
- training: wall time of `TemperedPosterior.fit`, for all temperatures, and of `sbi`'s NPE, which knows beta = 1 only;
- draws: 1,000 draws at an x and a beta that are new, on one thread, plain and with `refine=True`; 1,000 observations x
  1,000 draws;
- chains: 1,000 draws by Markov chains on `sbi`'s NLE at the same x, tempered.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from benchmarks.exact import observed
from benchmarks.problem import problem, simulations
from benchmarks.sbi_arms import nle, npe
from learners import TemperedPosterior
from learners.flows import spline_flow
from learners.threads import bounded_threads
from learners.training import TrainOptions, fit_flow

_HIDDEN, _TRANSFORMS, _BINS, _BATCH = (128, 128), 3, 8, 200


def throughput(theta: Tensor, x: Tensor, epochs: int) -> tuple[float, float, float]:
    """Pairs a second: ours, ours compiled (without the time that compiling takes), and `sbi`'s."""
    from sbi.inference import NPE
    from sbi.neural_nets import posterior_nn

    torch.manual_seed(0)
    v, c = (((t - t.mean(dim=0)) / t.std(dim=0)).float() for t in (theta, x))
    held_out = torch.arange(len(v)) % 10 == 0
    flow = spline_flow(v.shape[1], c.shape[1], _HIDDEN, _TRANSFORMS, _BINS)
    mine = []
    for compiled in (False, True):
        options = TrainOptions(max_epochs=epochs, patience=epochs, batch_size=_BATCH, compiled=compiled)
        # The first steps are slow.
        fit_flow(flow, v, c, held_out, replace(options, max_epochs=1), torch.Generator())
        mine.append(_seconds(partial(fit_flow, flow, v, c, held_out, options, torch.Generator())))
    network = posterior_nn("zuko_nsf", hidden_features=list(_HIDDEN), num_transforms=_TRANSFORMS, num_bins=_BINS)
    inference = NPE(density_estimator=network, show_progress_bars=False).append_simulations(v, c)
    # As many epochs as asked for: neither stops early.
    theirs = _seconds(
        lambda: inference.train(
            _BATCH, stop_after_epochs=epochs + 1, max_num_epochs=epochs - 1, validation_fraction=0.1
        )
    )
    pairs = epochs * int((~held_out).sum())
    return pairs / mine[0], pairs / mine[1], pairs / theirs


def draws(posterior: TemperedPosterior, x: Tensor) -> tuple[float, float]:
    """Seconds of 1,000 draws at new `x` and beta (median of 20), and of 1,000 for each of 1,000 x."""
    betas = np.geomspace(0.15, 1.9, 20)
    single = [
        _seconds(lambda i=i, beta=beta: posterior.sample((1000,), x=x[i], beta=float(beta)))  # type: ignore[misc]
        for i, beta in enumerate(betas)
    ]
    return float(np.median(single)), _seconds(lambda: posterior.sample_batched((1000,), x[:1000], beta=0.7))


def refined(posterior: TemperedPosterior, x: Tensor) -> float:
    """Seconds of 1,000 refined draws at new `x` and beta: median of 10."""
    betas = enumerate(np.geomspace(0.15, 1.9, 10))
    return float(
        np.median([_seconds(partial(posterior.sample, (1000,), x=x[i], beta=float(b), refine=True)) for i, b in betas])
    )


def main(
    task: Annotated[str, typer.Option(help="A built-in task.")] = "slcp",
    budget: Annotated[int, typer.Option(help="Simulations.")] = 10_000,
    parts: Annotated[str, typer.Option(help="What to measure.")] = "throughput,training,draws,chains",
    seed: Annotated[int, typer.Option(help="Of simulations and training.")] = 1,
    epochs: Annotated[int, typer.Option(help="Passes of the throughput's training.")] = 10,
) -> None:
    """Prints the figures; see the module."""
    wanted = parts.split(",")
    theta, x = simulations(problem(task), budget, seed)
    print(f"{task}, {budget} simulations, {torch.get_num_threads()} threads, {torch.__version__}", flush=True)
    if "throughput" in wanted:
        with bounded_threads(1):
            mine, fast, theirs = throughput(theta, x, epochs)
        print(f"training throughput, pairs/s: {mine:,.0f}; sbi {theirs:,.0f}; ratio {mine / theirs:.2f}", flush=True)
        print(f"the same compiled: {fast:,.0f}; ratio {fast / theirs:.2f}", flush=True)
    fresh = simulations(problem(task), 1000, seed + 1)[1]
    fitted: Any = None
    if {"training", "draws"} & set(wanted):
        started = time.perf_counter()
        fitted = TemperedPosterior.fit(theta, x, problem(task).prior, seed=seed)
        took = time.perf_counter() - started
        print(f"training, all temperatures: {took:.0f} s", flush=True)
    if "training" in wanted:
        theirs = npe(problem(task), theta, x, seed).fit_seconds
        print(f"sbi NPE, beta = 1: {theirs:.0f} s; ratio {took / theirs:.2f}", flush=True)
    if "draws" in wanted:
        with bounded_threads(1):
            single, _ = draws(fitted, fresh)
            corrected = refined(fitted, fresh)
        _, many = draws(fitted, fresh)
        print(f"1,000 draws, one thread: {1e3 * single:.1f} ms; 1,000 x 1,000 draws: {many:.1f} s", flush=True)
        print(f"1,000 refined draws, one thread: {corrected:.2f} s", flush=True)
    if "chains" in wanted:
        chain = nle(problem(task), theta, x, seed)
        seconds = _seconds(lambda: chain.draw(observed(task, 1), 0.5)) / 2  # of 2,000 draws
        print(f"1,000 draws by chains on sbi's NLE: {seconds:.1f} s", flush=True)
        if "draws" in wanted:
            print(f"ratio {seconds / single:,.0f}; of refined draws {seconds / corrected:,.0f}", flush=True)


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    typer.run(main)
