"""The command line: the main job on a small budget, every command, and what a user reads when something is wrong."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from campaigns import NORMAL, QUICK, write_campaign
from disks import mounted

from learners import TemperedPosterior
from orchestrator.cli import main

Temperflow = Callable[..., tuple[int, str]]

EXAMPLE = Path(__file__).parents[2] / "examples" / "hudson_bay.yaml"


@pytest.fixture(scope="module")
def hudson(tmp_path_factory: pytest.TempPathFactory, cluster: None) -> Path:
    """The demo's run directory, on a small budget."""
    folder = tmp_path_factory.mktemp("hudson")
    settings = {f"learner.{k}": v for k, v in QUICK.items()}
    settings |= {
        "budget.simulations": 400,
        "calibration.share": 0.2,
        "calibration.draws": 50,
        "tracking.uri": f"sqlite:///{folder}/mlflow.db",
    }
    arguments = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["temperflow", "run", str(EXAMPLE), "--dir", str(folder / "run"), *arguments])
        with pytest.raises(SystemExit) as leaving:
            main()
    assert not leaving.value.code
    return folder / "run"


def test_the_main_job_leaves_its_results(hudson: Path) -> None:
    rows = pd.read_parquet(hudson / "simulations")
    assert len(rows) == 400
    assert rows.loc[rows["status"] == "ok", "x"].map(len).eq(42).all()
    assert TemperedPosterior.load(hudson).sample((10,), beta=0.3).shape == (10, 8)
    page = (hudson / "report.html").read_text()
    for expected in ("alpha", "delta", "sigma_lynx", "SBC"):
        assert expected in page


def test_status_of_a_campaign_that_goes_on_and_whose_failures_have_brackets(
    tmp_path: Path, temperflow: Temperflow, cluster: None
) -> None:
    config = write_campaign(tmp_path, simulator={"function": "model.py:bracketed"}, budget={"simulations": 150})
    code, text = temperflow("run", config, "--dir", tmp_path / "run")
    assert code == 0, text
    assert ": finished" in temperflow("status", tmp_path / "run")[1]
    assert temperflow("simulate", config, "--dir", tmp_path / "run", "--set", "budget.simulations=160")[0] == 0
    code, text = temperflow("status", tmp_path / "run")
    assert code == 0, text
    assert ": finished" not in text
    assert "[/tmp/log]" in text


def test_status(hudson: Path, temperflow: Temperflow) -> None:
    code, text = temperflow("status", hudson)
    assert code == 0
    assert "finished" in text
    assert "400 of 400 simulations" in text


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_sample_for_the_observation(hudson: Path, tmp_path: Path, temperflow: Temperflow, suffix: str) -> None:
    out = tmp_path / f"draws{suffix}"
    code, _ = temperflow("sample", hudson, "--beta", 0.5, "-n", 20, "--out", out, "--seed", 1)
    assert code == 0
    frame = pd.read_csv(out) if suffix == ".csv" else pd.read_parquet(out)
    assert list(frame.columns)[:3] == ["alpha", "beta_", "gamma"]
    expected = TemperedPosterior.load(hudson).sample((20,), beta=0.5, seed=1)
    np.testing.assert_allclose(frame, expected, rtol=1e-5)


def test_sample_refined(hudson: Path, tmp_path: Path, temperflow: Temperflow) -> None:
    out = tmp_path / "draws.csv"
    code, _ = temperflow("sample", hudson, "-n", 20, "--out", out, "--seed", 1, "--refine")
    assert code == 0
    expected = TemperedPosterior.load(hudson).sample((20,), seed=1, refine=True)
    np.testing.assert_allclose(pd.read_csv(out), expected, rtol=1e-4)


def test_the_report_says_how_far_the_network_is_from_its_source(hudson: Path) -> None:
    page = (hudson / "report.html").read_text()
    assert "Efficiency is the effective share" in page


@pytest.mark.parametrize(("limit", "told"), [(1.01, True), (0.0, False)])
def test_the_report_warns_of_a_network_that_is_far_from_its_source(
    hudson: Path, tmp_path: Path, temperflow: Temperflow, monkeypatch: pytest.MonkeyPatch, limit: float, told: bool
) -> None:
    copy = Path(shutil.copytree(hudson, tmp_path / "copy"))
    monkeypatch.setattr("orchestrator.report_words._INEFFICIENT", limit)
    assert temperflow("report", copy)[0] == 0
    assert ("sample with refine=True there" in (copy / "report.html").read_text()) == told


