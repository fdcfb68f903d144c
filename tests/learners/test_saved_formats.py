"""Posteriors saved by earlier versions load for ever, with the densities that they had."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from learners import TemperedPosterior
from learners.saved_files import FORMAT_VERSION
from simulators.errors import SavedModelError

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


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("options", {"hidden": [12000, 12000]}),
        ("options", {"hidden": [12000, 12000, -12000]}),
        ("options", {"hidden": [12000, 12000], "transforms": 0}),
        ("options", {"transforms": 10**9}),
        ("options", {"bins": 10**9}),
        ("guide", {"guess": [12000, 12000]}),
        ("guide", {"scales": [12000, 12000]}),
        (None, {"dim_z": 10**9}),
        (None, {"dim_u": 10**5}),
    ],
)
def test_a_network_larger_than_its_file_is_refused_before_it_is_made(
    section: str | None, changes: dict[str, Any], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(SAVED / "format_4", tmp_path / "saved"))
    spec = json.loads((folder / "posterior.json").read_text())
    network = spec["network"]
    (network if section is None else network[section]).update(changes)
    (folder / "posterior.json").write_text(json.dumps(spec))
    with pytest.raises(SavedModelError, match=r"is damaged \(a network of its sizes has more than \d+ numbers"):
        TemperedPosterior.load(folder)


@pytest.mark.parametrize("steps", [0, 10**9, -1, "6", 1.5, True, None])
def test_a_guide_that_would_take_for_ever_is_refused(steps: object, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SAVED / "format_7", tmp_path / "saved"))
    spec = json.loads((folder / "posterior.json").read_text())
    spec["network"]["guide"]["steps"] = steps
    (folder / "posterior.json").write_text(json.dumps(spec))
    with pytest.raises(SavedModelError, match=r"is damaged .* steps of scoring"):
        TemperedPosterior.load(folder)
