"""Small campaigns: a simulator with a known answer, failures included, and a learner that is done in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

SIMULATOR = """
import time
import numpy as np

def simulate(theta, seed):
    if theta[0] < -1.6:
        raise ValueError("theta_0 is too low")
    if theta[1] > 1.8:
        return np.full(3, np.nan)
    noise = np.random.default_rng(seed).normal(size=3)
    return np.array([theta[0], theta[1], theta[0] + theta[1]]) + 0.5 * noise

def slow(theta, seed):
    time.sleep(0.02)
    return simulate(theta, seed)

def pair(theta):
    return theta

def ragged(theta):
    return theta if theta[0] > 0 else np.zeros(3)

def rare(theta, seed):
    if seed % 2:
        raise ValueError("an odd seed")
    return simulate(theta, seed)

def bracketed(theta, seed):
    if theta[0] > 1:
        raise ValueError("see [/tmp/log]")
    return simulate(theta, seed)

def broken(theta):
    raise RuntimeError("out of order")
"""

#: Trains in seconds; what it learns is checked elsewhere.
QUICK = {
    "members": ["gaussian"],
    "hidden": [24],
    "epochs": 15,
    "update_epochs": 4,
    "refine_epochs": 8,
    "bank": 16,
    "pairs": 2000,
    "posterior_epochs": 2,
}
NORMAL = {"distribution": "Normal", "loc": 0, "scale": 1}


def write_campaign(folder: Path, **changes: Any) -> Path:
    """A targeted campaign of 300 simulations in `folder`; `changes` replace keys, None removes them."""
    (folder / "model.py").write_text(SIMULATOR)
    (folder / "x_o.csv").write_text("x\n0.5\n-0.3\n0.1\n")
    values: dict[str, Any] = {
        "name": "small",
        "simulator": {"function": "model.py:simulate"},
        "parameters": {"a": NORMAL, "b": NORMAL},
        "observation": "x_o.csv",
        "budget": {"simulations": 300},
        "learner": QUICK,
        "calibration": {"share": 0.2, "draws": 50},
        "tracking": {"enabled": False},
        "seed": 3,
        **changes,
    }
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}))
    return path
