r"""A committee of robust regressions of data on parameters: the mean of smooth simulators from few simulations.

.. math:: m(u) = \frac1K \sum_k m_k(u), \qquad
    \min \sum_k \sum_{i \notin \text{fold } k} \sum_j \left[\log s_j
    + \frac{\nu + 1}{2} \log\left(1 + \frac{(z_{ij} - m_{kj}(u_i))^2}{\nu\, s_j^2}\right)\right]

K networks with the likelihood of Student's t and one scale a column. With squares, the few simulations that a network
cannot follow yet (where an oscillation turns fast, say) would drown what the many others tell about the mean, which
often is known much better than the prior's spread; with a variance of its own for each u, it would learn less where it
errs most (Seitzer et al. 2022, arXiv 2203.09168). The committee's mean is better than any member's (Lakshminarayanan et
al. 2017, arXiv 1612.01474).

Each network leaves out one fold of the simulations. What it leaves of those is what it would leave of fresh ones: a
density fitted to these residuals is honest about the error of the mean. Networks learn in groups of four, each group
with scales of its own: so two threads share the work, and how many there are changes nothing.
"""

from __future__ import annotations

__all__ = ["CommitteeMean"]

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from .threads import Threads
from .training import TrainOptions, fit_module, planned_epochs, told_apart

#: Networks that learn together.
_GROUP = 4
#: Degrees of freedom of Student's t.
_NU = 3.0
#: Decoupled weight decay: smooth networks know more of few simulations.
_DECAY = 0.1
#: Networks of a committee are deep and have no scale to learn for each u: they bear a higher learning rate than flows.
_FASTER = 2.0
#: Lowest logarithm of a column's scale: where the simulator is deterministic, nothing is left.
_LOWEST = -7.0
_CHUNK = 8192


