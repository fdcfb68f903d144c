r"""Where the tempered quantity comes from: what beta multiplies, as a function of parameters and data.

.. math:: p_\beta(\theta \mid x) \propto p(\theta)\, e^{\beta\, \ell(u, z)}

`l` is needed up to a function of `x` alone. Sources differ in what they learn, and in what can be done with them: a
density of the data also draws data, and only where `l` is the simulator's log-likelihood are its pairs draws of the
posterior at `beta = 1`. Each source says so itself; nobody asks for its class.
"""

from __future__ import annotations

__all__ = ["OnEpoch", "Source", "TrainingRows"]

import abc
import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from .lattice import Lattice
from .rows import RowView
from .training import TrainOptions
from .validity import Validity

#: Called with the epoch and its held-out loss.
OnEpoch = Callable[[int, float], None]


@dataclass(frozen=True)
class TrainingRows:
    """Simulations as sources learn from them.

    Attributes:
        u: Whitened parameters of all simulations, `(n, d)`.
        valid: Which of them have a result, boolean `(n,)`.
        held_out: Which only score, boolean `(n,)`; the same ones in every fit.
        z: Scaled (and embedded) data of the valid ones, `(n_valid, k)`.
        x: Their data as simulated, `(n_valid, m)`, on the CPU; where they are many, in a file.
        z_o: The observations of a targeted campaign, `(m_o, k)`, or None.
        x_o: The same as they are, `(m_o, m)`, or None.
        lattice: The cells over which values of `z` were spread, or None.
        worth: How much each of the valid ones counts where a surrogate is scored, `(n_valid,)`; None for all alike.
    """

    u: Tensor
    valid: Tensor
    held_out: Tensor
    z: Tensor
    x: Tensor | RowView
    z_o: Tensor | None = None
    x_o: Tensor | None = None
    lattice: Lattice | None = None
    worth: Tensor | None = None


class Source(nn.Module, abc.ABC):
    """What beta multiplies.

    Attributes:
        draws_x: Whether `sample` draws data.
        sees_x: Whether `l` is asked of x itself, in double precision on the CPU, in place of its scaled data z.
        pairs_are_draws: Whether pairs of prior and simulator are taken for draws of the posterior at beta = 1: where
            `l` is a log-likelihood (up to a function of x), and learned of this simulator.
        fitted: Whether it has been fitted.
        validity: `p(valid | u)`, None where failures are not modelled.
    """

    draws_x: ClassVar[bool] = False
    sees_x: ClassVar[bool] = False
    pairs_are_draws: ClassVar[bool] = True
    fitted: bool = False
    validity: Validity | None

    @property
    def draws_cells(self) -> bool:
        """Whether the data that it draws are mostly counts, or others on a lattice."""
        return False

    @abc.abstractmethod
    def fit(
        self,
        rows: TrainingRows,
        training: TrainOptions,
        generator: torch.Generator,
        on_epoch: OnEpoch | None = None,
        threads: int = 1,
    ) -> float:
        """Fits to simulations, continuing from where it stands; returns the held-out loss, NaN where nothing is fitted.

        Arguments:
            rows: All simulations so far.
            training: Options of this fit.
            generator: Source of randomness on the CPU.
            on_epoch: See `OnEpoch`; of the member being fitted.
            threads: Members fitted at once, each on one thread: such small networks gain nothing from more.
        """

    @abc.abstractmethod
    def log_prob(self, u: Tensor, z: Tensor) -> Tensor:
        """`l(u, x)` for broadcastable `u` `(*, d)` and `z` `(*, k)`, shape `(*,)`, in any precision.

        If `sees_x`, `z` is x itself: so it is wherever "what the source sees" is asked for.
        """

    @abc.abstractmethod
    def member_log_prob(self, u: Tensor, z: Tensor) -> Tensor:
        """`l` by each member of an ensemble, `(e, *)`, without `log p(valid | u)`; their disagreement is the doubt."""

    def log_valid(self, u: Tensor) -> Tensor:
        """`log p(valid | u)` for `u` `(*, d)`, shape `(*,)`: zero where failures are not modelled."""
        return u.new_zeros(u.shape[:-1]) if self.validity is None else self.validity.log_prob(u)

    def sample(self, u: Tensor, generator: torch.Generator) -> Tensor:
        """One draw `z` `(n, k)` for each `u` `(n, d)`; only if `draws_x`."""
        raise NotImplementedError(f"{type(self).__name__} draws no data")

    def middle(self, u: Tensor) -> Tensor:
        """Where the data of each `u` `(n, d)` lie, `(n, k)`, a smooth function; only if `draws_x`."""
        raise NotImplementedError(f"{type(self).__name__} draws no data")

    @abc.abstractmethod
    def as_dict(self) -> dict[str, Any]:
        """What it is made of (JSON values): weights fit only into one that is made of the same."""

    def frozen(self) -> Self:
        """A copy that only evaluates: on the CPU, without what it takes to be fitted further."""
        return copy.deepcopy(self).cpu().eval().requires_grad_(False)

    def resume(self, weights: dict[str, Tensor]) -> None:
        """Puts this new source where another one was whose `state_dict` is `weights`."""
        self.load_state_dict(weights)
        self.fitted = True
