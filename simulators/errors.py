"""Every error that a user may see: what was expected, what came, what to do."""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "DataError",
    "ObservationError",
    "PriorError",
    "RefinementError",
    "ResourceError",
    "RunDirectoryError",
    "SavedModelError",
    "SimulatorError",
    "TemperatureError",
    "TemperflowError",
    "TrackingError",
    "nearest",
]

import difflib
from collections.abc import Iterable


class TemperflowError(Exception):
    """Base of all errors meant for users; its message is complete without a traceback."""


class ConfigError(TemperflowError):
    """A configuration (file, key or argument) cannot be used as it stands."""


class PriorError(TemperflowError):
    """The prior is not a distribution over `(d,)` vectors that can be used."""


class SimulatorError(TemperflowError):
    """The simulator cannot be imported or called."""


class ObservationError(TemperflowError):
    """The observation cannot be read or does not fit the simulator's output."""


class DataError(TemperflowError):
    """Simulations handed over for training are unusable."""


class TemperatureError(TemperflowError, ValueError):
    """A temperature `beta` outside the range for which the posterior was trained."""


class ResourceError(TemperflowError):
    """The machine has too little of what is needed, such as the memory of a GPU."""


class RunDirectoryError(TemperflowError):
    """A run directory is missing, damaged or belongs to another configuration."""


class SavedModelError(TemperflowError):
    """A saved posterior cannot be read: missing, damaged, or from a newer version."""


class RefinementError(TemperflowError):
    """Draws cannot be refined: what the network was distilled from is not there, or says that x is impossible."""


class TrackingError(TemperflowError):
    """MLflow cannot be reached, or does not have what was asked for."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint naming the valid name closest to `name`, or all of them if none is close."""
    options = sorted(valid)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"valid are: {', '.join(options)}"
