r"""Distillation: tempered posteriors of many x become one network `q(u | x, beta)`.

.. math:: \min_q \; -\mathbb E_{x, \log\beta \sim U} \mathbb E_{u \sim p_\beta(u | x)} \log q(u \mid x, \beta)
    - \mathbb E_{(u, x) \sim p(u, x)} \log q(u \mid x, 1)
    + \mathbb E_{x, \beta} \operatorname{Var}_u \left[\log q(u \mid x, \beta) - \log p(u) - \beta\, \ell(u, x)\right]

The first two terms are maximum likelihood. The third, the log-variance divergence (Richter et al. 2020, arXiv
2010.10436), uses that the target is known up to a constant: it vanishes, with its gradient, for the posterior itself,
whatever the points are drawn from. They are the particles and, once the network knows a little, its own draws for any
x: those need no walk, and so the network sees many more x than were walked for. A pseudo-Huber function in place of the
square keeps single points from ruling.
"""

from __future__ import annotations

__all__ = ["DistillationOptions", "distill"]

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from zuko.flows import Flow

from .compiling import compiled_log_prob, log_prob
from .memory import Parts
from .network import PosteriorNetwork
from .pairs import Groups, JointPairs, ParticleBank, Target, together
from .soap import Soap
from .threads import Threads
from .training import Descent, held_out_loss

_HELD_OUT = 0.02
#: Nats by which the last state may be worse than an earlier one.
_DIVERGED = 0.5
#: Contexts that the network draws for at once.
_PIECE = 8192
#: How often a group of the network's own draws is used in a pass: to draw them costs more than to learn from them.
_USES = 4
#: Passes that the same joint draws serve where there is a guide: what it says of others takes time.
_KEPT = 4


