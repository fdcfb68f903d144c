"""`sbi` on the same simulations (bench extra): NPE, NLE with Markov chains, and TSNPE in rounds.

Its own defaults, but for neural spline flows in place of masked autoregressive ones, which are poorer on these tasks.
Where the prior is log-normal it learns log theta, as in the public benchmark (`automatic_transforms_enabled`). Where x
spreads over orders of magnitude it learns log x.
"""

from __future__ import annotations

__all__ = ["nle", "npe", "tsnpe"]

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, ExpTransform, TransformedDistribution

from benchmarks.problem import DRAWS, Fitted, Problem

_ROUNDS = 4


def npe(task: Problem, theta: Tensor, x: Tensor, seed: int) -> Fitted:
    """Neural posterior estimation."""
    from sbi.inference import NPE

    posterior, _, seconds = _trained(NPE, task, theta, x, seed)

    def draw(x_o: Tensor, beta: float) -> Tensor | None:
        if beta != 1.0:
            return None
        draws = posterior.sample((DRAWS,), x=_shown(task, x_o), show_progress_bars=False)
        return draws.exp() if task.log_theta else draws

    return Fitted(seconds, draw)


def nle(task: Problem, theta: Tensor, x: Tensor, seed: int) -> Fitted:
    """Neural likelihood estimation, tempered in its potential; Markov chains anew for every x and beta."""
    from sbi.inference import NLE, MCMCPosterior
    from sbi.inference.potentials.base_potential import BasePotential

    class Tempered(BasePotential):
        """`log p(theta) + beta log p(x | theta)`."""

        def __init__(self, inner: BasePotential, beta: float) -> None:
            super().__init__(inner.prior, inner.x_o, device="cpu")
            self.inner, self.beta = inner, beta

        def __call__(self, theta: Tensor, track_gradients: bool = True) -> Tensor:
            log_prior = self.prior.log_prob(theta)
            both = self.inner(theta, track_gradients=track_gradients)
            return torch.where(log_prior.isfinite(), log_prior + self.beta * (both - log_prior), log_prior)

    built, prior, seconds = _trained(NLE, task, theta, x, seed)

    def draw(x_o: Tensor, beta: float) -> Tensor:
        inner = built.potential_fn
        inner.set_x(_shown(task, x_o)[None])
        chains = MCMCPosterior(Tempered(inner, beta), proposal=prior, theta_transform=built.theta_transform)
        draws = chains.sample((DRAWS,), x=_shown(task, x_o)[None], show_progress_bars=False)
        return draws.exp() if task.log_theta else draws

    return Fitted(seconds, draw)


def tsnpe(task: Problem, x_o: Tensor, budget: int, seed: int) -> Fitted:
    """Truncated sequential NPE: in each round draws of the prior inside the bulk of the last posterior.

    Deistler, Goncalves & Macke (2022), arXiv 2210.04815.
    """
    from sbi.inference import NPE
    from sbi.utils import RestrictedPrior, get_density_thresholder

    prior = _prior(task)
    torch.manual_seed(seed)
    started = time.perf_counter()
    inference, proposal = NPE(prior=prior, density_estimator="nsf", show_progress_bars=False), prior
    posterior: Any = None
    for r in range(_ROUNDS):
        theta = proposal.sample(torch.Size([budget // _ROUNDS]))
        x = task.simulate(theta.exp() if task.log_theta else theta, 1000 * seed + r)
        inference.append_simulations(theta.float(), _shown(task, x)).train(force_first_round_loss=True)
        posterior = inference.build_posterior().set_default_x(_shown(task, x_o))
        inside = get_density_thresholder(posterior, quantile=1e-4)
        proposal = RestrictedPrior(prior, inside, sample_with="rejection")
    seconds = time.perf_counter() - started

    def draw(_: Tensor, beta: float) -> Tensor | None:
        if beta != 1.0:
            return None
        draws = posterior.sample((DRAWS,), show_progress_bars=False)
        return draws.exp() if task.log_theta else draws

    return Fitted(seconds, draw)


def _trained(
    method: Callable[..., Any], task: Problem, theta: Tensor, x: Tensor, seed: int
) -> tuple[Any, Distribution, float]:
    """`sbi`'s posterior, the prior that it has, and the seconds of training."""
    prior = _prior(task)
    torch.manual_seed(seed)
    started = time.perf_counter()
    inference = method(prior=prior, density_estimator="nsf", show_progress_bars=False)
    inference.append_simulations((theta.log() if task.log_theta else theta).float(), _shown(task, x)).train()
    return inference.build_posterior(), prior, time.perf_counter() - started


def _prior(task: Problem) -> Distribution:
    """The prior of what is learned."""
    return TransformedDistribution(task.prior, ExpTransform().inv) if task.log_theta else task.prior


def _shown(task: Problem, x: Tensor) -> Tensor:
    """The x that is learned from; numbers that single precision cannot hold are no use to a network."""
    return (x.double().clamp(1e-30, 1e30).log() if task.log_x else x).float()
