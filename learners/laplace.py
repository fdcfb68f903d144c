r"""Laplace's approximation of a posterior, for every temperature at once. With or without torch.

Where the posterior at beta = 1 has its mode `mu` and there the information `F = I + H`, `I` that of the whitened prior,
a likelihood that is normal in `u` has the posterior

.. math:: N\big(\mu_\beta, (I + \beta H)^{-1}\big), \qquad \mu_\beta = (I + \beta H)^{-1} \beta (I + H) \mu

at every other temperature. With `H = V diag(lambda) V^T` all of it is known at the price of one decomposition for
each x (Tierney & Kadane 1986, of beta = 1).
"""

from __future__ import annotations

__all__ = ["MOST_FRAMED", "Normal", "frame_size", "framed", "tempered"]

from typing import Any, NamedTuple

#: More parameters than this have no frames: of `d + d^2` numbers, they would be most of what is learned from.
MOST_FRAMED = 16
#: Most that is known of a direction, beside the prior's one: single precision tells no more apart.
_MOST_KNOWN = 1e8


class Normal(NamedTuple):
    """A normal distribution of `u`: its mean `(*, d)`, and `V` `(*, d, d)` and `p` `(*, d)` of the precision."""

    mean: Any
    vectors: Any
    precision: Any

    def root(self, power: float) -> Any:
        """The symmetric matrix `V diag(p^power) V^T` `(*, d, d)`: with 1/2 it whitens, with -1/2 it undoes that."""
        return (self.vectors * self.precision[..., None, :] ** power) @ self.vectors.mT


def frame_size(dim: int) -> int:
    """How many numbers a frame of `dim` parameters has."""
    return dim + dim**2


def framed(xp: Any, information: Any, eye: Any) -> tuple[Any, Any]:
    """Of informations `F` `(n, d, d)` the frames `(n, d + d^2)`, `lambda` and `V` in a row, and the variances `(n, d)`.

    Where `F` is no number there is only the prior's information.
    """
    known = information - eye
    finite = xp.isfinite(known).all(-1).all(-1)
    known = xp.where(finite[:, None, None], known, 0 * eye)
    # In double precision, so that libraries agree in what single precision can tell.
    symmetric = xp.asarray((known + known.mT) / 2, dtype=xp.float64)
    eigenvalues, vectors = (xp.asarray(part, dtype=known.dtype) for part in xp.linalg.eigh(symmetric))
    eigenvalues = xp.clip(eigenvalues, 0.0, _MOST_KNOWN)
    variances = (vectors * vectors / (1 + eigenvalues)[:, None, :]).sum(-1)
    return xp.concatenate([eigenvalues, vectors.reshape(len(vectors), len(eye) ** 2)], -1), variances


def tempered(mode: Any, frame: Any, beta: Any) -> Normal:
    """The approximation at `beta`, a number or `(*, 1)`, of modes `(*, d)` with frames `(*, d + d^2)`."""
    d = mode.shape[-1]
    eigenvalues, vectors = frame[..., :d], frame[..., d:].reshape(*frame.shape[:-1], d, d)
    precision = 1 + beta * eigenvalues
    along = (vectors.mT @ mode[..., None])[..., 0] * (beta * (1 + eigenvalues) / precision)
    return Normal((vectors @ along[..., None])[..., 0], vectors, precision)
