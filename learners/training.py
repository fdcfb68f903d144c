r"""Training of a conditional flow by maximum likelihood, or of any other module by the loss of its rows, with the data
on the device and no loader in between.

.. math:: \min_\phi \; -\frac1n \sum_i \log p_\phi(v_i \mid c_i)
"""

from __future__ import annotations

__all__ = [
    "Descent",
    "Lesson",
    "TrainOptions",
    "fit_flow",
    "fit_module",
    "planned_epochs",
    "told_apart",
]

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from zuko.flows import Flow

from .compiling import LogProb, compiled_log_prob, log_prob
from .memory import Parts
from .rows import evenly
from .threads import Threads

#: Nats that one held-out pair may cost: a single outlier must not decide when training stops.
_WORST = 1e4
_MIN_BATCH, _STEPS_PER_EPOCH = 64, 50
#: Held-out rows that are scored after each epoch: more would say the same.
_MOST_SCORED = 20_000
#: Steps after which the score is taken, however many rows there are.
_LONGEST = 500
#: Share of the old that the moving average of the weights keeps each step.
_AVERAGING = 0.98
#: Rows of a batch that are not taken apart, whatever the memory: some losses compare rows.
_SMALLEST = 8


@dataclass(frozen=True)
class TrainOptions:
    """How a flow is fitted.

    Arguments:
        max_epochs: Passes over the data at most; of many data a pass has 500 steps, and sees some. `fit_flow` plans
            fewer where data are many.
        patience: Evaluations without a better held-out score before stopping.
        batch_size: Pairs a step, fewer where there are few pairs.
        learning_rate: Peak of the schedule (warm-up, then cosine to zero over `max_epochs`).
        weight_decay: Decoupled weight decay of AdamW.
        planned_steps: Steps that `fit_flow` plans for a thousand pairs.
        compiled: Whether the steps of `fit_flow` are compiled: see `compiling.py`.
    """

    max_epochs: int = 300
    patience: int = 20
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    planned_steps: int = 2800
    compiled: bool = False


