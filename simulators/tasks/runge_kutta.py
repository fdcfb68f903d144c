r"""The classical Runge-Kutta method of order four, with a fixed step, for a batch of equations at once.

.. math:: \frac{dy}{dt} = f(y)

A fixed step makes each row's result independent of the other rows in its batch.
"""

from __future__ import annotations

__all__ = ["Rate", "solve", "step"]

from collections.abc import Callable

import torch
from torch import Tensor

#: The right-hand side f: a state of any shape to its derivative in time, of the same shape.
Rate = Callable[[Tensor], Tensor]


def step(rate: Rate, state: Tensor, h: float) -> Tensor:
    """The state after time `h`; the error is of order `h**5`."""
    k1 = rate(state)
    k2 = rate(state.add(k1, alpha=h / 2))
    k3 = rate(state.add(k2, alpha=h / 2))
    k4 = rate(state.add(k3, alpha=h))
    return state.add(k1 + k4, alpha=h / 6).add(k2 + k3, alpha=h / 3)


def solve(rate: Rate, state: Tensor, interval: float, num_steps: int, num_times: int) -> Tensor:
    """States at the times `0, interval, ..., (num_times - 1) * interval`.

    Arguments:
        rate: The right-hand side.
        state: The state at time 0, of any shape.
        interval: Time between two returned states.
        num_steps: Steps within one interval.
        num_times: Number of returned states, the first one included.

    Returns:
        `(num_times, *state.shape)`.
    """
    states = [state]
    for _ in range(num_times - 1):
        for _ in range(num_steps):
            state = step(rate, state, interval / num_steps)
        states.append(state)
    return torch.stack(states)
