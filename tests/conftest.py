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
        # The processes share the cores: threads that wait for each other by spinning would take them from the others.
        os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        # The width of somebody's terminal is none of the tests' business.
        os.environ.pop("COLUMNS", None)
        # Short, for sockets have short names.
        folder = tempfile.mkdtemp(prefix="tf", dir="/tmp")
        os.environ["RAY_TMPDIR"] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
