r"""Exact draws for the Hudson Bay data: its likelihood is known, and nothing of temperflow's learning is in them.

    python -m benchmarks.hudson_bay

Writes `benchmarks/references/hudson_bay.parquet` and `hudson_bay_observations.parquet` in a quarter of an hour: a
population of draws of the prior is led through all temperatures (sequential Monte Carlo; Del Moral et al. 2006) by

.. math:: p(\theta) \prod_{t, s} \mathrm{LogNormal}(x_{ts} \mid \log u_s(t; \theta), \sigma_s)^\beta

with the populations `u` of hares and lynx by Runge-Kutta steps of a fortieth of a year, where the example's simulator
lets an adaptive solver choose. Each step to a higher beta keeps half of the draws effective, resamples, and moves all
by differential evolution in log theta (ter Braak 2006; Foreman-Mackey et al. 2013, arXiv 1202.3665; `emcee`, bench
extra).
"""

from __future__ import annotations

__all__ = ["log_likelihood"]

import math
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from scipy.optimize import brentq
from scipy.special import softmax
from scipy.stats import norm

from benchmarks.exact import FOLDER
from benchmarks.problem import DRAWS, EXAMPLES
from orchestrator.config_reading import load_config
from orchestrator.problem import resolve

_BETAS = (0.1, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
_YEARS, _STEPS = 21, 40


def log_likelihood(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """`log p(x | theta)` of pelts `x` `(42,)`, hares then lynx, for `theta` `(n, 8)`: `(n,)`; -inf beyond numbers."""
    alpha, beta, gamma, delta, *start, sigma_hare, sigma_lynx = np.asarray(theta, dtype=float).T
    log_u = np.log(np.stack(start))

    def rates(at: np.ndarray) -> np.ndarray:
        hares, lynx = np.exp(np.minimum(at, 50.0))
        return np.stack([alpha - beta * lynx, delta * hares - gamma])

    states, step = [log_u], 1.0 / _STEPS
    for _ in range(_YEARS - 1):
        for _ in range(_STEPS):
            first = rates(log_u)
            second = rates(log_u + step / 2 * first)
            third = rates(log_u + step / 2 * second)
            log_u = log_u + step / 6 * (first + 2 * second + 2 * third + rates(log_u + step * third))
        states.append(log_u)
    sigma = np.stack([sigma_hare, sigma_lynx])
    log_x = np.log(x.reshape(2, _YEARS).T)[:, :, None]
    densities = norm.logpdf(log_x, np.stack(states), sigma) - log_x
    return np.nan_to_num(densities.sum(axis=(0, 1)), nan=-math.inf)


def main(
    particles: Annotated[int, typer.Option(help="Draws that are led through the temperatures.")] = 8192,
    moves: Annotated[int, typer.Option(help="Moves of each after every step to a higher beta.")] = 30,
    last: Annotated[int, typer.Option(help="Moves of each at a beta that is written.")] = 200,
) -> None:
    """Writes the references."""
    file = EXAMPLES / "hudson_bay.yaml"
    problem = resolve(load_config(file), file.parent)
    assert problem.observation is not None
    x_o, prior = problem.observation.x, problem.prior
    rng = np.random.default_rng(1)
    torch.manual_seed(1)
    log_theta = prior.sample(torch.Size([particles])).double().log().numpy()
    likelihood = _likelihoods(log_theta, x_o)
    at, tables = 0.0, []
    while at < _BETAS[-1]:
        target = min(beta for beta in _BETAS if beta > at)
        step = _largest_step(likelihood, target - at)
        weight = softmax(step * likelihood)
        kept = rng.choice(particles, particles, p=weight)
        at = target if step == target - at else at + step
        log_theta, likelihood = _moved(log_theta[kept], at, moves if at != target else last, prior, x_o, rng)
        print(f"beta {at:g}: {len(np.unique(kept))} of {particles} kept", flush=True)
        if at == target:
            theta = np.exp(log_theta)
            print(f"  mean {np.round(theta.mean(0), 4)}, std {np.round(theta.std(0), 4)}", flush=True)
            draws = theta[rng.choice(particles, DRAWS, replace=False)]
            tables.append(pd.DataFrame({"observation": 1, "beta": at, "theta": list(draws)}))
    pd.concat(tables, ignore_index=True).to_parquet(FOLDER / "hudson_bay.parquet")
    pd.DataFrame({"observation": [1], "x": [x_o]}).to_parquet(FOLDER / "hudson_bay_observations.parquet")


def _likelihoods(log_theta: np.ndarray, x_o: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.maximum(log_likelihood(np.exp(np.clip(log_theta, -50, 50)), x_o), -1e300)


def _largest_step(likelihood: np.ndarray, room: float) -> float:
    """The rise of beta, at most `room`, that leaves half of the draws effective."""

    def lack(step: float) -> float:
        return float(0.5 * len(likelihood) - 1 / np.square(softmax(step * likelihood)).sum())

    return room if lack(room) <= 0 else float(brentq(lack, 0.0, room))


def _moved(
    log_theta: np.ndarray, beta: float, moves: int, prior: Any, x_o: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The population after so many moves at beta, and its log-likelihoods."""
    import emcee

    def log_density(values: np.ndarray) -> np.ndarray:
        theta = torch.as_tensor(np.exp(np.clip(values, -50, 50)))
        log_prior = prior.log_prob(theta).numpy() + values.sum(axis=1)
        return np.nan_to_num(log_prior + beta * _likelihoods(values, x_o), nan=-math.inf)

    # The longer ones lead from mode to mode.
    kinds = [(emcee.moves.DEMove(), 0.9), (emcee.moves.DEMove(gamma0=1.0), 0.1)]
    sampler = emcee.EnsembleSampler(*log_theta.shape, log_density, moves=kinds, vectorize=True)
    sampler.random_state = np.random.RandomState(rng.integers(2**31)).get_state()
    # Some are copies of one another, until they are moved.
    end = sampler.run_mcmc(log_theta, moves, skip_initial_state_check=True)
    return end.coords, _likelihoods(end.coords, x_o)


if __name__ == "__main__":
    typer.run(main)
