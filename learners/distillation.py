r"""Distillation: tempered particles of many x become one network `q(u | x, beta)`.

.. math:: \max_q \; \mathbb E_{x}\, \mathbb E_{\log\beta \sim U}\, \mathbb E_{u \sim p_\beta(u | x)}
    \log q(u \mid x, \beta)
    \;+\; \text{the real pairs } (u_i, x_i) \text{ at } \beta = 1

The particles come from the surrogate; the real pairs, drawn from a known density and weighted to the prior, are exact
posterior draws that anchor the network to the simulator itself.
"""

from __future__ import annotations

__all__ = ["Anchors", "DistillationOptions", "ParticleBank", "distill"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

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
        pairs: Training pairs `(u, x, beta)` drawn from the particles.
        anchor_share: Share of real pairs among the training pairs, at most.
        training: Options of the fit.
    """

    pairs: int = 100_000
    anchor_share: float = 0.15
    training: TrainOptions = field(
        default_factory=lambda: TrainOptions(max_epochs=15, patience=15, batch_size=1024, learning_rate=3e-3)
    )


@dataclass(frozen=True)
class Anchors:
    """Real simulations as posterior draws at beta = 1.

    Attributes:
        u: `(n, d)`.
        z: `(n, k)`.
        weight: Importance weights `p(theta) / proposal(theta)`, `(n,)`.
    """

    u: Tensor
    z: Tensor
    weight: Tensor


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
        """`n` pairs `u` `(n, d)`, `z` `(n, k)`, `beta` `(n,)`, temperatures log-uniform."""
        device, p = self.z.device, self.particles
        rows = torch.multinomial(ladder_weights(p), n, replacement=True, generator=generator).to(device)
        columns = torch.randint(p.u.shape[1], (n,), generator=generator).to(device)
        return p.u[rows, columns], self.z[p.index.to(device)[rows]], p.beta.to(device)[rows].float()


def distill(
    network: PosteriorNetwork,
    banks: Sequence[ParticleBank],
    anchors: Anchors | None,
    options: DistillationOptions,
    generator: torch.Generator,
    on_epoch: Callable[[int, float], None] | None = None,
) -> float:
    """Fits `network` in place; returns its held-out loss, `-mean log q(u | x, beta)` in nats.

    Arguments:
        network: The network, continued from where it stands.
        banks: Tempered particles, their shares summing to one.
        anchors: Real pairs, or None.
        options: See `DistillationOptions`.
        generator: Source of randomness on the CPU.
        on_epoch: Called with epoch and held-out loss.
    """
    parts = [bank.draw(round(bank.share * options.pairs), generator) for bank in banks]
    u, data, beta = (torch.cat(column) for column in zip(*parts, strict=True))
    device = u.device
    low, high = network.beta_range
    if anchors is not None and low <= 1.0 <= high and len(anchors.u):
        # Repeating few real pairs many times would only teach the network to remember them.
        count = min(int(options.anchor_share * options.pairs), 20 * len(anchors.u))
        chosen = torch.multinomial(anchors.weight.cpu(), count, replacement=True, generator=generator)
        u = torch.cat([u, anchors.u[chosen.to(device)]])
        data = torch.cat([data, anchors.z[chosen.to(device)]])
        beta = torch.cat([beta, torch.ones(count, device=device)])
    held_out = (torch.rand(len(u), generator=generator) < 0.02).to(device)
    context = network.context(data, beta)
    return fit_flow(network.flow, u, context, held_out, options.training, generator, on_epoch)
