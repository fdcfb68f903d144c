r"""SOAP: Adam in the eigenbasis of Shampoo's preconditioners (Vyas et al. 2024, arXiv 2409.11321).

For a weight matrix with gradient `G` the moving averages `L` of `G G^T` and `R` of `G^T G` have eigenvectors `Q_L` and
`Q_R`, which are followed by one power iteration every few steps. Adam's second moment is kept of the turned gradient:

.. math:: W \leftarrow W - \eta\, Q_L \frac{Q_L^T M Q_R}{\sqrt V + \epsilon} Q_R^T,
    \quad V \leftarrow b V + (1 - b) (Q_L^T G Q_R)^2

A step costs a quarter more than Adam's for networks of our size, and of plentiful pairs a flow learns more in half of
the steps. Of few pairs it overfits sooner: the surrogate keeps Adam (`benchmarks/TRIED.md`).
"""

from __future__ import annotations

__all__ = ["Soap"]

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from .threads import Threads

#: Sides of a matrix longer than this are not turned: the eigenvectors would cost more than they bring.
_LONGEST = 512


class Soap(torch.optim.Optimizer):
    """See the module.

    Arguments:
        params: Parameters.
        lr: Learning rate.
        decay: What the moving averages keep each step.
        every: Steps between updates of the eigenvectors.
        eps: Keeps the quotient finite.
        weight_decay: Decoupled weight decay.
        threads: What shares the parameters; None for the thread at hand.
    """

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float = 1e-2,
        decay: float = 0.95,
        every: int = 10,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        threads: Threads | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "decay": decay, "every": every, "eps": eps, "weight_decay": weight_decay})
        self.threads = threads or Threads(1)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step; the first only looks at the gradients of matrices."""
        for group in self.param_groups:
            largest_first = sorted(group["params"], key=torch.numel, reverse=True)
            count = self.threads.shares
            if count == 1:
                self._steps(group, largest_first)
            else:
                self.threads.map(partial(self._steps, group), [largest_first[k::count] for k in range(count)])

    @torch.no_grad()  # which a thread does not take over from who waits for it
    def _steps(self, group: dict[str, Any], parameters: Sequence[Parameter]) -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                self._step(parameter, parameter.grad, group)

    def _step(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, decay = self.state[parameter], group["decay"]
        if not state:
            state["steps"] = 0
            state["mean"], state["square"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
            state["sides"] = _sides(gradient)
            if state["sides"]:
                return
        state["steps"] += 1
        correction = 1 - decay ** state["steps"]
        sides: dict[int, tuple[Tensor, Tensor]] = state["sides"]
        turned = _turn(gradient, sides)
        state["mean"].lerp_(gradient, 1 - decay)
        state["square"].lerp_(turned.square(), 1 - decay)
        update = _turn(state["mean"], sides) / correction / ((state["square"] / correction).sqrt() + group["eps"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(_turn(update, {side: (moment, q.mT) for side, (moment, q) in sides.items()}), alpha=-group["lr"])
        for side, (moment, vectors) in sides.items():
            moment.lerp_(_moment(gradient, side), 1 - decay)
            if state["steps"] % group["every"] == 0:
                sides[side] = moment, torch.linalg.qr(moment @ vectors).Q


def _sides(gradient: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """Second moment and its eigenvectors for each side of a matrix that is turned."""
    if gradient.ndim != 2 or min(gradient.shape) < 2:
        return {}
    moments = {side: _moment(gradient, side) for side in (0, 1) if gradient.shape[side] <= _LONGEST}
    return {side: (moment, torch.linalg.eigh(moment).eigenvectors) for side, moment in moments.items()}


def _moment(gradient: Tensor, side: int) -> Tensor:
    return gradient @ gradient.mT if side == 0 else gradient.mT @ gradient


def _turn(matrix: Tensor, sides: dict[int, tuple[Tensor, Tensor]]) -> Tensor:
    """`Q_L^T matrix Q_R`, as far as the sides are turned."""
    if 0 in sides:
        matrix = sides[0][1].mT @ matrix
    if 1 in sides:
        matrix = matrix @ sides[1][1]
    return matrix
