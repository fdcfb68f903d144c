r"""Where the posterior lies, found before the network is asked: its context has the hints of `scoring.py` beside `z`.

A network that sees x alone must learn to invert the simulator to a small part of the posterior's width, everywhere, and
that is what limited it where posteriors are narrow (`benchmarks/TRIED.md`). The guide inverts as one would by hand,
from a first guess in a few steps down an emulator of the data, and leaves the network to learn how the posterior
differs from a normal one there: which is less, and smooth in x. The emulator is learned from the source, not from
simulations: its middles are regressed on those of the source without noise,

.. math:: \min \sum_{i, j} \rho\big((\bar z_{ij} - m_j(u_i)) e^{-s_j(u_i)}\big)
    - \log t_{\nu_j}\big(z_{ij};\, m_j(u_i), e^{s_j(u_i)}\big) + \lVert u_i - h(z_i) \rVert^2
    + \sum_i \rho\big(\lVert F_i^{-1/2} (g_i - \bar g_i) \rVert\big)

with a pseudo-Huber function `rho`; of the first three terms `m` learns from the first, `s` and `nu` from the second,
the first guess `h` from the third. The last, of later steps, teaches all of the emulator what counts in the end: how
far, in standard deviations, a step with its gradient `g` leads from one with that of the source, `\bar g`.

Where posteriors are of several pieces the hints are of one, by chance: no use to the network, which is then better off
without a guide. (Scores at a guess as summaries: Alsing & Wandelt 2018, arXiv 1712.00012.)
"""

from __future__ import annotations

__all__ = ["Guide", "GuideOptions", "fit_guide"]

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from zuko.nn import MLP

from .constants import FIRST_SCORING_STEPS, LOG_DEGREES, LOG_SCALES
from .laplace import MOST_FRAMED
from .memory import Parts
from .places import Places
from .scoring import ROWS, Layers, hints, scored
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
#: Share below which its word is trusted so far that the flow is one in its frames: a pair that is far from its hint is
#: farther in units of a width that is too small, and to reach it all of the flow's tails become heavy.
_TRUSTED = 0.03
#: Share of its steps, and their number at least, after which one that finds far fewer is given up: it takes a third of
#: the time of the network, which can use it better.
_EARLY, _LEAST_STEPS = 0.3, 500
#: Share of the steps after which the source's slopes are learned too: before it the emulator's are far from any.
_LATE = 0.4
#: Steps of scoring to choose from, the least with which it has arrived: three in four of so many x are nearer to their
#: mode than so many standard deviations.
_STEPS, _ASKED, _ARRIVED = (3, 4, 6, 8), 1000, 0.25
#: Rows of which NumPy tells in a half to a third of the time: calling torch takes longer than what it does.
_FEW = 4
#: One of so many pairs has slopes, and of a batch: they take six times as long as the rest of the loss.
_SLOPED = 4

_Pairs = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class GuideOptions:
    """Sizes of the guide; it takes as many steps as the network after it.

    Arguments:
        hidden: Widths of the emulator's hidden layers.
        guess: Those of the first guess.
        scales: Those of the emulator's scales.
        learning_rate: Peak of the schedule.
    """

    hidden: tuple[int, ...] = (128, 128, 128, 128, 128)
    guess: tuple[int, ...] = (128, 128, 128)
    scales: tuple[int, ...] = (64, 64)
    learning_rate: float = 1e-2


