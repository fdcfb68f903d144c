r"""Where the posterior lies, found before the network is asked: its context has the hints of `scoring.py` beside `z`.

A network that sees x alone must learn to invert the simulator to a small part of the posterior's width, everywhere, and
that is what limited it where posteriors are narrow (`benchmarks/TRIED.md`). The guide inverts as one would by hand,
from a first guess in a few steps down an emulator of the data, and leaves the network to learn how the posterior
differs from a normal one there: which is less, and smooth in x. The emulator is learned from the source, not from
simulations: its middles are regressed on those of the source without noise,

.. math:: \min \sum_{i, j} \rho\big((\bar z_{ij} - m_j(u_i)) e^{-s_j(u_i)}\big)
    - \log t_{\nu_j}\big(z_{ij};\, m_j(u_i), e^{s_j(u_i)}\big) + \lVert u_i - h(z_i) \rVert^2

with a pseudo-Huber function `rho`; `s` and `nu` learn from the second term alone, the first guess `h` from the third.
Where posteriors are of several pieces the hints are of one, by chance: no use to the network, which is then better off
without a guide. (Scores at a guess as summaries: Alsing & Wandelt 2018, arXiv 1712.00012.)
"""

from __future__ import annotations

__all__ = ["Guide", "GuideOptions", "fit_guide"]

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from zuko.nn import MLP

from .constants import LOG_DEGREES, LOG_SCALES
from .memory import Parts
from .scoring import ROWS, Layers, hints
from .soap import Soap
from .threads import Threads
from .training import Descent

#: Logarithm of the degrees of freedom at first.
_START = math.log(8.0)
#: Standard deviations that are far.
_FAR = 3.0
#: Scale below which middles need not be told apart.
_FINE = 0.02
#: Share of the pairs that a guide may not find, and how many of them it is judged by.
_LOST, _JUDGED = 0.15, 4000
#: Share of its steps, and their number at least, after which one that finds far fewer is given up: it takes a third of
#: the time of the network, which can use it better.
_EARLY, _LEAST_STEPS = 0.3, 500


@dataclass(frozen=True)
class GuideOptions:
    """Sizes of the guide; it takes as many steps as the network after it.

    Arguments:
        hidden: Widths of the emulator's hidden layers.
        guess: Those of the first guess.
        scales: Those of the emulator's scales.
        learning_rate: Peak of the schedule.
    """

    hidden: tuple[int, ...] = (192, 192, 192)
    guess: tuple[int, ...] = (128, 128, 128)
    scales: tuple[int, ...] = (64, 64)
    learning_rate: float = 3e-3


