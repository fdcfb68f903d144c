"""Tests run in several processes at once (`make test`): each has Ray clusters of its own.

Ray finds the clusters of a machine by a folder that they share; with a folder each, nobody joins those of another.
"""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Short, for sockets have short names.
        folder = tempfile.mkdtemp(prefix="tf", dir="/tmp")
        os.environ["RAY_TMPDIR"] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
