"""Processes that left their group are over when we say so."""

import os
import subprocess
import sys

import pytest
from liveness import is_dead

from simulators.processes import MARK, kill_marked

#: Memory takes the system a moment to free: a process is not over as soon as it is killed.
LARGE = "import time, numpy; held = numpy.ones(1 << 24); print('ready', flush=True); time.sleep(1000)"


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="processes are found through /proc")
def test_nothing_marked_lives_on() -> None:
    environment = {**os.environ, MARK: "ours"}
    processes = [
        subprocess.Popen([sys.executable, "-c", LARGE], stdout=subprocess.PIPE, env=environment) for _ in range(8)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        kill_marked(f"{MARK}=other")
        assert not any(is_dead(process.pid) for process in processes)
        kill_marked(f"{MARK}=ours")
        assert all(is_dead(process.pid) for process in processes)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
