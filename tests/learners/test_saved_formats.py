"""Posteriors saved by earlier versions load for ever, with the densities that they had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from learners import TemperedPosterior
from learners.saved_files import FORMAT_VERSION

SAVED = Path(__file__).with_name("saved")


@pytest.mark.parametrize("version", range(1, FORMAT_VERSION + 1))
def test_an_old_save_loads(version: int) -> None:
    folder = SAVED / f"format_{version}"
    posterior = TemperedPosterior.load(folder)
    expected = json.loads((folder / "expected.json").read_text())
    theta = torch.tensor(expected["theta"])
    for beta, log_prob in zip(expected["beta"], expected["log_prob"], strict=True):
        found = posterior.log_prob(theta, beta=beta)
        torch.testing.assert_close(found, torch.tensor(log_prob), rtol=1e-4, atol=1e-4)
    assert posterior.names == ("rate", "scale")
    assert json.loads((folder / "posterior.json").read_text())["format"] == version
