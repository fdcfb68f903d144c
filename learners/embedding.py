r"""Embedding networks: a few numbers `e = s(z)` that say of a series or an image what it says of the parameters.

.. math:: \min_{s, q} \; -\sum_i w_i \log q(u_i \mid s(z_i)), \qquad e = c\!\left(\frac{s(z) - m}{\sigma}\right)

The map is learned jointly with a small conditional flow, which is then thrown away: its maximum of the likelihood makes
`s(z)` as informative about `u` as the network allows (Radev et al. 2020, arXiv 2003.06281; Chen et al. 2021, arXiv
2010.10079). Then it is frozen and standardized, with logarithmic tails as `DataScaling` has, and everything downstream
sees `e` in place of `z`: `p(e | u)` is learned, and the posterior given `e`, which is that given `x` as far as `e` is
sufficient.
"""

from __future__ import annotations

__all__ = ["KINDS", "Embedding", "EmbeddingOptions", "check_embedding", "check_series"]

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from zuko.nn import MLP

from simulators.errors import DataError, SavedModelError, nearest

from .scaling import long_tails
from .surroundings import as_usual
from .training import TrainOptions

#: Embeddings that are built in.
KINDS = ("mlp", "conv1d")

#: A convolution halves the series until it is no longer than this.
_SHORT = 8
#: Its channels, and those of the last positions.
_WIDTH, _NARROW = 32, 8
_PIECE = 4096


@dataclass(frozen=True)
class EmbeddingOptions:
    """Size and training of an embedding.

    Arguments:
        dim: Numbers that it gives; None for twice as many as parameters, at least 4. A user's module decides itself.
        channels: Series of equal length, one after the other, that make up x (`conv1d`).
        hidden: Widths of the hidden layers (`mlp`).
        share: Share of the simulations that it learns from. The source learns from the others: of what it has seen an
            embedding says more than of what it has not, and the posterior would be too narrow.
        training: Options of the fit.
    """

    dim: int | None = None
    channels: int = 1
    hidden: tuple[int, ...] = (128, 128)
    share: float = 0.5
    training: TrainOptions = field(default_factory=lambda: TrainOptions(max_epochs=100, patience=15))


class Embedding(nn.Module):
    """`z` `(*, k)` -> `e` `(*, m)`; see the module.

    Arguments:
        network: `(n, k)` -> `(n, m)`.
        dim_z: k.
        dim: m.
        spec: JSON form of the network.
    """

    def __init__(self, network: nn.Module, dim_z: int, dim: int, spec: dict[str, Any]) -> None:
        super().__init__()
        self.network, self.dim_z, self.dim, self.spec = network, dim_z, dim, spec
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.center: Tensor
        self.scale: Tensor

    @classmethod
    def build(cls, kind: str, dim_z: int, dim: int, options: EmbeddingOptions) -> Embedding:
        """A built-in embedding of `dim_z` numbers into `dim`."""
        spec: dict[str, Any] = {"kind": kind, "dim_z": dim_z, "dim": dim}
        if kind == "mlp":
            return cls._built(spec | {"hidden": list(options.hidden)})
        return cls._built(spec | {"channels": options.channels, "width": _WIDTH, "narrow": _NARROW, "short": _SHORT})

    @classmethod
    def _built(cls, spec: dict[str, Any]) -> Embedding:
        dim_z, dim = spec["dim_z"], spec["dim"]
        network: nn.Module
        if spec["kind"] == "mlp":
            network = MLP(dim_z, dim, spec["hidden"], activation=nn.SiLU)
        else:
            network = SeriesNetwork(spec["channels"], dim_z, dim, spec["width"], spec["narrow"], spec["short"])
        return cls(network, dim_z, dim, spec)

    @classmethod
    def of_module(cls, module: nn.Module, z: Tensor) -> Embedding:
        """A copy of the user's module, tried on some `z` `(n, k)`.

        Raises:
            DataError: It cannot be called on `(n, k)`, or does not give `(n, m)`.
        """
        name = type(module).__name__
        network = copy.deepcopy(module).float().to(z.device)
        try:
            with torch.no_grad():
                e = network.eval()(z[:8])
        except Exception as error:
            raise DataError(
                f"embedding: {name} was called on x of shape {tuple(z[:8].shape)}, scaled, and raised "
                f"{type(error).__name__}: {error}; it must take (n, k), also for images, and give (n, m)"
            ) from error
        if not isinstance(e, Tensor) or e.ndim != 2 or len(e) != len(z[:8]) or not e.shape[1]:
            came = f"shape {tuple(e.shape)}" if isinstance(e, Tensor) else type(e).__name__
            raise DataError(f"embedding: expected {name} to map {tuple(z[:8].shape)} to (n, m), got {came}")
        dim_z, dim = z.shape[1], e.shape[1]
        return cls(network, dim_z, dim, {"kind": "module", "class": name, "dim_z": dim_z, "dim": dim})

    def forward(self, z: Tensor) -> Tensor:
        flat = z.reshape(-1, z.shape[-1])
        e = torch.cat([self.network(part) for part in flat.split(_PIECE)]) if len(flat) else flat[:, : self.dim]
        return long_tails((e.reshape(*z.shape[:-1], self.dim) - self.center) / self.scale)

    @torch.no_grad()
    def standardize(self, z: Tensor) -> None:
        """Sets center and scale from data `z` `(n, k)`: median and half of the central 68 %."""
        self.center.zero_()
        self.scale.fill_(1.0)
        e = torch.cat([self.network(part) for part in z[:100_000].split(_PIECE)])
        low, middle, high = torch.quantile(e, torch.tensor([0.16, 0.5, 0.84]).to(e), dim=0)
        scale = (high - low) / 2
        # A number that never varies says nothing; scale one keeps it finite.
        scale = scale.where(scale > 1e-6 * (1 + middle.abs()), e.std(dim=0))
        self.center.copy_(middle)
        self.scale.copy_(scale.where(scale > 1e-6 * (1 + middle.abs()), 1.0))

    def as_dict(self) -> dict[str, Any]:
        """JSON form of the architecture, read back by `from_dict`; the weights are saved apart."""
        return self.spec

    @classmethod
    @as_usual()
    def restore(cls, spec: dict[str, Any], tensors: dict[str, Tensor], module: nn.Module | None = None) -> Embedding:
        """From `as_dict` and its weights. No code is saved: the user's module must be given anew.

        Raises:
            SavedModelError: It is needed and missing, or does not fit.
        """
        if spec["kind"] == "module" and module is None:
            name = spec["class"]
            raise SavedModelError(
                f"the embedding is a module of your own, {name}, whose weights are saved but not its code; make an "
                f"object of it as for the training, and load with TemperedPosterior.load(path, embedding={name}(...))"
            )
        if spec["kind"] != "module":
            embedding = cls._built(spec)
        else:
            embedding = cls(copy.deepcopy(module).cpu().float(), spec["dim_z"], spec["dim"], spec)  # type: ignore[union-attr]
        try:
            embedding.load_state_dict(tensors)
        except RuntimeError as error:
            if module is None:
                raise
            reason = " ".join(str(error).split())
            raise SavedModelError(
                f"the embedding {type(module).__name__} is not the one that was trained, {spec['class']}: {reason}"
            ) from error
        return embedding.eval().requires_grad_(False)


