"""A run directory belongs to one problem, and what is in it survives a damaged record."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from campaigns import write_campaign
from rows import finished

from orchestrator.importing import import_simulations
from orchestrator.run_directory import RunDirectory
from simulators.errors import RunDirectoryError


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    run = RunDirectory(tmp_path / "run")
    yield run
    run.close()


@pytest.mark.parametrize("names", [["a", "b", "c"], ["b", "a"], ["a"]])
def test_other_parameters_are_refused_though_the_prior_has_its_place(run: RunDirectory, names: list[str]) -> None:
    run.open({}, {"prior": "model.py:prior"}, ["a", "b"])
    run.store().append(finished([0]))
    run.close()
    record = (run.path / "campaign.json").read_text()
    with pytest.raises(RunDirectoryError, match=rf"with the parameters a, b, but the prior has {', '.join(names)};"):
        run.open({}, {"prior": "model.py:prior"}, names)
    assert (run.path / "campaign.json").read_text() == record


def test_a_store_of_other_parameters_is_not_claimed(tmp_path: Path, run: RunDirectory) -> None:
    place = str(tmp_path / "elsewhere")
    other = RunDirectory(tmp_path / "other")
    other.open({"store": place}, {"store": place}, ["a", "b"])
    other.store().append(finished([0]))
    other.close()
    (tmp_path / "elsewhere" / "_campaign.json").unlink()
    with pytest.raises(RunDirectoryError, match="with 2 parameters, but the prior has a, b, c"):
        run.open({"store": place}, {"store": place}, ["a", "b", "c"])
    assert not run.exists
    assert not (tmp_path / "elsewhere" / "_campaign.json").exists()


PRIOR = "import torch\nprior = torch.distributions.MultivariateNormal(torch.zeros({0}), torch.eye({0}))\n"


def test_imported_rows_have_the_parameters_of_the_store(tmp_path: Path, run: RunDirectory) -> None:
    config = write_campaign(tmp_path, parameters=None, prior="prior.py:prior")
    prior, generator = tmp_path / "prior.py", np.random.default_rng(0)
    for d in (2, 3):
        np.savez(tmp_path / f"{d}.npz", theta=generator.normal(size=(40, d)), x=generator.normal(size=(40, 3)))
    prior.write_text(PRIOR.format(2))
    import_simulations(run, tmp_path / "2.npz", config)
    prior.write_text(PRIOR.format(3))
    with pytest.raises(RunDirectoryError, match="with the parameters theta_0, theta_1, but the prior has theta_0, "):
        import_simulations(run, tmp_path / "3.npz", config)
    assert run.store().summary().parameters == 2
    assert len(run.store()) == 40


def test_an_observation_that_never_fitted_may_be_replaced(run: RunDirectory) -> None:
    def opened(*observation: float) -> None:
        run.open({}, {"observation": list(observation)}, ["a", "b"])
        run.close()

    opened(1.0, 2.0, 3.0)
    run.store().append(finished([0]))
    opened(1.0, 2.0)  # As many numbers as x in the store.
    with pytest.raises(RunDirectoryError, match="observation changed"):
        opened(1.0, 2.5)
    with pytest.raises(RunDirectoryError, match="observation changed"):
        opened(1.0, 2.0, 3.0)


def test_a_damaged_record_has_a_copy(run: RunDirectory, caplog: pytest.LogCaptureFixture) -> None:
    run.open({"name": "a"}, {"seed": 1})
    run.update(finished=7.0)
    run.close()
    (run.path / "campaign.json").write_text("")
    assert run.records()["finished"] == 7.0
    assert "campaign.json cannot be used; going on with the copy" in caplog.text
    with pytest.raises(RunDirectoryError, match="seed changed"):
        run.open({"name": "a"}, {"seed": 2})
    assert run.open({"name": "a"}, {"seed": 1})["finished"] == 7.0
    assert (run.path / "campaign.json").read_text()


@pytest.mark.parametrize(
    ("text", "message"), [("", "is damaged (Expecting value"), ('{"format": 1}', "is damaged (it has no 'identity')")]
)
def test_without_a_record_the_simulations_can_be_saved(
    tmp_path: Path, run: RunDirectory, text: str, message: str
) -> None:
    config = write_campaign(tmp_path, observation=None)
    run.open({}, {}, ["a", "b"])
    run.store().append(finished([0, 1]))
    run.close()
    for name in ("campaign.json", ".campaign.json.copy"):
        (run.path / name).write_text(text)
    with pytest.raises(RunDirectoryError, match=f"{re.escape(message)}.*temperflow import NEW_DIR FILE .*/run/simul"):
        run.open({}, {})
    [file] = run.simulations.glob("*.parquet")
    assert import_simulations(RunDirectory(tmp_path / "new"), file, config).rows == 2


def test_what_a_kill_leaves_of_the_first_record_is_no_other_folder(run: RunDirectory) -> None:
    run.path.mkdir()
    (run.path / ".lock").touch()
    (run.path / ".campaign.json.4711").write_text("{")
    run.open({}, {})
    assert run.exists


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunDirectoryError, match=r"file/run cannot be written: Not a directory; check whose folder"):
        RunDirectory(tmp_path / "file" / "run").open({}, {})
