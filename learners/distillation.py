r"""Distillation: tempered particles of many x become one network `q(u | x, beta)`.

.. math:: \max_q \; \mathbb E_{x}\, \mathbb E_{\log\beta \sim U}\, \mathbb E_{u \sim p_\beta(u | x)}
    \log q(u \mid x, \beta) \;+\; \mathbb E_{(u, x) \sim p(u, x)} \log q(u \mid x, 1)

The particles are draws for few x at every temperature. Joint draws `(u, x)` are draws for as many x as wanted at
`beta = 1`, and keep the network from remembering the few: fresh ones of the surrogate, and the real simulations, which
anchor it to the simulator itself.
"""

from __future__ import annotations

__all__ = ["DistillationOptions", "JointPairs", "Pairs", "ParticleBank", "distill"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from .network import PosteriorNetwork
from .tempered_density import ladder_weights
from .tempering import TemperedParticles
from .training import TrainOptions, fit_flow


@dataclass(frozen=True)
class DistillationOptions:
    """How the network is fitted.

    Arguments:
        pairs: Training pairs `(u, x, beta)`.
        joint_share: Share of them that are joint draws at beta = 1.
        real_share: Share that are real simulations, part of `joint_share`, at most.
        training: Options of the fit.
    """

    pairs: int = 140_000
    joint_share: float = 0.3
    real_share: float = 0.06
    training: TrainOptions = field(
        default_factory=lambda: TrainOptions(max_epochs=16, patience=16, batch_size=512, learning_rate=5e-3)
    )


class Pairs(Protocol):
    """A source of training pairs and its share of them."""

    @property
    def share(self) -> float: ...

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """`n` pairs `u` `(n, d)`, `z` `(n, k)`, `beta` `(n,)`."""
        ...


@dataclass(frozen=True)
class JointPairs:
    """Draws of `p(u, x)`: posterior draws at beta = 1.

    Attributes:
        u: `(n, d)`.
        z: `(n, k)`.
        weight: Importance weights towards `p(u, x)`, `(n,)`.
        share: Share of the training pairs drawn from here.
    """

    u: Tensor
    z: Tensor
    weight: Tensor
    share: float

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """`n` pairs at beta = 1, each row as often as its weight says (systematic resampling)."""
        cumulative = self.weight.double().cpu().cumsum(0)
        position = (torch.arange(n) + torch.rand(1, generator=generator, dtype=torch.float64)) / n
        rows = torch.searchsorted(cumulative / cumulative[-1], position).clamp(max=len(self.u) - 1).to(self.u.device)
        return self.u[rows], self.z[rows], torch.ones(n, device=self.u.device)


@dataclass(frozen=True)
class ParticleBank:
    """Tempered particles of a set of x, and how much they count.

    Attributes:
        particles: Particles at the rungs of every x.
        z: The scaled data of those x, `(n_x, k)`.
        share: Share of the training pairs drawn from this bank.
    """

    particles: TemperedParticles
    z: Tensor
    share: float

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """`n` pairs, temperatures log-uniform."""
        device, p = self.z.device, self.particles
        rows = torch.multinomial(ladder_weights(p), n, replacement=True, generator=generator).to(device)
        columns = torch.randint(p.u.shape[1], (n,), generator=generator).to(device)
        return p.u[rows, columns], self.z[p.index.to(device)[rows]], p.beta.to(device)[rows].float()


def distill(
    network: PosteriorNetwork,
    sources: Sequence[Pairs],
    options: DistillationOptions,
    generator: torch.Generator,
    on_epoch: Callable[[int, float], None] | None = None,
) -> float:
    """Fits `network` in place; returns its held-out loss, `-mean log q(u | x, beta)` in nats.

    Arguments:
        network: The network, continued from where it stands.
        sources: Where the training pairs come from, each in proportion to its share.
        options: See `DistillationOptions`.
        generator: Source of randomness on the CPU.
        on_epoch: Called with epoch and held-out loss.
    """
    total = sum(source.share for source in sources)
    parts = [source.draw(round(source.share / total * options.pairs), generator) for source in sources]
    u, data, beta = (torch.cat(column) for column in zip(*parts, strict=True))
    held_out = (torch.rand(len(u), generator=generator) < 0.02).to(u.device)
    context = network.context(data, beta)
    return fit_flow(network.flow, u, context, held_out, options.training, generator, on_epoch)
