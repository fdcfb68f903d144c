r"""Exact draws for the Hudson Bay data: its likelihood is known, and nothing of temperflow is in them.

    python -m benchmarks.hudson_bay

Writes `benchmarks/references/hudson_bay.parquet` and `hudson_bay_observations.parquet`, in half an hour, by moves of
differential evolution in the ensemble sampler `emcee` (ter Braak 2006; Foreman-Mackey et al. 2013, arXiv 1202.3665;
bench extra), which walks anew for every beta on

.. math:: p(\theta) \prod_{t, s} \mathrm{LogNormal}(x_{ts} \mid \log u_s(t; \theta), \sigma_s)^\beta

with the populations `u` of hares and lynx by Runge-Kutta steps of a fortieth of a year, where the example's simulator
lets an adaptive solver choose. Walkers start at draws of a wide guess around the published posterior; the first half
of the walk is thrown away, and of the rest 2,000 draws are taken evenly.
"""

from __future__ import annotations

__all__ = ["log_likelihood"]

import math
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer
from scipy.stats import norm

from benchmarks.exact import FOLDER
from benchmarks.problem import DRAWS, EXAMPLES
from orchestrator.config_reading import load_config
from orchestrator.problem import resolve

_BETAS = (0.1, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
_YEARS, _STEPS = 21, 40
#: Means and scales of the logarithms that the walkers start from, far wider than the posterior at beta = 1.
_START = np.log([0.55, 0.028, 0.8, 0.024, 33, 6, 0.25, 0.25]), 0.2


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
    walkers: Annotated[int, typer.Option(help="Walkers, of which half move at once.")] = 512,
    steps: Annotated[int, typer.Option(help="Steps of each, the first half of which is thrown away.")] = 3000,
) -> None:
    """Writes the references."""
    import emcee

    file = EXAMPLES / "hudson_bay.yaml"
    problem = resolve(load_config(file), file.parent)
    assert problem.observation is not None
    x_o, prior = problem.observation.x, problem.prior
    tables = []
    for beta in _BETAS:

        def log_density(theta: np.ndarray, beta: float = beta) -> np.ndarray:
            inside = np.asarray((theta > 0).all(axis=1))
            safe = np.where(inside[:, None], theta, 1.0)
            log_prior = prior.log_prob(torch.as_tensor(safe)).numpy()
            with np.errstate(over="ignore", invalid="ignore"):
                return np.where(inside, log_prior + beta * log_likelihood(safe, x_o), -math.inf)

        rng = np.random.default_rng(1)
        mean, scale = _START
        start = np.exp(mean + scale / math.sqrt(beta) * rng.normal(size=(walkers, len(mean))))
        # Stretch moves alone need three times as many steps in eight dimensions.
        moves = [(emcee.moves.DEMove(), 0.8), (emcee.moves.DESnookerMove(), 0.2)]
        sampler = emcee.EnsembleSampler(walkers, len(mean), log_density, moves=moves, vectorize=True)
        sampler.random_state = np.random.RandomState(1).get_state()
        sampler.run_mcmc(start, steps)
        chain = sampler.get_chain(discard=steps // 2)
        length = emcee.autocorr.integrated_time(chain, tol=0).max()
        halves = np.array_split(chain, 2)
        apart = np.abs(halves[0].mean((0, 1)) - halves[1].mean((0, 1))) / chain.std((0, 1))
        print(
            f"beta {beta:g}: autocorrelation of {length:.0f} steps, means of both halves at most {apart.max():.3f} "
            f"standard deviations apart; mean {np.round(chain.mean((0, 1)), 4)}, std {np.round(chain.std((0, 1)), 4)}",
            flush=True,
        )
        flat = chain.reshape(-1, chain.shape[-1])
        draws = flat[np.linspace(0, len(flat) - 1, DRAWS).astype(int)]
        tables.append(pd.DataFrame({"observation": 1, "beta": beta, "theta": list(draws)}))
    pd.concat(tables, ignore_index=True).to_parquet(FOLDER / "hudson_bay.parquet")
    pd.DataFrame({"observation": [1], "x": [x_o]}).to_parquet(FOLDER / "hudson_bay_observations.parquet")


if __name__ == "__main__":
    typer.run(main)
