"""Versions of what matters to the results, for the report and for MLflow."""

from __future__ import annotations

__all__ = ["versions"]

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("temperflow", "torch", "zuko", "botorch", "ray", "mlflow", "pyarrow", "numpy", "scipy")


def versions() -> dict[str, str]:
    """Versions of Python and of what matters to the results."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
