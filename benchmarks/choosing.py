"""How long does it take to choose simulations? One core, beside nothing else.

    python -m benchmarks.choosing

A learner of ten parameters with 5,000 stored simulations (a linear model with noise that depends on theta); then the
default acquisition picks 64 of its 1,000 candidates, while 64 others are in flight.
"""

from __future__ import annotations

import time
from typing import Annotated

import numpy as np
import torch
import typer

from learners.learner import Learner
from learners.options import LearnerOptions
from learners.runtime import Runtime
from learners.surrogate import SurrogateOptions
from learners.tempered_density import TemperedDensity
from learners.training import TrainOptions
from orchestrator.acquisition import Candidates, IntegratedVariance


def candidates(dim: int, simulations: int, number: int) -> Candidates:
    """As the trainer makes them, after a short training: how good it is does not matter here."""
    torch.manual_seed(0)
    prior = torch.distributions.MultivariateNormal(torch.zeros(dim), torch.eye(dim))
    theta = prior.sample(torch.Size([simulations]))
    x = theta + (0.3 + 0.1 * theta[:, :1].abs()) * torch.randn(simulations, dim)
    short = TrainOptions(max_epochs=5)
    options = LearnerOptions(
        surrogate=SurrogateOptions(members=("linear", "gaussian", "affine"), hidden=(64, 64), training=short), threads=1
    )
    learner = Learner(prior, (0.1, 2.0), x[:1], options)
    learner.add_prior_draws(theta, x)
    learner.fit_surrogate()
    learner.fit_posterior(final=False)
    assert learner.focus is not None and learner.source is not None
    density = TemperedDensity.from_particles(learner.focus.particles, number, learner.generator)
    u, beta, row = density.sample(number, learner.generator)
    with torch.no_grad():
        ell = learner.source.member_log_prob(u, learner.focus.z[row])
        success = learner.source.log_valid(u).exp()
    runtime = Runtime.fit(theta.double(), theta[:, 0].double().exp())
    return Candidates(u, beta.float(), ell, success, runtime.expected(u).float())


def main(
    dim: Annotated[int, typer.Option(help="Parameters.")] = 10,
    simulations: Annotated[int, typer.Option(help="Stored simulations.")] = 5000,
    choices: Annotated[int, typer.Option(help="Points to choose.")] = 64,
    repeats: Annotated[int, typer.Option(help="Choices that are timed.")] = 5,
) -> None:
    """Prints the seconds; see the module."""
    torch.set_num_threads(1)
    found, generator = candidates(dim, simulations, 1000), torch.Generator().manual_seed(0)
    pending = found.u[:64]
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        IntegratedVariance().choose(found, choices, pending, generator)
        seconds.append(time.perf_counter() - started)
    print(
        f"{choices} of 1,000 candidates, {dim} parameters, {simulations} simulations, 64 in flight: "
        f"median {np.median(seconds):.2f} s, longest {max(seconds):.2f} s"
    )


if __name__ == "__main__":
    typer.run(main)