class SeriesNetwork(nn.Module):
    """Convolutions over `(n, channels * length)`, each but the first halving it, until few positions are left.

    Of what each says, mean and logarithm of the variance over time go on: what is the same wherever it happens, such as
    the power in a band, takes far fewer simulations to learn than what has a position (without, 1.3 to 2 nats less are
    learned of 2,000 series of 200 numbers, autoregressive or sines). Beside them go a few numbers for each of the last
    positions, and a small network.

    Arguments:
        channels: Series, one after the other.
        dim_z: Numbers of all series.
        dim: Numbers that are given.
        width: Channels of the convolutions.
        narrow: Numbers for each of the last positions.
        short: How many positions are left at most.
    """

    def __init__(self, channels: int, dim_z: int, dim: int, width: int, narrow: int, short: int) -> None:
        super().__init__()
        self.channels, length = channels, dim_z // channels
        stages = [nn.Conv1d(channels, width, 5, padding=2)]
        while length > short:
            stages.append(nn.Conv1d(width, width, 5, stride=2, padding=2))
            length = (length + 1) // 2
        self.stages, self.narrow = nn.ModuleList(stages), nn.Conv1d(width, narrow, 1)
        self.head = MLP(2 * width * len(stages) + narrow * length, dim, (128,), activation=nn.SiLU)

    def forward(self, z: Tensor) -> Tensor:
        h, found = z.unflatten(1, (self.channels, -1)), []
        for k, stage in enumerate(self.stages):
            h = stage(nn.functional.silu(h) if k else h)
            found += [h.mean(dim=-1), (h.var(dim=-1, correction=0) + 1e-4).log()]
        found.append(self.narrow(nn.functional.silu(h)).flatten(1))
        e: Tensor = self.head(torch.cat(found, dim=1))
        return e


def check_series(dim_x: int, channels: int) -> None:
    """Whether `dim_x` numbers are so many series.

    Raises:
        DataError: They are not of equal length.
    """
    if dim_x % channels:
        raise DataError(
            f"embedding conv1d: x has {dim_x} numbers, which are not {channels} series of equal length; set the number "
            "of channels to that of the series that x has one after the other"
        )


def check_embedding(embedding: str | nn.Module | None) -> None:
    """Whether there is such an embedding.

    Raises:
        DataError: Neither a kind nor a module.
    """
    if embedding is None or isinstance(embedding, nn.Module) or embedding in KINDS:
        return
    if isinstance(embedding, str):
        raise DataError(f"there is no embedding '{embedding}'; {nearest(embedding, KINDS)}, or give a torch.nn.Module")
    hint = "; give an object of the class, not the class" if isinstance(embedding, type) else ""
    raise DataError(f"expected an embedding {' or '.join(KINDS)} or a torch.nn.Module, got {embedding!r}{hint}")