class Descent:
    """Steps of an optimizer down the losses of a module: warm-up, then cosine to zero, gradients clipped.

    Attributes:
        averaged: The module with a moving average of the weights: as good as a lower learning rate without its slowness
            (Polyak & Juditsky 1992). This is what is scored and kept.

    Arguments:
        flow: The module, changed in place.
        optimizer: With the peak learning rate.
        total: Number of steps that are planned.
        threads: What shares the terms of a step; None for the thread at hand.
    """

    def __init__(
        self, flow: nn.Module, optimizer: torch.optim.Optimizer, total: int, threads: Threads | None = None
    ) -> None:
        self.flow, self.optimizer, self.threads, self.steps = flow, optimizer, threads or Threads(1), 0
        self._peak, self._total, self._warm_up = optimizer.defaults["lr"], total, min(100, total // 10 + 1)
        self.averaged = copy.deepcopy(flow)
        self._live: list[Tensor] = list(flow.parameters())
        self._slow: list[Tensor] = list(self.averaged.parameters())
        self._parts = Parts("a training step")

    def step(self, terms: Callable[[int], Iterable[Callable[[], Tensor]]], most: int) -> None:
        """One step; a loss whose gradient overflows is skipped.

        Arguments:
            terms: Gives (up to) so many functions whose values add up to the loss: one for each thread, or more where
                memory is short.
            most: Terms into which it can be taken apart.
        """

        def gradients(count: int) -> None:
            self.optimizer.zero_grad(set_to_none=True)
            if self.threads.shares == 1:
                for term in terms(count):
                    term().backward()
            else:
                shares = self.threads.map(self._gradient, terms(max(count, min(most, self.threads.shares))))
                # In their order: a sum must not depend on who was first.
                for parameter, *parts in zip(self._live, *shares, strict=True):
                    parameter.grad = sum(parts[1:], parts[0])

        self._parts.run(gradients, most)
        if not torch.nn.utils.clip_grad_norm_(self._live, 5.0).isfinite():
            return
        # By hand: torch's scheduler takes an eighth of the time of such a flow's backward pass.
        for group in self.optimizer.param_groups:
            group["lr"] = self._peak * _rate(self.steps, self._total, self._warm_up)
        self.optimizer.step()
        self.steps += 1
        with torch.no_grad():
            torch._foreach_lerp_(self._slow, self._live, 1 - min(_AVERAGING, self.steps / (self.steps + 9)))

    def _gradient(self, term: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        with torch.enable_grad():  # which a thread does not take over from who waits for it
            return torch.autograd.grad(term(), self._live, materialize_grads=True)


def fit_flow(
    flow: Flow,
    v: Tensor,
    c: Tensor,
    held_out: Tensor,
    options: TrainOptions,
    generator: torch.Generator,
    on_epoch: Callable[[int, float], None] | None = None,
    worth: Tensor | None = None,
) -> float:
    """Fits `flow` to pairs in place and leaves it at its best held-out score.

    A learning rate that has come down by the end is worth more than more steps: `n` thousand pairs get `n^0.3` times
    the steps of a thousand (`benchmarks/RESULTS.md`).

    Arguments:
        flow: The conditional flow `p(v | c)`.
        v: Data `(n, k)`.
        c: Context `(n, m)`.
        held_out: Which pairs are only scored, boolean `(n,)`.
        options: See `TrainOptions`.
        generator: Source of the shuffling, on the CPU.
        on_epoch: Called with the epoch and its held-out loss (nats a pair).
        worth: How much each pair counts where it is held out, `(n,)`; None for all alike. What is learned counts alike:
            a flow that follows the conditional density needs no weights, and with them learns from fewer pairs
            (Shimodaira 2000).

    Returns:
        The best held-out loss `-mean log p(v | c)` in nats.
    """
    lesson = _Pairs(v, c, held_out, compiled_log_prob() if options.compiled else log_prob, worth)
    options = replace(options, max_epochs=planned_epochs(len(lesson), options))
    return fit_module(flow, lesson, v.device, options, generator, on_epoch)


def fit_module(
    module: nn.Module,
    lesson: Lesson,
    device: torch.device,
    options: TrainOptions,
    generator: torch.Generator,
    on_epoch: Callable[[int, float], None] | None = None,
) -> float:
    """Fits `module` to a lesson in place and leaves it at its best held-out loss, which is returned.

    Arguments:
        module: What is trained.
        lesson: What it learns from.
        device: Where the lesson's rows are.
        options, generator, on_epoch: As for `fit_flow`.
    """
    n = len(lesson)
    batch, steps_per_epoch = _batch(n, options), _steps_per_epoch(n, options)
    optimizer = torch.optim.AdamW(_groups(module), options.learning_rate, weight_decay=options.weight_decay, fused=True)
    descent = Descent(module, optimizer, options.max_epochs * steps_per_epoch)
    best, best_state, waited = _scored(lesson, module), copy.deepcopy(module.state_dict()), 0
    for epoch in range(options.max_epochs):
        order = torch.randperm(n, generator=generator).to(device)
        module.train()
        for k in range(steps_per_epoch):
            rows = order[k * batch : (k + 1) * batch]
            descent.step(partial(_terms, lesson, module, rows, generator), max(1, len(rows) // _SMALLEST))
        for slow, live in zip(descent.averaged.buffers(), module.buffers(), strict=True):
            slow.copy_(live)  # what layers such as batch normalization have counted
        score = _scored(lesson, descent.averaged)
        if on_epoch is not None:
            on_epoch(epoch, score)
        if score < best:
            best, best_state, waited = score, copy.deepcopy(descent.averaged.state_dict()), 0
        else:
            waited += 1
            if waited >= options.patience:
                break
    module.load_state_dict(best_state)
    module.eval()
    return best


def _groups(module: nn.Module) -> list[dict[str, Any]]:
    """The parameters, those named in `module.undecayed` apart: zero is no better a guess of them than another."""
    apart = getattr(module, "undecayed", ())
    groups: list[dict[str, Any]] = [{"params": [p for name, p in module.named_parameters() if name not in apart]}]
    if apart:
        groups.append({"params": [module.get_parameter(name) for name in apart], "weight_decay": 0.0})
    return groups


def planned_epochs(n: int, options: TrainOptions) -> int:
    """Passes over `n` rows that `fit_flow` plans: `options.max_epochs`, or fewer where rows are many."""
    planned = round(options.planned_steps * max(1.0, n / 1000) ** 0.3 / _steps_per_epoch(n, options))
    return min(options.max_epochs, max(1, planned))


def _batch(n: int, options: TrainOptions) -> int:
    # Few data make small batches worth their steps.
    return min(options.batch_size, max(_MIN_BATCH, n // _STEPS_PER_EPOCH), n)


def _steps_per_epoch(n: int, options: TrainOptions) -> int:
    return max(1, min(n // _batch(n, options), _LONGEST))


def _terms(
    lesson: Lesson, module: nn.Module, rows: Tensor, generator: torch.Generator, count: int
) -> Iterator[Callable[[], Tensor]]:
    for part in rows.tensor_split(count):
        yield partial(_term, lesson, module, part, generator, len(part) / len(rows))


def _term(lesson: Lesson, module: nn.Module, rows: Tensor, generator: torch.Generator, share: float) -> Tensor:
    return lesson.loss(module, rows, generator) * share


@torch.no_grad()
def _scored(lesson: Lesson, module: nn.Module) -> float:
    return lesson.score(module.eval())


class Lesson(Protocol):
    """What a module learns from: rows, their loss, and a score on rows that are kept apart."""

    def __len__(self) -> int:
        """Number of rows to learn from."""
        ...

    def loss(self, module: nn.Module, rows: Tensor, generator: torch.Generator) -> Tensor:
        """The loss of `rows` `(b,)`, a scalar."""
        ...

    def score(self, module: nn.Module) -> float:
        """The loss of the rows kept apart: the same for the same weights."""
        ...


def told_apart(held_out: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of the rows to learn from, and of some that are held out; of the former again if none is."""
    learned = (~held_out).nonzero().squeeze(-1)
    return learned, evenly(held_out.nonzero().squeeze(-1) if held_out.any() else learned, _MOST_SCORED)


class _Pairs:
    """Pairs of data and context; without any that are held out, all are scored."""

    def __init__(self, v: Tensor, c: Tensor, held_out: Tensor, log_prob: LogProb, worth: Tensor | None) -> None:
        self.v, self.c, self.log_prob = v, c, log_prob
        self.learned, scored = told_apart(held_out)
        self.scored = v[scored], c[scored], None if worth is None else worth[scored]

    def __len__(self) -> int:
        return len(self.learned)

    def loss(self, flow: nn.Module, rows: Tensor, generator: torch.Generator) -> Tensor:
        rows = self.learned[rows]
        log_p = self.log_prob(flow, self.v[rows], self.c[rows])
        # One pair that overflows must not undo the training.
        return -log_p[log_p.isfinite()].mean()

    def score(self, flow: nn.Module) -> float:
        return held_out_loss(flow, *self.scored)


@torch.no_grad()
def held_out_loss(flow: nn.Module, v: Tensor, c: Tensor, worth: Tensor | None = None, chunk: int = 8192) -> float:
    """`-mean log p(v | c)` in nats, with weights `worth`; a pair counts for at most 1e4, infinite if all do."""
    parts, pairs = Parts("scoring"), zip(v.split(chunk), c.split(chunk), strict=True)
    logs = torch.cat([parts.map(lambda a, b: flow(b).log_prob(a), *pair) for pair in pairs])
    usable = logs.isfinite() & (logs > -_WORST)
    if not usable.any():
        return math.inf
    losses = -torch.where(usable, logs, -_WORST)
    return float(losses.mean() if worth is None else losses @ worth / worth.sum())


def _rate(step: int, total: int, warm_up: int) -> float:
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / max(1, total - warm_up))))
