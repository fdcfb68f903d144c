"""What the networks see of data: scaled numbers or, where there are many, an embedding of them."""

from __future__ import annotations

__all__ = ["Features"]

from typing import Any

import torch
from torch import Tensor, nn

from simulators.errors import SavedModelError

from .embedding import Embedding, EmbeddingOptions, check_embedding, check_series
from .embedding_training import learn_embedding
from .scaling import DataScaling
from .source import OnEpoch


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
        return self.embedded(self.scaled(x))

    def scaled(self, x: Tensor) -> Tensor:
        """`x` `(*, m)` scaled, on the device."""
        return self.known_scaling(x).to(self.device)

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

    def fit_scaling(self, x: Tensor) -> None:
        """Chooses the scaling from data `x` `(n, m)`, if that has not been done.

        Raises:
            DataError: x is not so many series of equal length (`conv1d`).
        """
        if self.scaling is not None:
            return
        if self.kind == "conv1d":
            # The numbers of a series are alike: a convolution must not see a logarithm here and none there.
            check_series(x.shape[1], self.options.channels)
            self.scaling = DataScaling.fit_series(x, self.options.channels)
        else:
            self.scaling = DataScaling.fit(x)

    def learn(
        self,
        u: Tensor,
        x: Tensor,
        log_weight: Tensor,
        held_out: Tensor,
        generator: torch.Generator,
        on_epoch: OnEpoch | None = None,
    ) -> None:
        """Learns the embedding, anew; arguments as for `learn_embedding`, of valid simulations."""
        assert self.kind is not None, "no embedding is wanted"
        z, held_out = self.scaled(x), held_out.to(self.device)
        self.embedding = learn_embedding(self.kind, u, z, log_weight, held_out, self.options, generator, on_epoch)

    def restore(self, spec: dict[str, Any], tensors: dict[str, Tensor]) -> Embedding:
        """The embedding that `Embedding.as_dict` and its weights describe.

        Raises:
            SavedModelError: It is of another kind, or does not fit the user's module.
        """
        module = self.kind if isinstance(self.kind, nn.Module) else None
        if spec["kind"] != ("module" if module is not None else self.kind):
            raise SavedModelError(f"expected an embedding of the kind {self.kind}, got {spec['kind']}")
        return Embedding.restore(spec, tensors, module).to(self.device)
