"""Tests run in several processes at once (`make test`): each has Ray clusters of its own.

Ray finds the clusters of a machine by a folder that they share; with a folder each, nobody joins those of another.
"""

from __future__ import annotations

import os
import shutil
import tempfile

# Before anything is imported that reads them.
if "PYTEST_XDIST_WORKER" in os.environ:
    # The processes share the cores: threads that wait for each other by spinning would take them from the others.
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    # The size of somebody's terminal is none of the tests' business.
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)
    # Short, for sockets have short names.
    os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="tf", dir="/tmp")


def pytest_unconfigure() -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        shutil.rmtree(os.environ["RAY_TMPDIR"], ignore_errors=True)
