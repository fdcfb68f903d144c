r"""A likelihood that is known: the user's own function in the place of a surrogate.

.. math:: p_\beta(\theta \mid x) \propto p(\theta)\, e^{\beta\, \ell(\theta, x)}

`l` may be a log-likelihood, or minus a loss that compares theta with data: then this is the generalized posterior
(Bissiri, Holmes & Walker 2016, arXiv 1306.6430).
"""

from __future__ import annotations

__all__ = ["KnownLikelihood", "LogLikelihood"]

from collections.abc import Callable

import torch
from torch import Tensor

from simulators.errors import DataError

from .scaling import DataScaling
from .whitening import Whitening

#: `theta` `(n, d)` and `x` `(n, k)`, row by row -> `(n,)`; -inf where x is impossible. Called from several threads.
LogLikelihood = Callable[[Tensor, Tensor], Tensor]


class KnownLikelihood:
    """The user's function in whitened parameters and scaled data.

    Arguments:
        function: See `LogLikelihood`; gets double precision.
        whitening: The bijection `theta -> u`.
        scaling: The bijection `x -> z`.
    """

    def __init__(self, function: LogLikelihood, whitening: Whitening, scaling: DataScaling) -> None:
        self.function, self.whitening, self.scaling = function, whitening, scaling

    def log_prob(self, u: Tensor, z: Tensor) -> Tensor:
        """`l` of broadcastable `u` `(*, d)` and `z` `(*, k)`, shape `(*,)`.

        Raises:
            DataError: The function returned something of another shape.
        """
        batch = torch.broadcast_shapes(u.shape[:-1], z.shape[:-1])
        theta = self.whitening.to_theta(u.cpu()).expand(*batch, -1).reshape(-1, u.shape[-1])
        x = self.scaling.inverse(z.cpu()).expand(*batch, -1).reshape(-1, z.shape[-1])
        value = torch.as_tensor(self.function(theta, x))
        if value.shape != (len(theta),):
            raise DataError(
                f"log_likelihood: expected {len(theta)} numbers for theta {tuple(theta.shape)} and x {tuple(x.shape)}, "
                f"got shape {tuple(value.shape)}"
            )
        return value.to(u).reshape(batch)
