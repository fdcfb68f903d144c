r"""How much simulators' time can favouring what is cheap save at best?

    python -m benchmarks.thrift_limit

If the error at theta falls like `n(theta)^-alpha` with the simulations there, whatever happens elsewhere, and errors
count by the prior p, then simulations `n = T w p / E_p[w t]` worth T seconds leave the error of prior draws worth

.. math:: T' = T\, \frac{E_p[t]}{E_p[w t]} \, E_p[w^{-\alpha}]^{-1/\alpha},

which is largest for `w = t^{-1/(1+\alpha)}`. Printed is `T / T'`, the share of the time that is needed, at best and
with what a campaign without an observation draws but for its first portion and what acquisition chooses. `alpha` is 1
where simulations near theta are averaged, less where a network learns; `benchmarks/thrift.parquet` says 0.4 to 0.5.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import typer

from benchmarks.thrift import example
from learners.prior_density import PriorDensity
from learners.runtime import Runtime
from learners.thrifty import ThriftyDensity
from learners.whitening_choice import whiten
from orchestrator.config_learner import AcquisitionConfig

_TIMED, _DRAWS = 2000, 50_000


def needed(weight: torch.Tensor, seconds: torch.Tensor, alpha: float) -> float:
    """`T / T'` for weights `w` `(n,)` and times `t` `(n,)` of draws of the prior."""
    spent = (weight * seconds).mean() / seconds.mean()
    return float(spent * weight.pow(-alpha).mean() ** (1 / alpha))


def timed(simulate: Callable[..., Any], theta: np.ndarray, seed: int) -> float:
    """Seconds of processor time that one simulation takes."""
    started = time.process_time()
    simulate(theta, seed)
    return time.process_time() - started


def main() -> None:
    """Times 2,000 prior draws of both simulators and prints what can be saved."""
    for task in ("epidemic", "radio"):
        simulate, prior = example(task)
        torch.manual_seed(0)
        theta = prior.sample((_TIMED,))
        seconds = [timed(simulate, row, i) for i, row in enumerate(theta.double().numpy())]
        whitening, generator = whiten(prior), torch.Generator().manual_seed(0)
        runtime = Runtime.fit(whitening.to_u(theta.double()), torch.tensor(seconds, dtype=torch.float64))
        density = PriorDensity(prior, whitening, (0.1, 2.0))
        thrifty = ThriftyDensity.of(density, runtime, None, whitening, generator)
        u, _, _ = density.sample(_DRAWS, generator)
        t, share = runtime.expected(u), AcquisitionConfig().share_of_prior(targeted=False)
        ours = share + (1 - share) * (thrifty.log_prob(u) - density.log_prob(u)).double().exp()
        print(f"{task}: mean {np.mean(seconds) * 1e3:.1f} ms; {float(1 / (ours * t / t.mean()).mean()):.2f} x as many")
        for alpha in (1.0, 0.7, 0.5, 0.3):
            best = needed(t.pow(-1 / (1 + alpha)), t, alpha)
            print(f"  alpha {alpha}: at best {best:.2f} of the time, as it is {needed(ours, t, alpha):.2f}")


if __name__ == "__main__":
    typer.run(main)
