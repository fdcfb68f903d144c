"""What the networks see of data: scaled numbers or, where there are many, an embedding of them."""

from __future__ import annotations

__all__ = ["Features"]

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from simulators.errors import SavedModelError

from .embedding import Embedding, EmbeddingOptions, check_embedding, check_series
from .embedding_training import learn_embedding
from .lattice import Lattice, lattice_steps, spread
from .rows import Rows, evenly
from .scaling import DataScaling
from .source import OnEpoch

#: Rows from which it is told what data are like.
_TYPICAL = 100_000


class Features:
    """The map `x -> z`, learned from simulations; `z` `(*, k)` lives on the device.

    Attributes:
        scaling: Chosen from the first simulations, and kept.
        embedding: Where one is wanted and has been learned.

    Arguments:
        kind: One of `learners.embedding.KINDS`, the user's module, or None for no embedding.
        options: Of the embedding.
        device: Where the networks are.

    Raises:
        DataError: There is no such embedding.
    """

    def __init__(self, kind: str | nn.Module | None, options: EmbeddingOptions, device: torch.device) -> None:
        check_embedding(kind)
        self.kind, self.options, self.device = kind, options, device
        self.scaling: DataScaling | None = None
        self.embedding: Embedding | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """`z` `(*, k)` of `x` `(*, m)`."""
        return self.embedded(self.known_scaling(x))

    @torch.no_grad()
    def of(
        self,
        x: Rows,
        positions: Tensor,
        lattice: Lattice | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """`z` `(m, k)` of the rows of `x` at `positions` `(m,)`, made a piece at a time.

        Arguments:
            x, positions: See above.
            lattice: Cells over which discrete columns are spread (`lattice.py`); they stay as they are without.
            generator: Source of randomness of what is spread.
        """
        scaling = self.known_scaling

        def make(piece: Tensor) -> Tensor:
            if lattice is not None and generator is not None:
                piece = spread(piece, lattice.step, generator)
            return self.embedded(scaling(piece))

        return self._made(x, positions, make, self.dim)

    def lattice(self, x: Rows, positions: Tensor) -> Lattice | None:
        """The cells of the columns of `x` whose values, at `positions`, mostly repeat; None if there are no such."""
        scaling, some = self.known_scaling, x[evenly(positions, _TYPICAL)]
        steps = lattice_steps(some)
        if not steps.any():
            return None
        if (steps > 0)[scaling.logarithmic].any():
            # A logarithm must not meet zero.
            least = torch.stack([piece.amin(dim=0) for _, piece in x.pieces(positions)]).amin(dim=0)
            steps = torch.where(scaling.logarithmic, steps.minimum(least), steps)
        return Lattice(steps, some[0].double(), scaling)

    @torch.no_grad()
    def embedded(self, z: Tensor) -> Tensor:
        """Scaled data `(*, m)` as the networks see them, on the device."""
        z = z.to(self.device)
        return z if self.embedding is None else self.embedding(z)

    @property
    def dim(self) -> int:
        """Numbers that the networks see."""
        return self.known_scaling.dim if self.embedding is None else self.embedding.dim

    @property
    def known_scaling(self) -> DataScaling:
        assert self.scaling is not None, "fit_surrogate comes first"
        return self.scaling

    def fit_scaling(self, x: Rows, positions: Tensor) -> None:
        """Chooses the scaling from the rows of data `x` at `positions`, or from some, if that has not been done.

        Raises:
            DataError: x is not so many series of equal length (`conv1d`).
        """
        if self.scaling is not None:
            return
        some = x[evenly(positions, _TYPICAL)]
        if self.kind == "conv1d":
            # The numbers of a series are alike: a convolution must not see a logarithm here and none there.
            check_series(x.width, self.options.channels)
            self.scaling = DataScaling.fit_series(some, self.options.channels)
        else:
            self.scaling = DataScaling.fit(some)

    def learn(
        self,
        u: Tensor,
        x: Rows,
        positions: Tensor,
        log_weight: Tensor,
        held_out: Tensor,
        generator: torch.Generator,
        on_epoch: OnEpoch | None = None,
    ) -> None:
        """Learns the embedding, anew, from the rows of `x` at `positions`; else arguments as for `learn_embedding`."""
        assert self.kind is not None, "no embedding is wanted"
        z = self._made(x, positions, self.known_scaling, x.width)
        held_out = held_out.to(self.device)
        self.embedding = learn_embedding(self.kind, u, z, log_weight, held_out, self.options, generator, on_epoch)

    def _made(self, x: Rows, positions: Tensor, make: Callable[[Tensor], Tensor], width: int) -> Tensor:
        """`make(x)` of the rows at `positions`, on the device."""
        z = torch.empty(len(positions), width, device=self.device)
        for part, piece in x.pieces(positions):
            z[part] = make(piece).to(self.device)
        return z

    def restore(self, spec: dict[str, Any], tensors: dict[str, Tensor]) -> Embedding:
        """The embedding that `Embedding.as_dict` and its weights describe.

        Raises:
            SavedModelError: It is of another kind, or does not fit the user's module.
        """
        module = self.kind if isinstance(self.kind, nn.Module) else None
        if spec["kind"] != ("module" if module is not None else self.kind):
            raise SavedModelError(f"expected an embedding of the kind {self.kind}, got {spec['kind']}")
        return Embedding.restore(spec, tensors, module).to(self.device)
