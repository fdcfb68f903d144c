"""Runs one piece of work on copies of a store, each in a process that is killed one line of location.py later.

`python kill_at_each_step.py append|compact ORIGINAL FOLDER`: the n-th copy, `FOLDER/n`, is as a SIGKILL before the n-th
line left it. Prints how many there are.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from rows import finished

from orchestrator import location
from orchestrator.store import SimulationStore


def killed(work: str, folder: Path, line: int) -> bool:
    """Whether the process was killed before it came to the end of its work."""
    child = os.fork()
    if child == 0:
        left = line

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal left
            if frame.f_code.co_filename != location.__file__:
                return None
            if event == "line":
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        store = SimulationStore(folder)
        sys.settrace(trace)
        if work == "append":
            store.append(finished(range(100, 105)))
        else:
            store.compact()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        raise RuntimeError(f"line {line}: exit code {os.WEXITSTATUS(status)}")
    return os.WIFSIGNALED(status)


def main() -> None:
    work, original, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    line = 0
    while True:
        copy = folder / str(line)
        shutil.copytree(original, copy)
        line += 1
        if not killed(work, copy, line - 1):
            break
    print(line)


if __name__ == "__main__":
    main()