def test_a_report_of_a_posterior_without_a_source(hudson: Path, tmp_path: Path, temperflow: Temperflow) -> None:
    copy = Path(shutil.copytree(hudson, tmp_path / "copy"))
    (copy / "posterior" / "source.safetensors").unlink()
    assert temperflow("report", copy)[0] == 0
    page = (copy / "report.html").read_text()
    assert "The answer at" in page
    assert "fficiency" not in page
    code, text = temperflow("sample", copy, "--out", tmp_path / "draws.csv", "--refine")
    assert code == 1
    assert "source.safetensors cannot be used" in " ".join(text.split())


def test_sample_for_other_data(hudson: Path, tmp_path: Path, temperflow: Temperflow) -> None:
    table = pd.read_csv(EXAMPLE.with_name("hudson_bay_lynx_hare.csv"))
    table["hare"] *= 1.1
    table.to_csv(tmp_path / "other.CSV", index=False)
    code, _ = temperflow("sample", hudson, "--x", tmp_path / "other.CSV", "-n", 5, "--out", tmp_path / "d.csv")
    assert code == 0
    assert len(pd.read_csv(tmp_path / "d.csv")) == 5


def test_check_and_report_can_be_made_again(hudson: Path, temperflow: Temperflow) -> None:
    before = json.loads((hudson / "calibration.json").read_text())
    code, text = temperflow("check", hudson)
    assert code == 0
    assert "SBC over the prior" in text
    assert json.loads((hudson / "calibration.json").read_text()) == before
    (hudson / "report.html").unlink()
    code, _ = temperflow("report", hudson)
    assert code == 0
    assert (hudson / "report.html").exists()


def test_check_of_refined_draws_leaves_the_record_alone(hudson: Path, temperflow: Temperflow) -> None:
    before = json.loads((hudson / "calibration.json").read_text())
    code, text = temperflow("check", hudson, "--refine")
    assert code == 0
    assert "SBC over the prior" in text
    assert json.loads((hudson / "calibration.json").read_text()) == before


def test_what_keeps_a_posterior_from_being_checked_is_named(
    hudson: Path, tmp_path: Path, temperflow: Temperflow
) -> None:
    copy = Path(shutil.copytree(hudson, tmp_path / "copy[old]"))
    spec = json.loads((copy / "posterior" / "posterior.json").read_text())
    for change, message in {
        ("metadata", "source", "cost"): "a posterior of a `cost` cannot be checked by SBC",
        ("metadata", "calibration_from", 10**9): "",
    }.items():
        section, key, value = change
        changed = {**spec, section: {**spec[section], key: value}}
        (copy / "posterior" / "posterior.json").write_text(json.dumps(changed))
        code, text = temperflow("check", copy)
        assert code == (1 if message else 0), text
        assert message in text
    # What has brackets is no markup.
    (copy / "posterior" / "posterior.json").write_text(json.dumps(spec))
    code, text = temperflow("report", copy)
    assert (code, f"{copy}/report.html" in text) == (0, True)
    # Only forty of the rows are there.
    rows = pd.read_parquet(copy / "simulations")
    shutil.rmtree(copy / "simulations")
    few = rows[~rows["proposal"].str.startswith("calibration")]
    (copy / "simulations").mkdir()
    few.to_parquet(copy / "simulations" / "rows.parquet")
    code, text = temperflow("check", copy)
    assert code == 1
    assert "expected at least 20 successful simulations of a population to check with, got 0 from the prior" in text


@pytest.mark.parametrize("command", ["run", "status", "sample", "check", "report", "explore", "sync"])
def test_help_has_an_example(temperflow: Temperflow, command: str) -> None:
    code, text = temperflow(command, "--help")
    assert code == 0
    assert f"Example: temperflow {command}" in text


