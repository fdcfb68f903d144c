r"""A likelihood or a loss that is known: the user's own function in the place of something learned.

.. math:: p_\beta(\theta \mid x) \propto p(\theta)\, p(x \mid \theta)^\beta \quad\text{or}\quad
    p(\theta)\, e^{-\beta\, L(\theta, x)}

With a loss this is the generalized posterior (Bissiri, Holmes & Walker 2016, arXiv 1306.6430). Pairs of the simulator
are not taken for draws of it, even at `beta = 1`: the function alone says what is learned, the simulations for which x.
"""

from __future__ import annotations

__all__ = ["KnownLikelihood", "LogLikelihood"]

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from simulators.errors import DataError

from .rows import evenly
from .source import OnEpoch, Source, TrainingRows
from .training import TrainOptions
from .whitening import Whitening

#: `theta` `(n, d)` and `x` `(n, k)`, row by row -> `(n,)`; -inf where x is impossible. Called from several threads.
LogLikelihood = Callable[[Tensor, Tensor], Tensor]
#: Simulations that it is tried with.
_TRIED = 1000


class KnownLikelihood(Source):
    """The user's function in whitened parameters.

    It is given x as it was simulated or observed: of scaled data in single precision no function knows whether x is
    zero, a whole number, or on a bound.

    Arguments:
        function: See `LogLikelihood`; gets double precision.
        whitening: The bijection `theta -> u`.
        is_loss: Whether the function is a loss: its negative is what beta multiplies.
    """

    fitted = True
    sees_x = True
    pairs_are_draws = False

    def __init__(self, function: LogLikelihood, whitening: Whitening, *, is_loss: bool = False) -> None:
        super().__init__()
        self.function, self.whitening = function, whitening
        self.validity = None
        self._sign, self._name = (-1, "loss") if is_loss else (1, "log_likelihood")

    def fit(
        self,
        rows: TrainingRows,
        training: TrainOptions,
        generator: torch.Generator,
        on_epoch: OnEpoch | None = None,
        threads: int = 1,
    ) -> float:
        """Nothing is to be learned; some simulations are tried.

        Raises:
            DataError: The function is finite for none of the simulations.
        """
        some = evenly(torch.arange(len(rows.z)), _TRIED)
        if not self.log_prob(rows.u[rows.valid][some.to(rows.u.device)], rows.x[some]).isfinite().any():
            raise DataError(
                f"{self._name}: expected a finite number for at least one of {len(some)} simulations, but there is "
                "none; the function gets theta (n, d) and x (n, k) as the simulator returned it"
            )
        return float("nan")

    def log_prob(self, u: Tensor, x: Tensor) -> Tensor:
        """`l` of broadcastable `u` `(*, d)` and x itself `(*, k)`, shape `(*,)`, in double precision.

        A constant of any size does no harm there: only differences count.

        Raises:
            DataError: The function returned something of another shape.
        """
        batch = torch.broadcast_shapes(u.shape[:-1], x.shape[:-1])
        theta = self.whitening.to_theta(u.cpu()).expand(*batch, -1).reshape(-1, u.shape[-1])
        x = x.cpu().double().expand(*batch, -1).reshape(-1, x.shape[-1])
        value = torch.as_tensor(self.function(theta, x))
        if value.shape != (len(theta),):
            raise DataError(
                f"{self._name}: expected {len(theta)} numbers for theta {tuple(theta.shape)} and x {tuple(x.shape)}, "
                f"got shape {tuple(value.shape)}"
            )
        return self._sign * value.to(u.device, torch.float64).reshape(batch)

    def member_log_prob(self, u: Tensor, x: Tensor) -> Tensor:
        return self.log_prob(u, x)[None]

    def frozen(self) -> KnownLikelihood:
        """Itself: nothing in it changes."""
        return self

    def as_dict(self) -> dict[str, Any]:
        return {"source": self._name}
