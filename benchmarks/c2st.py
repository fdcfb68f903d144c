"""The classifier two-sample test: can a classifier tell our draws from exact ones? 0.5 is indistinguishable.

As in the public benchmark (Lueckmann et al. 2021, arXiv 2101.04653; after Lopez-Paz & Oquab 2017): a multilayer
perceptron with two hidden layers of 10 d, data standardized by the reference (its `C2ST_Z`; its headline figures are
without), accuracy over 5 folds. With 2,000 draws it reads lower than with their 10,000: compare only within one table.

The classifier is scikit-learn's `MLPClassifier(max_iter=1000)` with its defaults, written for many tests at once: the
folds of several tests train together as one batch of networks (tests/benchmarks holds it against the original).
"""

from __future__ import annotations

__all__ = ["c2st"]

import math

import torch
from torch import Tensor
from torch.nn import functional

FOLDS = 5
#: Defaults of `MLPClassifier`.
_BATCH, _RATE, _DECAY, _TOLERANCE, _PATIENCE, _EPOCHS = 200, 1e-3, 1e-4, 1e-4, 10, 1000
_FIRST, _SECOND, _EPSILON = 0.9, 0.999, 1e-8
#: Weights of all networks that are trained at once: more, with their moments, would not stay in a core's cache.
_CACHED = 120_000


def c2st(reference: Tensor, draws: Tensor, seed: int = 1) -> Tensor:
    """Accuracy in [0, 1] of telling draws from the reference, one test a row.

    Arguments:
        reference: Exact draws, `(m, n, d)`.
        draws: What is judged, `(m, n, d)`; a test with any that is not finite scores 1.
        seed: Of folds, first weights and shuffling.

    Returns:
        `(m,)`.
    """
    reference, draws = reference.double(), draws.double()
    mean, std = reference.mean(dim=1, keepdim=True), reference.std(dim=1, keepdim=True, correction=0)
    data = ((torch.cat([reference, draws], dim=1) - mean) / std).float()
    labels = torch.cat([torch.zeros(reference.shape[1]), torch.ones(draws.shape[1])])
    finite = data.isfinite().all(dim=-1).all(dim=-1)
    scores = torch.ones(len(data))
    if finite.any():
        generator, d = torch.Generator().manual_seed(seed), data.shape[-1]
        together = max(1, _CACHED // (FOLDS * 10 * d * (11 * d + 3)))
        scores[finite] = torch.cat([_cross_validate(some, labels, generator) for some in data[finite].split(together)])
    return scores


def _cross_validate(data: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Mean accuracy over the folds of each test in `data` `(m, n, d)`, `(m,)`."""
    m, n, d = data.shape
    order = torch.randperm(n, generator=generator)
    size = n // FOLDS
    train = torch.stack([torch.cat([order[: k * size], order[(k + 1) * size : FOLDS * size]]) for k in range(FOLDS)])
    test = torch.stack([order[k * size : (k + 1) * size] for k in range(FOLDS)])
    which = torch.arange(m).repeat_interleave(FOLDS)
    networks = _Classifiers(m * FOLDS, d, 10 * d, generator)
    accuracy = torch.full((m * FOLDS,), torch.nan)
    train, test = train.repeat(m, 1), test.repeat(m, 1)
    best, waited = torch.full((m * FOLDS,), math.inf), torch.zeros(m * FOLDS, dtype=torch.long)
    running = torch.arange(m * FOLDS)
    for epoch in range(_EPOCHS):
        shuffled = train[running].gather(1, torch.rand(len(running), train.shape[1], generator=generator).argsort(1))
        total = torch.zeros(len(running))
        for index in shuffled.split(_BATCH, dim=1):
            loss = networks.step(data[which[running][:, None], index], labels[index])
            total += loss * index.shape[1]
        mean_loss = total / train.shape[1]
        waited = torch.where(mean_loss > best - _TOLERANCE, waited + 1, 0)
        best = torch.minimum(best, mean_loss)
        done = (waited > _PATIENCE) if epoch + 1 < _EPOCHS else torch.ones(len(running), dtype=torch.bool)
        if done.any():
            logits = networks.logits(data[which[running][:, None], test[running]])
            right = (logits > 0) == (labels[test[running]] > 0)
            accuracy[running[done]] = right.float().mean(dim=1)[done]
            networks.keep(~done)
            running, best, waited = running[~done], best[~done], waited[~done]
        if not len(running):
            break
    return accuracy.reshape(m, FOLDS).mean(dim=1)


class _Classifiers:
    """A batch of perceptrons `(b,)` with two hidden layers, trained by Adam, each on data of its own."""

    def __init__(self, number: int, features: int, width: int, generator: torch.Generator) -> None:
        self.parameters: list[Tensor] = []
        for fan_in, fan_out in ((features, width), (width, width), (width, 1)):
            bound = math.sqrt(6 / (fan_in + fan_out))
            for rows in (fan_in, 1):
                start = torch.empty(number, rows, fan_out).uniform_(-bound, bound, generator=generator)
                self.parameters.append(start)
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]
        self.steps = 0

    def logits(self, x: Tensor) -> Tensor:
        """`(b, n, d)` to `(b, n)`."""
        w1, b1, w2, b2, w3, b3 = self.parameters
        hidden = torch.baddbmm(b1, x, w1).relu_()
        return torch.baddbmm(b3, torch.baddbmm(b2, hidden, w2).relu_(), w3).squeeze(-1)

    @torch.no_grad()
    def step(self, x: Tensor, labels: Tensor) -> Tensor:
        """One step on `(b, n, d)` with labels `(b, n)`; returns the losses before it, `(b,)`."""
        w1, b1, w2, b2, w3, b3 = self.parameters
        n = x.shape[1]
        h1 = torch.baddbmm(b1, x, w1).relu_()
        h2 = torch.baddbmm(b2, h1, w2).relu_()
        logits = torch.baddbmm(b3, h2, w3).squeeze(-1)
        loss = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=1)
        loss += 0.5 * _DECAY / n * sum(w.square().sum(dim=(1, 2)) for w in (w1, w2, w3))
        delta = ((logits.sigmoid() - labels) / n)[..., None]
        g3, gb3 = h2.mT @ delta, delta.sum(dim=1, keepdim=True)
        delta = (delta @ w3.mT) * (h2 > 0)
        g2, gb2 = h1.mT @ delta, delta.sum(dim=1, keepdim=True)
        delta = (delta @ w2.mT) * (h1 > 0)
        g1, gb1 = x.mT @ delta, delta.sum(dim=1, keepdim=True)
        for gradient, weight in ((g1, w1), (g2, w2), (g3, w3)):
            gradient.add_(weight, alpha=_DECAY / n)
        self.steps += 1
        rate = _RATE * math.sqrt(1 - _SECOND**self.steps) / (1 - _FIRST**self.steps)
        for p, g, first, second in zip(
            self.parameters, (g1, gb1, g2, gb2, g3, gb3), self.first, self.second, strict=True
        ):
            first.lerp_(g, 1 - _FIRST)
            second.mul_(_SECOND).addcmul_(g, g, value=1 - _SECOND)
            p.addcdiv_(first, second.sqrt().add_(_EPSILON), value=-rate)
        return loss

    def keep(self, rows: Tensor) -> None:
        """Drops all networks but `rows`, boolean `(b,)`."""
        for tensors in (self.parameters, self.first, self.second):
            tensors[:] = [t[rows] for t in tensors]
