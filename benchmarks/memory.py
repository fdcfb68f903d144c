"""How much memory a campaign of many simulations of many numbers needs.

    python -m benchmarks.memory --simulations 1000000 --numbers 100

A whole campaign through the command line: it simulates, stores, trains from the store and writes its report. Every
process that it starts is watched ten times a second. Memory of a process is what is its own (anonymous pages); mapped
files, which the system may drop at any time, and what Ray shares between processes are given apart. How long it trains
does not change what it needs: `--epochs` are few.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import psutil
import typer

_SIMULATOR = """
import numpy as np

MIXING = np.random.default_rng(1).normal(size=(4, {numbers}))

def simulate(theta, seed):
    return theta @ MIXING + np.random.default_rng(seed).normal(size=(len(theta), {numbers}))
"""
_KINDS = ("RssAnon", "RssFile", "RssShmem")
_NAMES = {"ray::Trainer": "trainer", "gcs_server": "Ray", "raylet": "Ray", "courier": "tracking"}


def main(
    simulations: Annotated[int, typer.Option(help="Simulations.")] = 1_000_000,
    numbers: Annotated[int, typer.Option(help="Numbers in x.")] = 100,
    epochs: Annotated[int, typer.Option(help="Epochs of each training.")] = 3,
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.py").write_text(_SIMULATOR.format(numbers=numbers))
        normal = {"distribution": "Normal", "loc": 0, "scale": 1}
        values = {
            "name": "large",
            "simulator": {"function": "model.py:simulate", "batched": True},
            "parameters": dict.fromkeys("abcd", normal),
            "budget": {"simulations": simulations},
            "acquisition": {"method": "prior"},
            "learner": {"epochs": epochs, "refine_epochs": epochs, "pairs": 10_000, "bank": 64},
            "tracking": {"enabled": False},
        }
        (folder / "large.yaml").write_text(json.dumps(values))
        command = [str(Path(sys.executable).with_name("temperflow")), "run", "large.yaml", "--dir", "run"]
        started = time.monotonic()
        process = subprocess.Popen(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)})
        most: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(_KINDS, 0))
        while process.poll() is None:
            for what, used in _used(process.pid).items():
                for kind, size in used.items():
                    most[what][kind] = max(most[what][kind], size)
            time.sleep(0.1)
        seconds = time.monotonic() - started
        print(f"{simulations} simulations of {numbers} numbers: {seconds:.0f} s, exit status {process.returncode}")
        for what, used in sorted(most.items()):
            print(f"{what:<12} at most " + ", ".join(f"{kind} {size / 2**30:.2f} GiB" for kind, size in used.items()))


def _used(pid: int) -> dict[str, dict[str, int]]:
    """Bytes of every kind by kind of process, of the largest of each."""
    used: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(_KINDS, 0))
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return used
    for process in family:
        try:
            command = " ".join(process.cmdline())
            status = Path(f"/proc/{process.pid}/status").read_text()
        except (psutil.Error, OSError):
            continue
        what = "driver" if process.pid == pid else next((n for t, n in _NAMES.items() if t in command), "others")
        for line in status.splitlines():
            kind, _, rest = line.partition(":")
            if kind in _KINDS:
                used[what][kind] = max(used[what][kind], 1024 * int(rest.split()[0]))
    return used


if __name__ == "__main__":
    typer.run(main)
