"""The `Acquisition` that a configuration names."""

from __future__ import annotations

__all__ = ["resolve_acquisition"]

from pathlib import Path

from simulators.errors import ConfigError
from simulators.loading import load_object

from .acquisition import Acquisition, IntegratedVariance, LargestVariance
from .config_learner import METHODS


def resolve_acquisition(method: str, folder: Path) -> Acquisition:
    """A built-in one, or an instance of the user's class; what no method needs is a built-in one too.

    Raises:
        ConfigError, SimulatorError: It cannot be imported, or is no class without arguments that has `choose`.
    """
    if method in METHODS:
        return LargestVariance() if method == "variance" else IntegratedVariance()
    module, separator, name = method.rpartition(":")
    if module.endswith(".py"):
        module = str((folder / Path(module).expanduser()).resolve())
    found = load_object(f"{module}{separator}{name}")
    try:
        acquisition: Acquisition = found()
    except Exception as error:
        raise ConfigError(
            f"acquisition.method: expected {method} to be a class without arguments, but calling it raised "
            f"{type(error).__name__}: {error}"
        ) from error
    if not callable(getattr(acquisition, "choose", None)):
        raise ConfigError(
            f"acquisition.method: {method} has no method `choose(candidates, n, pending, generator)`; "
            "see docs/method.md"
        )
    return acquisition