class Guide(nn.Module):
    """`z` `(*, k)` -> the mode of its posterior at beta = 1 and the logarithms of its standard deviations, `(*, 2 d)`,
    and behind them, if it has frames, that of its posterior (`laplace.py`).

    Arguments:
        dim_u: Dimension d of `u`.
        dim_z: Dimension k of the scaled data.
        options: See `GuideOptions`.
        framed: Whether it has frames.
        steps: Steps of scoring.
    """

    def __init__(
        self, dim_u: int, dim_z: int, options: GuideOptions, framed: bool = True, steps: int = _STEPS[-1]
    ) -> None:
        super().__init__()
        self.dim, self.options, self.framed, self.steps = 2 * dim_u, options, framed, steps
        self.guess = MLP(dim_z, dim_u, options.guess, activation=nn.SiLU)
        self.middle = MLP(dim_u, dim_z, options.hidden, activation=nn.SiLU)
        self.log_scale = MLP(dim_u, dim_z, options.scales, activation=nn.SiLU)
        self.log_degrees = nn.Parameter(torch.full((dim_z,), _START))
        self._parts = Parts("asking the guide")

    @torch.no_grad()
    def forward(self, z: Tensor) -> Tensor:
        told = self._found(z.reshape(-1, z.shape[-1]))
        told = told if self.framed else told[:, : self.dim]
        return told.reshape(*z.shape[:-1], told.shape[-1])

    @torch.no_grad()
    def places(self, z: Tensor) -> Places:
        """Where the posteriors of `z` `(m, k)` may lie: for the sampler, which need not take its word."""
        found = self._found(z)
        return Places(found[:, : self.dim // 2], found[:, self.dim :])

    def _found(self, z: Tensor) -> Tensor:
        """Modes, logarithms of the standard deviations and frames of `z` `(n, k)`."""
        networks = _layers(self.guess), _layers(self.middle), _layers(self.log_scale)
        if len(z) <= _FEW and z.device.type == "cpu":
            guess, middle, log_scale = (
                [(w.detach().numpy(), b.detach().numpy()) for w, b in part] for part in networks
            )
            with np.errstate(over="ignore", invalid="ignore"):  # of what is far from everything
                found = hints(np, z.numpy(), guess, middle, log_scale, self.degrees.detach().numpy(), self.steps)
            return torch.from_numpy(found)

        def tell(part: Tensor) -> Tensor:
            told: Tensor = hints(torch, part, *networks, self.degrees, self.steps)
            return told

        return torch.cat([self._parts.map(tell, part) for part in z.split(ROWS)])

    @property
    def degrees(self) -> Tensor:
        """Degrees of freedom of each number, `(k,)`."""
        return self.log_degrees.clamp(*LOG_DEGREES).exp()

    def loss(self, u: Tensor, z: Tensor, middle: Tensor) -> Tensor:
        """The loss but for its last term, of pairs `u` `(n, d)`, `z` `(n, k)` with the source's middles `(n, k)`."""
        m, s, degrees = self.middle(u), self.log_scale(u).clamp(*LOG_SCALES), self.degrees
        error = (middle - m) / s.detach().exp().clamp(min=_FINE)
        half = (degrees + 1) / 2
        student = half * torch.log1p(((z - m.detach()) * torch.exp(-s)).square() / degrees) + s
        student = student + torch.lgamma(degrees / 2) - torch.lgamma(half) + degrees.log() / 2
        guessed = (self.guess(z) - u).square()
        loss: Tensor = _huber(error.square()).mean() + student.mean() + guessed.mean()
        return loss

    def astray(self, u: Tensor, z: Tensor, slope: Tensor) -> Tensor:
        """The last term: how far steps lead from the source's, with gradients `slope` `(n, d)` of `log p(z | u)`."""
        eye = torch.eye(u.shape[1], dtype=u.dtype, device=u.device)
        _, gradient, information = scored(torch, u, z, _layers(self.middle), _layers(self.log_scale), self.degrees, eye)
        error = gradient + u - slope
        # Were the information to learn, it could as well become large.
        square = _square(error, information.detach())
        return _huber(square.where(square.isfinite(), 0.0)).mean()

    def lost(self, u: Tensor, z: Tensor) -> float:
        """How often pairs `(n, d)`, `(n, k)` have a parameter far from its hint: the largest share of any, 0 to 1."""
        mode, log_deviation = self(z)[:, : self.dim].chunk(2, dim=-1)
        far = (u - mode).abs() > _FAR * log_deviation.exp()
        return float(far.float().mean(dim=0).max())

    @torch.no_grad()
    def settle(self, z: Tensor) -> None:
        """Takes as many steps from now on as those of `z` `(n, k)` need."""
        emulator = _layers(self.middle), _layers(self.log_scale), self.degrees
        eye = torch.eye(self.dim // 2, dtype=z.dtype, device=z.device)
        for steps in _STEPS:
            self.steps = steps
            mode = self._found(z)[:, : self.dim // 2]
            _, gradient, information = scored(torch, mode, z, *emulator, eye)
            if _square(gradient, information).nan_to_num(math.inf).quantile(0.75) < _ARRIVED**2:
                return

    def as_dict(self) -> dict[str, Any]:
        """JSON form of the architecture."""
        options = self.options
        sizes = {key: list(getattr(options, key)) for key in ("hidden", "guess", "scales")}
        steps = {} if self.steps == FIRST_SCORING_STEPS else {"steps": self.steps}
        return {**sizes, **steps, **({"framed": True} if self.framed else {})}

    @classmethod
    def from_dict(cls, dim_u: int, dim_z: int, spec: dict[str, Any]) -> Guide:
        hidden, guess, scales = (tuple(spec[key]) for key in ("hidden", "guess", "scales"))
        options, framed = GuideOptions(hidden, guess, scales), spec.get("framed", False) is True
        return cls(dim_u, dim_z, options, framed, spec.get("steps", FIRST_SCORING_STEPS))


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
    slopes: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Guide | None:
    """A guide that has learned from pairs `u` `(n, d)` and `z` `(n, k)` of a source with middles `(n, k)`.

    None if it does not find most of them, which is where posteriors are of several pieces; with frames only if it
    finds nearly all.

    Arguments:
        u, z, middle: Pairs, drawn from wherever posteriors are asked for.
        options: See `GuideOptions`.
        steps, batch_size: Of the training.
        generator: Source of randomness on the CPU.
        on_tenth: Called with each tenth of the steps that is over and the loss of its last.
        threads: What shares the work of a step; None for the thread at hand.
        slopes: Gives the source's gradients of `log p(z | u)` `(n, d)` for pairs; asked once, after two fifths of the
            steps, for a quarter of the pairs.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        guide = Guide(u.shape[1], z.shape[1], options, u.shape[1] <= MOST_FRAMED).to(u.device)
    optimizer = Soap(guide.parameters(), options.learning_rate, weight_decay=1e-4, threads=threads)
    descent = Descent(guide, optimizer, steps, threads)
    averaged = descent.averaged
    assert isinstance(averaged, Guide)
    batch, order = min(batch_size, len(u)), torch.zeros(0, dtype=torch.long)
    judged, early = (u[:_JUDGED], z[:_JUDGED]), max(_LEAST_STEPS, round(_EARLY * steps))
    late, sloped = max(early, round(_LATE * steps)), None
    for step in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(u), generator=generator)
        rows, order = order[:batch].to(u.device), order[batch:]
        pairs: _Pairs = (u[rows], z[rows], middle[rows])
        if slopes is not None and step == late:
            # Every fourth: pairs from near an observation come after those of the prior.
            sloped = u[::_SLOPED], z[::_SLOPED], slopes(u[::_SLOPED], z[::_SLOPED])
        some: _Pairs | None = None
        if sloped is not None:
            rows = torch.randint(len(sloped[0]), (math.ceil(batch / _SLOPED),), generator=generator).to(u.device)
            some = sloped[0][rows], sloped[1][rows], sloped[2][rows]
        descent.step(partial(_terms, guide, pairs, some), batch)
        tenth = 10 * (step + 1) // steps
        if on_tenth is not None and tenth > 10 * step // steps:
            with torch.no_grad():
                on_tenth(tenth, float(guide.loss(*pairs)))
        if step + 1 == early and averaged.lost(*judged) > 2 * _LOST:
            return None
    guide.load_state_dict(averaged.state_dict())
    guide.settle(z[:_ASKED])
    lost = guide.lost(*judged)
    guide.framed = guide.framed and lost < _TRUSTED
    return guide.eval().requires_grad_(False) if lost < _LOST else None


def _square(gradient: Tensor, information: Tensor) -> Tensor:
    """How far a step with that gradient `(n, d)` leads, squared, in standard deviations `(n,)`."""
    step = torch.linalg.solve(information, gradient.unsqueeze(-1)).squeeze(-1)
    return (gradient * step).sum(dim=-1)


def _huber(square: Tensor) -> Tensor:
    return (1 + square).sqrt() - 1


def _terms(guide: Guide, pairs: _Pairs, sloped: _Pairs | None, count: int) -> Iterator[Callable[[], Tensor]]:
    """A step's loss as the sum of so many functions."""
    parts = zip(*(column.tensor_split(count) for column in pairs), strict=True)
    some = repeat(None) if sloped is None else zip(*(column.tensor_split(count) for column in sloped), strict=True)
    for part, few in zip(parts, some, strict=False):
        yield partial(_term, guide, part, few, len(part[0]) / len(pairs[0]))


def _term(guide: Guide, pairs: _Pairs, sloped: _Pairs | None, share: float) -> Tensor:
    loss = guide.loss(*pairs)
    return (loss if sloped is None else loss + guide.astray(*sloped)) * share


def _layers(network: MLP) -> Layers:
    return [(layer.weight, layer.bias) for layer in network if hasattr(layer, "weight")]
