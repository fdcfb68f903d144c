"""Campaigns whose learner has another source than the surrogate, or an embedding; from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from campaigns import QUICK, write_campaign

from learners import TemperedPosterior
from orchestrator.campaign import Campaign, CampaignResult
from orchestrator.cli import main
from orchestrator.explorer import load_explored
from orchestrator.predictive_bank import load_bank
from orchestrator.run_directory import RunDirectory
from simulators.errors import SavedModelError

pytestmark = pytest.mark.usefixtures("cluster")

#: As `campaigns.QUICK`, without the surrogate's members.
PLAIN = {key: value for key, value in QUICK.items() if key != "members"}

OWN = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x)

def distance(x, x_o):
    return (x - x_o).square().sum(-1)
"""


def run(folder: Path, **learner: Any) -> CampaignResult:
    (folder / "own.py").write_text(OWN)
    path = write_campaign(folder, learner={**PLAIN, **learner})
    return Campaign.from_file(path, directory=folder / "run").run(progress=False)


def test_a_ratio(tmp_path: Path) -> None:
    result = run(tmp_path, source="ratio")
    draws = result.posterior.sample((200,), beta=0.5, seed=0)
    assert draws.isfinite().all()
    assert {check.kind for check in result.checks} == {"prior", "tempered"}
    directory = RunDirectory(result.directory)
    # Ratios draw no x: predictions come from the simulations.
    assert not (result.directory / "predictive.npz").exists()
    bank = load_bank(directory, result.posterior)
    assert bank is not None and bank.origin == "simulations of the prior"
    assert (result.directory / "report.html").exists()
    rows = directory.store().read(["proposal"])["proposal"].to_pylist()
    assert "acquisition" in rows
    assert load_explored(str(result.directory)).recommendation is not None


def test_a_cost_and_an_embedding_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(tmp_path, source="cost", distance="own.py:distance", embedding="own.py:Net")
    # The simulator's pairs are no draws of the posterior of a cost: nothing is spent on checking it with them.
    assert result.checks == []
    assert "simulations cannot check this posterior" in (result.directory / "report.html").read_text()
    proposals = RunDirectory(result.directory).store().read(["proposal"])["proposal"].to_pylist()
    assert len(proposals) == 300 and not any("calibration" in kind for kind in proposals)
    with pytest.raises(SavedModelError, match=r"embedding=Net\("):
        TemperedPosterior.load(result.directory)
    # The configuration names the code, but does not decide that it runs.
    with pytest.raises(SavedModelError, match="give --own-code to run it"):
        load_explored(str(result.directory))
    assert load_explored(str(result.directory), own_code=True).posterior.dim_x == 3
    out = tmp_path / "draws.csv"
    monkeypatch.setattr(
        "sys.argv", ["temperflow", "sample", str(result.directory), "--out", str(out), "-n", "20", "--own-code"]
    )
    with pytest.raises(SystemExit) as leaving:
        main()
    assert not leaving.value.code
    drawn = np.loadtxt(out, delimiter=",", skiprows=1)
    assert drawn.shape == (20, 2)
    again = Campaign.from_file(tmp_path / "campaign.yaml", directory=tmp_path / "run").run(progress=False)
    x = torch.tensor([0.5, -0.3, 0.1])
    torch.testing.assert_close(*(r.posterior.sample((9,), x=x, seed=0) for r in (result, again)))


def test_an_embedding_of_series(tmp_path: Path) -> None:
    result = run(tmp_path, embedding="conv1d", embedding_dim=2, members=["gaussian"])
    saved = json.loads((result.directory / "posterior" / "posterior.json").read_text())
    assert (saved["format"], saved["embedding"]["kind"], saved["embedding"]["dim"]) == (6, "conv1d", 2)
    loaded = TemperedPosterior.load(result.directory)
    draws = loaded.sample((200,), beta=0.5, seed=0)
    torch.testing.assert_close(draws, result.posterior.sample((200,), beta=0.5, seed=0))
    assert not (result.directory / "predictive.npz").exists()
    assert {check.kind for check in result.checks} == {"prior", "tempered"}