class CommitteeMean(nn.Module):
    """`u` `(*, d)` to the mean of `z` `(*, k)`; see the module.

    Arguments:
        context: Dimension d of `u`.
        features: Dimension k of `z`.
        hidden: Widths of the hidden layers.
        networks: How many there are, a multiple of four.
    """

    #: What weight decay leaves alone (`fit_module`).
    undecayed = ("log_scale",)

    def __init__(self, context: int, features: int, hidden: Sequence[int], networks: int = _GROUP) -> None:
        super().__init__()
        self.networks, sizes = networks, (context, *hidden, features)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for before, after in pairwise(sizes):
            bound = 1 / math.sqrt(before)
            self.weights.append(torch.empty(networks, before, after).uniform_(-bound, bound))
            self.biases.append(torch.empty(networks, 1, after).uniform_(-bound, bound))
        # It starts wide and comes down slowly: first all is learned from, then what cannot be followed counts less.
        self.log_scale = nn.Parameter(torch.full((features,), -1.0))
        self.register_buffer("center", torch.zeros(features))
        self.register_buffer("spread", torch.ones(features))
        self.register_buffer("standardized", torch.tensor(False))
        self.center: Tensor
        self.spread: Tensor
        self.standardized: Tensor

    def forward(self, u: Tensor) -> Tensor:
        """The mean of `z` at `u`."""
        flat = u.reshape(-1, u.shape[-1])
        # The networks together are wide: many rows at once would take much memory.
        mean = torch.cat([self.each(part).mean(dim=0) for part in flat.split(_CHUNK)])
        return (mean * self.spread + self.center).reshape(*u.shape[:-1], mean.shape[-1])

    def each(self, u: Tensor) -> Tensor:
        """What every network says of the standardized `z` at `u` `(n, d)`, `(networks, n, k)`."""
        value = u.expand(self.networks, *u.shape)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            value = torch.baddbmm(bias, functional.silu(value) if layer else value, weight)
        return value

    def voices(self, u: Tensor) -> Tensor:
        r"""Means of `z` `(networks, n, k)` that differ as much as this mean may be off by chance.

        .. math:: m(u) + \left(m_k(u) - m(u)\right) / \sqrt K
        """
        each = self.each(u)
        mean = each.mean(dim=0)
        return (mean + (each - mean) / math.sqrt(self.networks)) * self.spread + self.center

    def fit(
        self,
        u: Tensor,
        z: Tensor,
        held_out: Tensor,
        number: Tensor,
        options: TrainOptions,
        generator: torch.Generator,
        threads: Threads | None = None,
    ) -> Tensor:
        """Fits to `u` `(n, d)` and `z` `(n, k)`, continuing; returns honest residuals `(n, k)`.

        Arguments:
            u, z, held_out: As for `fit_flow`.
            number: A number `(n,)` of each simulation, the same from fit to fit: it tells who does not see it.
            options, generator: As for `fit_flow`, but for the weight decay and the learning rate.
            threads: What shares the work; None for the thread at hand.
        """
        if not self.standardized:
            self._standardize(z[~held_out])
        # Scattered: regular numbers, every tenth say, would fall into few folds.
        fold = ((number * 2654435761) >> 16) % self.networks
        scaled, rate = (z - self.center) / self.spread, _FASTER * options.learning_rate
        options = replace(options, learning_rate=rate, weight_decay=_DECAY)
        firsts = range(0, self.networks, _GROUP)
        seeds = torch.randint(2**31, (len(firsts),), generator=generator).tolist()

        @torch.enable_grad()  # which a thread does not take over from who waits for it
        def fit_group(first: int, seed: int) -> CommitteeMean:
            group, lesson = self._group(first), _Lesson(u, scaled, fold - first, held_out)
            planned = replace(options, max_epochs=planned_epochs(len(lesson), options))
            fit_module(group, lesson, u.device, planned, torch.Generator().manual_seed(seed))
            return group

        self._take((threads or Threads(1)).map(fit_group, firsts, seeds))
        return self._left(u, z, fold, held_out)

    @torch.no_grad()
    def _group(self, first: int) -> CommitteeMean:
        """The networks from `first` on that learn together, as a committee of their own; a copy."""
        group = copy.deepcopy(self)
        group.networks = _GROUP
        for parameter in (*group.weights, *group.biases):
            parameter.data = parameter[first : first + _GROUP].clone()
        return group

    @torch.no_grad()
    def _take(self, groups: Sequence[CommitteeMean]) -> None:
        """Takes over what groups have learned."""
        for name, parameter in self.named_parameters():
            learned = [group.get_parameter(name).detach() for group in groups]
            parameter.copy_(torch.stack(learned).mean(dim=0) if name in self.undecayed else torch.cat(learned))
        self.eval()

    def _standardize(self, z: Tensor) -> None:
        """Takes the scale of `z` for good: what the networks have learned is told in it."""
        self.center.copy_(z.mean(dim=0))
        spread = z.std(dim=0).nan_to_num(0.0)
        self.spread.copy_(torch.where(spread > 1e-6, spread, torch.ones_like(spread)))
        self.standardized.fill_(True)

    @torch.no_grad()
    def _left(self, u: Tensor, z: Tensor, fold: Tensor, held_out: Tensor) -> Tensor:
        left = torch.empty_like(z)
        for rows in torch.arange(len(u), device=u.device).split(_CHUNK):
            said = self.each(u[rows])
            blind = said[fold[rows], torch.arange(len(rows), device=u.device)]
            mean = torch.where(held_out[rows, None], said.mean(dim=0), blind)
            left[rows] = z[rows] - (mean * self.spread + self.center)
        return left


class _Lesson:
    """Simulations, each seen by all networks but the one of its `fold` `(n,)`."""

    def __init__(self, u: Tensor, z: Tensor, fold: Tensor, held_out: Tensor) -> None:
        self.u, self.z, self.fold = u, z, fold
        self.learned, self.scored = told_apart(held_out)

    def __len__(self) -> int:
        return len(self.learned)

    def loss(self, committee: nn.Module, rows: Tensor, generator: torch.Generator) -> Tensor:
        rows = self.learned[rows]
        assert isinstance(committee, CommitteeMean)
        seen = self.fold[rows] != torch.arange(committee.networks, device=rows.device)[:, None]
        each = _student(committee.each(self.u[rows]) - self.z[rows], committee.log_scale)
        return (each * seen[..., None]).mean()

    @torch.no_grad()
    def score(self, committee: nn.Module) -> float:
        assert isinstance(committee, CommitteeMean)
        parts = self.scored.split(_CHUNK)
        means = torch.cat([committee.each(self.u[rows]).mean(dim=0) for rows in parts])
        return float(_student(means - self.z[self.scored], committee.log_scale).mean())


def _student(difference: Tensor, log_scale: Tensor) -> Tensor:
    """Negative log density of Student's t, but for a constant."""
    log_scale = log_scale.clamp(min=_LOWEST)
    return (_NU + 1) / 2 * torch.log1p((difference * torch.exp(-log_scale)).square() / _NU) + log_scale
