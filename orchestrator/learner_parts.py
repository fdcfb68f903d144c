"""What of the learner is the user's own code, named in the configuration: a distance, an embedding network."""

from __future__ import annotations

__all__ = ["LearnerParts", "check_length", "load_own_posterior", "resolve_learner"]

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from learners.cost import Distance
from learners.embedding import Embedding, check_series
from learners.posterior import TemperedPosterior
from simulators.errors import ConfigError, SavedModelError
from simulators.loading import load_object

from .config_learner import EMBEDDINGS, LearnerConfig
from .run_directory import RunDirectory


@dataclass(frozen=True)
class LearnerParts:
    """See the module; it goes from the driver to the trainer.

    Attributes:
        distance: Of the source `cost`.
        embedding: A built-in kind, the user's module, or None.
    """

    distance: Distance | None = None
    embedding: str | nn.Module | None = None


def resolve_learner(config: LearnerConfig, folder: Path) -> LearnerParts:
    """Loads what the configuration names; paths are relative to `folder`.

    Raises:
        ConfigError, SimulatorError: It cannot be imported, or is not what is needed.
    """
    distance = None if config.distance is None else _load(config.distance, folder)
    if distance is not None and not callable(distance):
        raise ConfigError(f"learner.distance: expected {config.distance} to be a function (x, x_o), got {distance!r}")
    if config.embedding is None or config.embedding in EMBEDDINGS:
        return LearnerParts(distance, config.embedding)
    return LearnerParts(distance, _module(config.embedding, folder))


def check_length(parts: LearnerParts, config: LearnerConfig, dim_x: int) -> None:
    """Whether the embedding takes x of `dim_x` numbers: after all simulations it would be late to find out.

    Raises:
        DataError: It does not.
    """
    if parts.embedding == "conv1d":
        check_series(dim_x, config.embedding_channels)
    elif isinstance(parts.embedding, nn.Module):
        Embedding.of_module(parts.embedding, torch.zeros(8, dim_x))


def load_own_posterior(run: RunDirectory, own_code: bool) -> TemperedPosterior:
    """The posterior of a run directory, with the embedding that its configuration names.

    A run directory may come from elsewhere: it does not decide by itself what code runs.

    Arguments:
        run: The run directory.
        own_code: Whether the user wants the module that it names to be imported.

    Raises:
        SavedModelError: Nothing there, damaged, or the module is needed and not wanted.
        ConfigError, SimulatorError: The embedding cannot be loaded any more.
    """
    records: dict[str, Any] = run.records() if run.exists else {}
    reference = records.get("config", {}).get("learner", {}).get("embedding")
    if reference is None or reference in EMBEDDINGS:
        return TemperedPosterior.load(run.path)
    if not own_code:
        raise SavedModelError(
            f"the posterior in {run.path} has an embedding of somebody's own, {reference}; if you trust that code, "
            "give --own-code to run it"
        )
    return TemperedPosterior.load(run.path, embedding=_module(reference, Path(records.get("folder") or ".")))


def _module(reference: str, folder: Path) -> nn.Module:
    found = _load(reference, folder)
    if not isinstance(found, nn.Module):
        try:
            found = found()
        except Exception as error:
            raise ConfigError(
                f"learner.embedding: expected {reference} to be a class without arguments, but calling it raised "
                f"{type(error).__name__}: {error}"
            ) from error
    if not isinstance(found, nn.Module):
        raise ConfigError(
            f"learner.embedding: expected {reference} to be a torch.nn.Module, got {type(found).__name__}"
        )
    return found


def _load(reference: str, folder: Path) -> Any:
    module, separator, name = reference.rpartition(":")
    if module.endswith(".py"):
        module = str((folder / Path(module).expanduser()).resolve())
    return load_object(f"{module}{separator}{name}")
