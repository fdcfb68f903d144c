"""Sizes and training options of the learner."""

from __future__ import annotations

__all__ = ["LearnerOptions"]

from dataclasses import dataclass, field

import torch

from simulators.errors import ConfigError

from .distillation import DistillationOptions
from .embedding import EmbeddingOptions
from .guide import GuideOptions
from .network import NetworkOptions
from .surrogate import SurrogateOptions
from .tempering import TemperingOptions


@dataclass(frozen=True)
class LearnerOptions:
    """Sizes and training options of the three steps.

    Arguments:
        surrogate: The ensemble; of a ratio or a cost, the sizes of its networks and their training.
        embedding: The embedding, where there is one.
        tempering: The walk for each x of the bank.
        focus: The walk for the observation of a targeted campaign.
        bank: Number of x on which the network is distilled.
        focus_share: Share of the tempered training pairs that belong to the observation itself.
        network: The amortized network.
        guide: What tells it where the posterior lies, from the final training on; None for nothing. Only of a source
            that draws x (but not counts), and where posteriors are of one piece.
        distillation: Its final training.
        distillation_update: Its training while simulations still come.
        threads: CPU threads of torch, or None for its own choice.
        device: Where to train.
        compiled: Whether training steps are compiled: see `compiling.py`.
    """

    surrogate: SurrogateOptions = field(default_factory=SurrogateOptions)
    embedding: EmbeddingOptions = field(default_factory=EmbeddingOptions)
    tempering: TemperingOptions = field(default_factory=lambda: TemperingOptions(particles=24, moves=6))
    focus: TemperingOptions = field(default_factory=lambda: TemperingOptions(particles=512, moves=10))
    bank: int = 1024
    focus_share: float = 0.4
    network: NetworkOptions = field(default_factory=NetworkOptions)
    guide: GuideOptions | None = field(default_factory=GuideOptions)
    distillation: DistillationOptions = field(default_factory=DistillationOptions)
    distillation_update: DistillationOptions = field(
        default_factory=lambda: DistillationOptions(pairs=20_000, epochs=2, learning_rate=4e-3)
    )
    threads: int | None = None
    device: str = "cpu"
    compiled: bool = False

    def torch_device(self) -> torch.device:
        """Where to train.

        Raises:
            ConfigError: There is no such device.
        """
        try:
            device = torch.device(self.device)
        except RuntimeError as error:
            raise ConfigError(f"expected a device such as 'cpu' or 'cuda', got '{self.device}'") from error
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                f"device '{self.device}' was asked for, but torch finds no GPU that it can use; choose device='cpu', "
                "or see that driver and torch fit until torch.cuda.is_available() is true"
            )
        return device