def test_errors_are_one_message_and_no_traceback(hudson: Path, tmp_path: Path, temperflow: Temperflow) -> None:
    draws = tmp_path / "draws.csv"
    short = tmp_path / "short.csv"
    short.write_text("hare,lynx\n1,2\n")
    cases = {
        ("run", tmp_path / "nothing.yaml"): "expected a configuration file",
        ("run", EXAMPLE, "--set", "budget.simulation=3"): "did you mean 'simulations'",
        ("run", EXAMPLE, "--set", "simulator.function=hudson_bay.py:simulat"): "did you mean 'simulate'",
        ("run", EXAMPLE, "--dir", hudson, "--set", "seed=99"): "another configuration: seed changed",
        ("run", EXAMPLE, "--dir", tmp_path): "holds files, but no campaign",
        ("status", tmp_path): "no campaign.json",
        ("sample", hudson, "--beta", 5, "--out", draws): "outside the trained range [0.1, 2]",
        ("sample", hudson, "--out", tmp_path / "draws.txt"): "to end in .parquet or .csv",
        (
            "sample",
            hudson,
            "-n",
            200_000_000_000,
            "--out",
            draws,
        ): "what the memory holds, got 200,000,000,000",
        ("sample", hudson, "--x", short, "--out", draws): "expected an observation of 42 numbers",
        ("sample", hudson, "--x", tmp_path / "no.csv", "--out", draws): "there is no such file",
        ("report", tmp_path / "nowhere"): "no campaign.json",
        ("explore", tmp_path / "nowhere"): "no campaign.json",
        ("explore", "models:/nothing@champion"): "models:/nothing@champion cannot be fetched from MLflow",
    }
    for arguments, message in cases.items():
        code, text = temperflow(*arguments)
        assert code == 1, (arguments, text)
        assert message in text
        assert "Traceback" not in text
    assert not draws.exists()


def test_where_draws_go_is_looked_at_first(tmp_path: Path, temperflow: Temperflow) -> None:
    code, text = temperflow("sample", tmp_path / "run", "--out", tmp_path / "missing" / "draws.csv")
    assert code == 1
    assert f"error: expected --out in a folder that is there, but {tmp_path}/missing is none" in text
    (tmp_path / "folder.csv").mkdir()
    code, text = temperflow("sample", tmp_path / "run", "--out", tmp_path / "folder.csv")
    assert code == 1
    assert f"error: expected a file as --out, but {tmp_path}/folder.csv is a folder" in text


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_draws_that_cannot_be_written_leave_the_old_file(
    hudson: Path, tmp_path: Path, temperflow: Temperflow, suffix: str
) -> None:
    with mounted(tmp_path / "disk", "1m") as disk:
        out = disk / f"draws{suffix}"
        assert temperflow("sample", hudson, "-n", 20, "--out", out)[0] == 0
        before = out.read_bytes()
        code, text = temperflow("sample", hudson, "-n", 50_000, "--out", out)
        assert code == 1
        assert f"error: --out {out} cannot be written: " in text
        assert "No space left" in text
        assert [path.name for path in disk.iterdir()] == [out.name]
        assert out.read_bytes() == before


def test_a_posterior_from_the_future_is_refused(hudson: Path, tmp_path: Path, temperflow: Temperflow) -> None:
    shutil.copytree(hudson, tmp_path / "run")
    path = tmp_path / "run" / "posterior" / "posterior.json"
    spec = json.loads(path.read_text())
    path.write_text(json.dumps({**spec, "format": 999}))
    code, text = temperflow("sample", tmp_path / "run", "--out", tmp_path / "d.csv")
    assert code == 1
    assert "format 999" in text
    assert "upgrade temperflow" in text


def test_a_folder_named_like_ours_is_explained(tmp_path: Path, temperflow: Temperflow) -> None:
    config = write_campaign(tmp_path, simulator={"function": "simulators.model:simulate"})
    (tmp_path / "simulators").mkdir()
    (tmp_path / "simulators" / "__init__.py").write_text("")
    shutil.copy(tmp_path / "model.py", tmp_path / "simulators" / "model.py")
    code, text = temperflow("run", config, "--dir", tmp_path / "run")
    assert code == 1
    assert "simulators" in text
    assert "rename" in text.lower()


def test_a_prior_of_the_wrong_dimension_is_explained(tmp_path: Path, temperflow: Temperflow) -> None:
    (tmp_path / "prior.py").write_text("import torch\nprior = torch.distributions.Normal(0.0, 1.0)\n")
    config = write_campaign(tmp_path, parameters=None, prior="prior.py:prior")
    code, text = temperflow("run", config, "--dir", tmp_path / "run")
    assert code == 1
    assert "event_shape" in text


def test_malformed_observations_are_explained(tmp_path: Path, temperflow: Temperflow) -> None:
    config = write_campaign(tmp_path, parameters={"a": NORMAL, "b": NORMAL})
    for content, message in {"x\n1\nnan\n": "NaN or infinite", "x\nfoo\n": "must hold numbers", "x\n": "empty"}.items():
        (tmp_path / "x_o.csv").write_text(content)
        code, text = temperflow("run", config, "--dir", tmp_path / "run")
        assert code == 1
        assert message in text
