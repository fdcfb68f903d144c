"""Campaigns whose simulator is an external program: what the configuration means, and the example from end to end."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from campaigns import NORMAL, QUICK

from orchestrator.campaign import Campaign
from orchestrator.cli import main
from orchestrator.config_reading import load_config
from orchestrator.problem import Problem, resolve
from simulators.errors import ConfigError
from simulators.isolated import IsolatedSimulator

EXAMPLES = Path(__file__).parents[2] / "examples"
COMPILER = shutil.which("cc") or shutil.which("gcc")


def problem(folder: Path, **simulator: Any) -> Problem:
    """What a configuration in `folder` with this simulator and the parameters a and b comes to."""
    values = {
        "simulator": simulator,
        "parameters": {"a": NORMAL, "b": NORMAL},
        "budget": {"simulations": 60},
        "calibration": {"share": 0},
    }
    (folder / "campaign.yaml").write_text(yaml.safe_dump(values))
    return resolve(load_config(folder / "campaign.yaml"), folder)


def identity(folder: Path, **simulator: Any) -> Any:
    found = problem(folder, **simulator)
    return found.identity(load_config(folder / "campaign.yaml"))["simulator"]


def test_paths_are_relative_to_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "solver").write_text('#!/bin/sh\ncat deck.txt "$1" > out.dat\n')
    (tmp_path / "bin" / "solver").chmod(0o755)
    (tmp_path / "offset.txt").write_text("100\n")
    (tmp_path / "deck.txt.j2").write_text("{{ a }}\n{{ b }}\n{{ seed }}\n")
    found = problem(
        tmp_path,
        command=["bin/solver", "{folder}/offset.txt"],
        input="deck.txt.j2",
        output="out.dat",
        workdir="scratch",
        timeout=60,
    )
    with IsolatedSimulator(found.spec) as simulator:
        (outcome,) = simulator.run(np.array([[0.1, -2.0]]), np.array([5]))
    assert outcome.x is not None, outcome
    assert outcome.x.tolist() == [0.1, -2.0, 5, 100]
    assert (tmp_path / "scratch").is_dir()


def test_whole_numbers_among_the_arguments_need_no_quotes(tmp_path: Path) -> None:
    command = problem(tmp_path, command=["mpirun", "-np", 2, "{a}", "{b}"]).spec.command
    assert command is not None
    assert command.command == ("mpirun", "-np", "2", "{a}", "{b}")


def test_what_decides_on_the_results_is_the_identity_of_a_campaign(tmp_path: Path) -> None:
    (tmp_path / "deck").write_text("{{ a }} {{ b }}")
    settings: dict[str, Any] = {"command": ["./solver", "{input}"], "input": "deck"}
    first = identity(tmp_path, **settings)
    assert json.loads(json.dumps(first)) == first == identity(tmp_path, **settings, workdir="elsewhere", retries=3)
    for change in ({"command": ["./solver", "-v", "{input}"]}, {"output": "x.csv"}, {"fields": ["x"]}):
        assert identity(tmp_path, **{**settings, **change}) != first
    (tmp_path / "deck").write_text("{{ a }} {{ b }} 2")
    assert identity(tmp_path, **settings) != first


@pytest.mark.parametrize(
    ("simulator", "message"),
    [
        ({"command": ["x", "{a}", "{b}"], "task": "two_moons"}, "exactly one of `function`, `task` and `command`"),
        ({"command": "./x {a} {b}"}, r"simulator.command: expected a list such as \[./solver, '{input}'\], got './x"),
        ({"command": ["x", {"a": None}]}, r"got {'a': None}; put quotes around '{NAME}'"),
        ({"command": ["x", True]}, "expected texts, got True"),
        ({"command": ["x", 1.10]}, r"expected texts, got the number 1\.1; put quotes around it"),
        ({"command": []}, "expected the program and its arguments"),
        ({"command": ["x", "{a}", "{bb}"]}, r"no placeholder {bb} is known in '{bb}'; did you mean 'b'"),
        ({"command": ["x", "{a}"]}, "never sees the parameter 'b'"),
        ({"command": ["x"], "input": "deck"}, r"a template, but .*/deck cannot be read: No such file"),
        ({"command": ["x"], "input": "."}, "cannot be read: Is a directory"),
        ({"command": ["x"], "input": "json", "output": "xml"}, "got 'xml'"),
        ({"command": ["x"], "input": "json", "batched": True}, "remove `batched`"),
        ({"function": "math:sqrt", "output": "json"}, "are for a `command`, but there is none"),
        ({"comand": ["x"]}, "did you mean 'command'"),
    ],
)
def test_what_is_wrong_is_said(simulator: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        problem(tmp_path, **simulator)


def test_a_missing_program_is_said_before_the_campaign_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    problem(tmp_path, command=["./solver", "{a}", "{b}"])
    arguments = ["run", str(tmp_path / "campaign.yaml"), "--dir", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["temperflow", *arguments])
    with pytest.raises(SystemExit) as leaving:
        main()
    text = " ".join(capsys.readouterr().err.split())
    assert leaving.value.code == 1
    assert "solver, but there is no such file; build it, or mend `command`" in text
    assert "Traceback" not in text
    assert not (tmp_path / "run").exists()


def test_the_example_runs_from_end_to_end(cluster: None, tmp_path: Path) -> None:
    if COMPILER is None:
        pytest.skip("no C compiler")
    for name in ("oscillator.yaml", "oscillator.csv"):
        shutil.copy(EXAMPLES / name, tmp_path)
    subprocess.run([COMPILER, "-O2", "-o", tmp_path / "oscillator", EXAMPLES / "oscillator.c", "-lm"], check=True)
    overrides = [f"learner.{key}={value}" for key, value in QUICK.items()]
    overrides += ["budget.simulations=60", "calibration.share=0", "tracking.enabled=false", "simulator.workdir=scratch"]
    campaign = Campaign.from_file(tmp_path / "oscillator.yaml", overrides, tmp_path / "run")
    result = campaign.run(progress=False)
    rows: pd.DataFrame = result.simulations()
    assert rows["status"].tolist() == ["ok"] * 60
    assert set(rows["x"].map(len)) == {25}
    assert result.posterior.sample((10,), beta=0.5).shape == (10, 2)
    assert "./oscillator {frequency} {damping}" in (tmp_path / "run" / "report.html").read_text()
    assert list((tmp_path / "scratch").glob("temperflow-*/*/")) == []