class Guide(nn.Module):
    """`z` `(*, k)` -> the mode of its posterior at beta = 1 and the logarithms of its standard deviations, `(*, 2 d)`.

    Arguments:
        dim_u: Dimension d of `u`.
        dim_z: Dimension k of the scaled data.
        options: See `GuideOptions`.
    """

    def __init__(self, dim_u: int, dim_z: int, options: GuideOptions) -> None:
        super().__init__()
        self.dim, self.options = 2 * dim_u, options
        self.guess = MLP(dim_z, dim_u, options.guess, activation=nn.SiLU)
        self.middle = MLP(dim_u, dim_z, options.hidden, activation=nn.SiLU)
        self.log_scale = MLP(dim_u, dim_z, options.scales, activation=nn.SiLU)
        self.log_degrees = nn.Parameter(torch.full((dim_z,), _START))
        self._parts = Parts("asking the guide")

    @torch.no_grad()
    def forward(self, z: Tensor) -> Tensor:
        guess, middle, log_scale = _layers(self.guess), _layers(self.middle), _layers(self.log_scale)

        def tell(part: Tensor) -> Tensor:
            told: Tensor = hints(torch, part, guess, middle, log_scale, self.degrees)
            return told

        told = torch.cat([self._parts.map(tell, part) for part in z.reshape(-1, z.shape[-1]).split(ROWS)])
        return told.reshape(*z.shape[:-1], self.dim)

    @property
    def degrees(self) -> Tensor:
        """Degrees of freedom of each number, `(k,)`."""
        return self.log_degrees.clamp(*LOG_DEGREES).exp()

    def loss(self, u: Tensor, z: Tensor, middle: Tensor) -> Tensor:
        """The loss of pairs `u` `(n, d)`, `z` `(n, k)` with the source's middles `(n, k)`, as in the module."""
        m, s, degrees = self.middle(u), self.log_scale(u).clamp(*LOG_SCALES), self.degrees
        error = (middle - m) / s.detach().exp().clamp(min=_FINE)
        half = (degrees + 1) / 2
        student = half * torch.log1p(((z - m.detach()) * torch.exp(-s)).square() / degrees) + s
        student = student + torch.lgamma(degrees / 2) - torch.lgamma(half) + degrees.log() / 2
        guessed = (self.guess(z) - u).square()
        loss: Tensor = ((1 + error.square()).sqrt() - 1).mean() + student.mean() + guessed.mean()
        return loss

    def lost(self, u: Tensor, z: Tensor) -> float:
        """How often pairs `(n, d)`, `(n, k)` have a parameter far from its hint: the largest share of any, 0 to 1."""
        mode, log_deviation = self(z).chunk(2, dim=-1)
        far = (u - mode).abs() > _FAR * log_deviation.exp()
        return float(far.float().mean(dim=0).max())

    def as_dict(self) -> dict[str, Any]:
        """JSON form of the architecture."""
        options = self.options
        return {key: list(getattr(options, key)) for key in ("hidden", "guess", "scales")}

    @classmethod
    def from_dict(cls, dim_u: int, dim_z: int, spec: dict[str, Any]) -> Guide:
        hidden, guess, scales = (tuple(spec[key]) for key in ("hidden", "guess", "scales"))
        return cls(dim_u, dim_z, GuideOptions(hidden, guess, scales))


def fit_guide(
    u: Tensor,
    z: Tensor,
    middle: Tensor,
    options: GuideOptions,
    steps: int,
    batch_size: int,
    generator: torch.Generator,
    on_tenth: Callable[[int, float], None] | None = None,
    threads: Threads | None = None,
) -> Guide | None:
    """A guide that has learned from pairs `u` `(n, d)` and `z` `(n, k)` of a source with middles `(n, k)`.

    None if it does not find most of them, which is where posteriors are of several pieces.

    Arguments:
        u, z, middle: Pairs, drawn from wherever posteriors are asked for.
        options: See `GuideOptions`.
        steps, batch_size: Of the training.
        generator: Source of randomness on the CPU.
        on_tenth: Called with each tenth of the steps that is over and the loss of its last.
        threads: What shares the work of a step; None for the thread at hand.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        guide = Guide(u.shape[1], z.shape[1], options).to(u.device)
    optimizer = Soap(guide.parameters(), options.learning_rate, weight_decay=1e-4, threads=threads)
    descent = Descent(guide, optimizer, steps, threads)
    averaged = descent.averaged
    assert isinstance(averaged, Guide)
    batch, order = min(batch_size, len(u)), torch.zeros(0, dtype=torch.long)
    judged, early = (u[:_JUDGED], z[:_JUDGED]), max(_LEAST_STEPS, round(_EARLY * steps))
    for step in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(u), generator=generator)
        rows, order = order[:batch].to(u.device), order[batch:]
        pairs = u[rows], z[rows], middle[rows]

        def terms(count: int, pairs: tuple[Tensor, ...] = pairs) -> Iterator[Callable[[], Tensor]]:
            for part in zip(*(t.tensor_split(count) for t in pairs), strict=True):
                yield partial(_term, guide, part, len(part[0]) / len(pairs[0]))

        descent.step(terms, batch)
        tenth = 10 * (step + 1) // steps
        if on_tenth is not None and tenth > 10 * step // steps:
            with torch.no_grad():
                on_tenth(tenth, float(guide.loss(*pairs)))
        if step + 1 == early and averaged.lost(*judged) > 2 * _LOST:
            return None
    guide.load_state_dict(averaged.state_dict())
    return guide.eval().requires_grad_(False) if guide.lost(*judged) < _LOST else None


def _term(guide: Guide, pairs: Sequence[Tensor], share: float) -> Tensor:
    return guide.loss(*pairs) * share


def _layers(network: MLP) -> Layers:
    return [(layer.weight, layer.bias) for layer in network if hasattr(layer, "weight")]