@dataclass(frozen=True)
class DistillationOptions:
    """How the network is fitted.

    Arguments:
        pairs: Pairs `(u, x, beta)` of particles and joint draws in a pass; the former are drawn anew for each pass, the
            latter too, or with a guide for every fourth.
        epochs: Passes.
        unguided: How many times as many passes a network has that draws of x teach without a guide: it learns more
            slowly, and the guide's time is left.
        batch_size: Such pairs a step.
        learning_rate: Peak of the schedule.
        joint_share: Share of the pairs that are joint draws at beta = 1.
        real_share: Share that are real simulations, part of `joint_share`, at most.
        group: Points of one x and temperature whose densities are compared.
        own_share: Own draws of the network for each pair.
        own_after: Share of the steps after which the network's own draws are used.
        compiled: Whether steps are compiled: see `compiling.py`.
    """

    pairs: int = 140_000
    epochs: int = 12
    unguided: float = 2.0
    batch_size: int = 512
    learning_rate: float = 1e-2
    joint_share: float = 0.5
    real_share: float = 0.03
    group: int = 8
    own_share: float = 1.0
    own_after: float = 0.2
    compiled: bool = False

    @property
    def steps_a_pass(self) -> int:
        """Steps of one pass."""
        return max(1, self.pairs // self.batch_size)

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.epochs * self.steps_a_pass

    def without_guide(self) -> DistillationOptions:
        """The same with `unguided` times as many passes."""
        return replace(self, epochs=math.ceil(self.unguided * self.epochs))


def distill(
    network: PosteriorNetwork,
    banks: Sequence[ParticleBank],
    joint: Sequence[JointPairs],
    target: Target,
    options: DistillationOptions,
    generator: torch.Generator,
    on_epoch: Callable[[int, float], None] | None = None,
    threads: Threads | None = None,
) -> float:
    """Fits `network` in place; returns its held-out loss, `-mean log q(u | x, beta)` in nats.

    Arguments:
        network: The network, continued from where it stands.
        banks: Particles, each bank in proportion to its share.
        joint: Joint draws likewise; none if beta = 1 is not in the range.
        target: What the posteriors are.
        options: See `DistillationOptions`.
        generator: Source of randomness on the CPU.
        on_epoch: Called with epoch and held-out loss.
        threads: What shares the work of a step; None for the thread at hand.
    """
    # A compiled step is not for several threads.
    threads = None if options.compiled else threads
    lesson = _Lesson(network, banks, joint, target, options, generator, threads)
    optimizer = Soap(network.flow.parameters(), options.learning_rate, weight_decay=1e-4, threads=threads)
    descent = Descent(network.flow, optimizer, options.steps, threads)
    scored = lesson.held_out()
    best, kept = held_out_loss(network.flow, *scored), copy.deepcopy(network.flow.state_dict())
    score = best
    for epoch in range(options.epochs):
        if epoch and (network.guide is None or epoch % _KEPT == 0):
            lesson.renew()
        own = epoch + 1 > options.own_after * options.epochs
        for terms in lesson.steps_of_a_pass(descent.averaged if own else None):
            descent.step(terms, lesson.most_parts)
        score = held_out_loss(descent.averaged, *scored)
        if on_epoch is not None:
            on_epoch(epoch, score)
        if score < best:
            best, kept = score, copy.deepcopy(descent.averaged.state_dict())
    # The score is of the x of the particles alone, and blind to what is learned of others: it only tells of accidents.
    if score > best + _DIVERGED:
        score = best
    else:
        kept = descent.averaged.state_dict()
    network.flow.load_state_dict(kept)
    return score


class _Lesson:
    """The pairs of a pass, and the loss of each step."""

    def __init__(
        self,
        network: PosteriorNetwork,
        banks: Sequence[ParticleBank],
        joint: Sequence[JointPairs],
        target: Target,
        options: DistillationOptions,
        generator: torch.Generator,
        threads: Threads | None = None,
    ) -> None:
        self.network, self.target, self.generator = network, target, generator
        self.threads = threads or Threads(1)
        self.log_prob = compiled_log_prob() if options.compiled else log_prob
        # In a lesson z is what the network is told: the scaled data come first.
        self.banks = [replace(bank, z=network.told(bank.z)) for bank in banks]
        parts = [source.split(_HELD_OUT) for source in joint]
        self.joint, self.joint_held_out = [first for first, _ in parts], [second for _, second in parts]
        self.size = min(options.group, *(bank.particles.u.shape[1] - 1 for bank in banks))
        share = min(options.joint_share, sum(source.share for source in joint))
        self.joint_pairs = round(share * options.batch_size)
        self.groups = max(1, (options.batch_size - self.joint_pairs) // self.size)
        self.own_groups = round(options.own_share * options.batch_size / self.size)
        # Few real pairs would be remembered if learned often; compared with others of their x they do no harm.
        self.own_joint_share = options.joint_share if joint else 0.0
        self.steps = options.steps_a_pass
        self.pairs = options.pairs
        #: Parts into which a step can be taken, each with some of everything.
        self.most_parts = min(self.groups, self.own_groups or self.groups)
        self._drawing = Parts("drawing from the network")
        self._pairs: tuple[Tensor, Tensor, Tensor | None] | None = None

    def held_out(self) -> tuple[Tensor, Tensor]:
        """Pairs that are not learned from, `u` and context."""
        n = max(100, round(_HELD_OUT * self.pairs))
        share = self.groups * self.size / (self.groups * self.size + self.joint_pairs)
        of_banks = [
            bank.held_out(k, self.generator)
            for bank, k in zip(self.banks, _counts(round(share * n), self.banks), strict=True)
        ]
        of_joint = [
            (*self._told(*source.draw(k, self.generator)[:2]), torch.ones(k, device=source.u.device))
            for source, k in zip(self.joint_held_out, _counts(round((1 - share) * n), self.joint), strict=True)
        ]
        u, z, beta = (torch.cat(column) for column in zip(*of_banks, *of_joint, strict=True))
        return u, self.network.context(z, beta)

    def renew(self) -> None:
        """Other joint draws for the passes to come, where there are others."""
        self.joint, self._pairs = [source.renewed() for source in self.joint], None

    def steps_of_a_pass(self, teacher: Flow | None) -> Iterator[Callable[[int], Iterator[Callable[[], Tensor]]]]:
        """For every step its loss as so many functions' sum; `teacher` gives the own draws, None for none."""
        particles = self._particles(self.steps * self.groups, self.size)
        particles = particles.take(self._shuffled(len(particles)))
        if self._pairs is None:
            self._pairs = self._joint(self.steps * self.joint_pairs)
        order = self._shuffled(len(self._pairs[0]))
        u, z = self._pairs[0][order], self._pairs[1][order]
        own = None if teacher is None or not self.own_groups else self._own(teacher)
        turns = None if own is None else torch.cat([self._shuffled(len(own)) for _ in range(_USES)])
        for k in range(self.steps):
            groups = [particles.take(slice(k * self.groups, (k + 1) * self.groups))]
            if own is not None and turns is not None:
                groups.append(own.take(turns[k * self.own_groups : (k + 1) * self.own_groups]))
            rows = slice(k * self.joint_pairs, (k + 1) * self.joint_pairs)
            yield partial(self._terms, groups, u[rows], z[rows])

    def _terms(self, groups: Sequence[Groups], u: Tensor, z: Tensor, count: int) -> Iterator[Callable[[], Tensor]]:
        for k in range(count):
            rows = _part(len(u), k, count)
            part = [g.take(_part(len(g), k, count)) for g in groups]
            yield partial(self._loss, part, u[rows], z[rows], 1 / count)

    def _loss(self, groups: Sequence[Groups], u: Tensor, z: Tensor, share: float) -> Tensor:
        points = [g.u.flatten(0, 1) for g in groups]
        data = [g.z.repeat_interleave(self.size, dim=0) for g in groups]
        beta = [g.beta.repeat_interleave(self.size) for g in groups]
        context = self.network.context(torch.cat([z, *data]), torch.cat([u.new_ones(len(u)), *beta]))
        log_q = self.log_prob(self.network.flow, torch.cat([u, *points]), context)
        # One pair that overflows must not undo the training.
        drawn = log_q[: len(u) + len(points[0])]
        loss: Tensor = -drawn[drawn.isfinite()].mean()
        for group, part in zip(groups, log_q[len(u) :].split([len(p) for p in points]), strict=True):
            loss = loss + _log_variance(part.unflatten(0, group.log_density.shape) - group.log_density)
        return loss * share

    def _particles(self, n: int, size: int) -> Groups:
        counts = zip(self.banks, _counts(n, self.banks), strict=True)
        return Groups.concatenate([bank.draw(k, size, self.target, self.generator) for bank, k in counts])

    def _joint(self, n: int) -> tuple[Tensor, Tensor, Tensor | None]:
        if not n:
            particles = self.banks[0].particles.u
            return particles.new_zeros(0, particles.shape[-1]), self.banks[0].z[:0], None
        counts = zip(self.joint, _counts(n, self.joint), strict=True)
        u, z, x = zip(*(source.draw(k, self.generator) for source, k in counts), strict=True)
        order = self._shuffled(n)
        as_they_are = together(x)
        return (
            *self._told(torch.cat(u)[order], torch.cat(z)[order]),
            None if as_they_are is None else as_they_are[order.cpu()],
        )

    def _told(self, u: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return u, self.network.told(z)

    @torch.no_grad()
    def _own(self, teacher: Flow) -> Groups:
        """Groups of one particle or joint draw, so that no mode is forgotten, and draws of the network."""
        n = math.ceil(self.steps * self.own_groups / _USES)
        of_joint = int(n * self.own_joint_share)
        particles = self._particles(n - of_joint, 1)
        u, z, x = self._joint(of_joint)
        low, high = (math.log(b) for b in self.network.beta_range)
        beta = torch.exp(low + (high - low) * torch.rand(of_joint, generator=self.generator)).to(u.device)
        anchor = torch.cat([particles.u[:, 0], u])
        z, beta, x = torch.cat([particles.z, z]), torch.cat([particles.beta, beta]), together([particles.x, x])
        copies = self.size - 1
        context = self.network.context(z.repeat_interleave(copies, dim=0), beta.repeat_interleave(copies))
        with torch.random.fork_rng(devices=[u.device] if u.is_cuda else []):
            torch.manual_seed(int(torch.randint(2**31, (), generator=self.generator)))
            noise = torch.randn(len(context), u.shape[-1], device=u.device)

        @torch.no_grad()  # which a thread does not take over from who waits for it
        def draw(c: Tensor, noise: Tensor) -> Tensor:
            return teacher(c).transform.inv(noise)

        draw_in_parts = partial(self._drawing.map, draw)
        drawn = torch.cat(self.threads.map(draw_in_parts, context.split(_PIECE), noise.split(_PIECE)))
        points = torch.cat([anchor[:, None], drawn.unflatten(0, (n, copies))], dim=1)
        # A draw that overflowed says nothing; its group goes on with one point fewer.
        points = points.where(points.isfinite().all(dim=-1, keepdim=True), anchor[:, None])
        log_likelihood = self.target.log_likelihood(points, z[:, : self.network.dim_z] if x is None else x)
        return Groups(points, z, beta, self.target(points, beta, log_likelihood))

    def _shuffled(self, n: int) -> Tensor:
        return torch.randperm(n, generator=self.generator).to(self.banks[0].z.device)


def _part(n: int, k: int, count: int) -> slice:
    """The k-th of `count` parts of `n` rows."""
    return slice(k * n // count, (k + 1) * n // count)


def _log_variance(difference: Tensor) -> Tensor:
    """Pseudo-Huber variance of `log q - log p` `(n, g)` within groups, mean over them."""
    difference = difference.where(difference.isfinite(), 0.0)
    centered = difference - difference.mean(dim=1, keepdim=True)
    size = difference.shape[1]
    return ((1 + centered.square()).sqrt() - 1).mean() * size / (size - 1)


def _counts(n: int, sources: Sequence[ParticleBank] | Sequence[JointPairs]) -> list[int]:
    """`n` shared out by the shares of `sources`."""
    ends = torch.tensor([0.0] + [source.share for source in sources], dtype=torch.float64).cumsum(0)
    if len(sources) and not ends[-1]:
        ends = torch.arange(len(sources) + 1, dtype=torch.float64)
    whole = (ends / ends[-1] * n).round().long() if len(sources) else ends.long()
    return whole.diff().tolist()
