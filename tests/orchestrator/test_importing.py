"""Importing existing simulations: every format gives the same rows, and what does not fit is refused whole."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from campaigns import write_campaign

from orchestrator.campaign import Campaign
from orchestrator.cli import main
from orchestrator.importing import Imported, import_simulations
from orchestrator.journal import ProposalJournal
from orchestrator.proposal import ProposalKind, Proposals
from orchestrator.run_directory import RunDirectory
from orchestrator.simulation_file import read_simulations
from orchestrator.store import split_columns
from simulators.errors import ConfigError, DataError, RunDirectoryError

N = 40
RNG = np.random.default_rng(0)
THETA = RNG.normal(size=(N, 2))
X = RNG.normal(size=(N, 3))
X[3] = np.nan
X[7, 1] = np.inf


def _npz(file: Path, theta: Any, x: Any) -> None:
    np.savez(file, theta=theta, x=x)


def _hdf5(file: Path, theta: Any, x: Any) -> None:
    with h5py.File(file, "w") as arrays:
        arrays["theta"], arrays["x"] = theta, x


def _frame(theta: Any, x: Any) -> pd.DataFrame:
    # The order of the parameters is the campaign's; that of x is the file's.
    columns = {"b": theta[:, 1], "out_2": x[:, 0], "a": theta[:, 0], "out_1": x[:, 1], "last": x[:, 2]}
    return pd.DataFrame(columns)


def _csv(file: Path, theta: Any, x: Any) -> None:
    _frame(theta, x).to_csv(file, index=False)


def _parquet(file: Path, theta: Any, x: Any) -> None:
    _frame(theta, x).to_parquet(file, index=False)


def _lists(file: Path, theta: Any, x: Any) -> None:
    rows = [None if np.isnan(row).all() else row for row in x]
    pq.write_table(pa.table({"x": pa.array(rows, pa.list_(pa.float64())), "theta": list(theta)}), file)


FORMATS: dict[str, Callable[[Path, Any, Any], None]] = {
    "a.npz": _npz,
    "a.h5": _hdf5,
    "a.hdf5": _hdf5,
    "a.csv": _csv,
    "columns.parquet": _parquet,
    "lists.parquet": _lists,
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_campaign(tmp_path)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(tmp_path: Path, config: Path, run: RunDirectory, name: str) -> None:
    FORMATS[name](tmp_path / name, THETA, X)
    assert import_simulations(run, tmp_path / name, config) == Imported(N, 2, False)
    table = run.store().read()
    theta, x = split_columns(table)
    np.testing.assert_array_equal(theta, THETA)
    finite = np.isfinite(X).all(axis=1)
    np.testing.assert_array_equal(x, np.where(finite[:, None], X, np.nan))
    row = table.to_pylist()[3]
    assert (row["status"], row["reason"]) == ("not_finite", "3 of 3 values are NaN or infinite")
    assert (row["proposal"], row["attempts"], row["proposal_log_density"]) == ("imported", 0, None)
    assert row["seconds"] is row["started"] is row["seed"] is row["beta"] is None
    assert row["worker"].startswith(f"import:{name}:")
    assert run.store().summary().by_kind == {"imported": N}


def test_the_same_numbers_are_added_once(tmp_path: Path, config: Path, run: RunDirectory) -> None:
    for name, write in FORMATS.items():
        write(tmp_path / name, THETA, X)
        repeated = import_simulations(run, tmp_path / name, config).repeated
        assert repeated == (name != "a.npz")
    assert len(run.store()) == N
    _npz(tmp_path / "more.npz", THETA + 0.1, X)
    assert not import_simulations(run, tmp_path / "more.npz").repeated
    assert run.store().ids().tolist() == list(range(2 * N))


def test_draws_of_the_prior_have_its_density(tmp_path: Path, config: Path, run: RunDirectory) -> None:
    _npz(tmp_path / "a.npz", THETA, X)
    import_simulations(run, tmp_path / "a.npz", config, from_prior=True)
    expected = torch.distributions.Normal(0, 1).log_prob(torch.as_tensor(THETA)).sum(-1)
    np.testing.assert_allclose(run.store().read()["proposal_log_density"].to_numpy(), expected, rtol=1e-6)


def test_ids_follow_those_in_the_store_and_in_flight(tmp_path: Path, config: Path, run: RunDirectory) -> None:
    _npz(tmp_path / "a.npz", THETA, X)
    import_simulations(run, tmp_path / "a.npz", config)
    journal = ProposalJournal(run.journal)
    journal.rotate(Proposals.of_kind(N, np.zeros((60, 2)), ProposalKind.PRIOR, 0))
    journal.close()
    _npz(tmp_path / "b.npz", THETA + 0.1, X)
    import_simulations(run, tmp_path / "b.npz")
    assert run.store().ids().tolist() == [*range(N), *range(N + 60, 2 * N + 60)]


def test_other_shapes_of_arrays(tmp_path: Path) -> None:
    config = write_campaign(
        tmp_path, parameters={"a": {"distribution": "Normal", "loc": 0, "scale": 1}}, observation=None
    )
    run = RunDirectory(tmp_path / "run")
    np.savez(tmp_path / "a.npz", theta=THETA[:, 0].astype(np.float32), x=np.arange(N * 6).reshape(N, 2, 3))
    import_simulations(run, tmp_path / "a.npz", config)
    theta, x = split_columns(run.store().read())
    assert theta.shape == (N, 1)
    assert x[1].tolist() == [6, 7, 8, 9, 10, 11]


def test_columns_of_x_may_have_one_name(tmp_path: Path) -> None:
    table = pa.table([*THETA.T, *X.T], names=["a", "b", "y", "y", "y"])
    pq.write_table(table, tmp_path / "a.parquet")
    np.testing.assert_array_equal(read_simulations(tmp_path / "a.parquet", ["a", "b"])[1], X)


def _text(file: Path) -> None:
    np.savez(file, theta=np.full((N, 2), "1"), x=X)


def _objects(file: Path) -> None:
    np.savez(file, theta=THETA.astype(object), x=X)


def _half(file: Path) -> None:
    _npz(file, THETA, X)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _zeros_inside(file: Path) -> None:
    np.savez_compressed(file, theta=THETA, x=X)
    content = file.read_bytes()
    file.write_bytes(content[:200] + bytes(60) + content[260:])


BAD: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "outside": ("a.npz", lambda f: _npz(f, np.vstack([THETA[:-1], [[0, np.nan]]]), X), r"1 of 40.*row 39: a=0, b=nan"),
    "too many theta": ("a.npz", lambda f: _npz(f, X, X), r"theta with 2 columns \(a, b\).*got 3"),
    "other x": ("a.npz", lambda f: _npz(f, THETA, X[:, :2]), "x of 3 numbers as in the observation, got 2"),
    "other n": ("a.npz", lambda f: _npz(f, THETA, X[:-1]), "as many rows of x as of theta.*39 and 40"),
    "none": ("a.npz", lambda f: _npz(f, THETA[:0], X[:0]), "no simulations"),
    "no x": ("a.npz", lambda f: np.savez(f, theta=THETA, y=X), "no array 'x'; it has theta, y"),
    "text": ("a.npz", _text, "array of numbers"),
    "objects": ("a.npz", _objects, "cannot be read"),
    "scalar": ("a.npz", lambda f: _npz(f, THETA, 1.0), "array of numbers"),
    "complex": ("a.h5", lambda f: _hdf5(f, THETA, X.astype(complex)), "array of numbers"),
    "a group": ("a.h5", lambda f: h5py.File(f, "w").create_group("theta").file.close(), "theta"),
    "no file": ("a.npz", lambda f: None, "no such file"),
    "another format": ("a.txt", lambda f: f.write_text("1"), r"expected a \.parquet, \.npz, \.csv"),
    "garbage": ("a.npz", lambda f: f.write_bytes(b"garbage"), "cannot be read"),
    "garbage h5": ("a.h5", lambda f: f.write_bytes(b"garbage"), "cannot be read"),
    "garbage parquet": ("a.parquet", lambda f: f.write_bytes(b"garbage"), "cannot be read"),
    "half": ("a.npz", _half, "cannot be read"),
    "zeros inside": ("a.npz", _zeros_inside, "cannot be read"),
    "a parameter twice": ("a.csv", lambda f: f.write_text("a,b,a,y,z\n1,2,3,4,5\n"), "one column 'a' .*got several"),
    "a parameter twice in parquet": (
        "a.parquet",
        lambda f: pq.write_table(pa.table([[1.0]] * 5, names=["a", "b", "a", "y", "z"]), f),
        "one column 'a' .*got several",
    ),
    "empty csv": ("a.csv", lambda f: f.write_text(""), "cannot be read"),
    "no column": ("a.csv", lambda f: f.write_text("aa,b,x,y,z\n1,2,3,4,5\n"), "no column 'a'; did you mean 'aa'"),
    "words": ("a.csv", lambda f: f.write_text("a,b,x,y,z\n1,2,three,4,5\n"), "numbers in column 'x'"),
    "an index": ("a.csv", lambda f: _frame(THETA, X).to_csv(f), "a column without a name"),
    "ragged": (
        "a.parquet",
        lambda f: pq.write_table(pa.table({"theta": [[1, 2]] * 2, "x": [[1], [1, 2]]}), f),
        "one len",
    ),
    "no theta": (
        "a.parquet",
        lambda f: pq.write_table(pa.table({"theta": [[1, 2], None], "x": [[1]] * 2}), f),
        "1 have",
    ),
    "words in lists": (
        "a.parquet",
        lambda f: pq.write_table(pa.table({"theta": [["a"]], "x": [[1]]}), f),
        "lists of num",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused_and_nothing_is_written(
    tmp_path: Path, config: Path, run: RunDirectory, case: str
) -> None:
    name, write, message = BAD[case]
    write(tmp_path / name)
    with pytest.raises(DataError, match=message):
        import_simulations(run, tmp_path / name, config)
    assert not run.path.exists()


def test_the_support_of_a_bounded_prior_is_kept(tmp_path: Path) -> None:
    bounded = {"distribution": "Uniform", "low": -1, "high": 1}
    config = write_campaign(tmp_path, parameters={"a": bounded, "b": bounded})
    (tmp_path / "prior.py").write_text(
        "import torch\nD = torch.distributions\nprior = D.Independent(D.Uniform(-torch.ones(2), torch.ones(2)), 1)\n"
    )
    (tmp_path / "other").mkdir()
    other = write_campaign(tmp_path / "other", parameters=None, prior=f"{tmp_path}/prior.py:prior")
    _npz(tmp_path / "a.npz", np.array([[0.5, 0.5], [0.5, 1.5]]), X[:2])
    for which in (config, other):
        with pytest.raises(DataError, match=r"1 of 2 are not, the first in row 1: \w+=0.5, \w+=1.5"):
            import_simulations(RunDirectory(tmp_path / "run"), tmp_path / "a.npz", which)


def test_the_width_of_what_is_stored_is_kept(tmp_path: Path) -> None:
    config = write_campaign(tmp_path, observation=None)
    run = RunDirectory(tmp_path / "run")
    _npz(tmp_path / "a.npz", THETA, X)
    import_simulations(run, tmp_path / "a.npz", config)
    _npz(tmp_path / "b.npz", THETA, X[:, :2])
    with pytest.raises(DataError, match="x of 3 numbers as in the store, got 2"):
        import_simulations(run, tmp_path / "b.npz")
    assert len(run.store()) == N


def test_a_prior_in_a_file_is_found_again_and_run_if_it_is_trusted(
    tmp_path: Path, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prior.py").write_text(
        "import pathlib, torch\npathlib.Path(__file__).with_name('has_run').touch()\n"
        "prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))\n"
    )
    config = write_campaign(tmp_path, parameters=None, prior="prior.py:prior")
    _npz(tmp_path / "a.npz", THETA, X)
    import_simulations(run, tmp_path / "a.npz", config)
    (tmp_path / "has_run").unlink()
    monkeypatch.chdir("/")
    with pytest.raises(ConfigError, match=r"prior of somebody's own, prior\.py:prior; .*--own-code to run it, or"):
        import_simulations(run, tmp_path / "a.npz")
    assert not (tmp_path / "has_run").exists()
    monkeypatch.setattr(sys, "argv", ["temperflow", "import", str(run.path), str(tmp_path / "a.npz"), "--own-code"])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert (tmp_path / "has_run").exists()


def test_campaigns_that_cannot_take_it(tmp_path: Path, config: Path, run: RunDirectory) -> None:
    _npz(tmp_path / "a.npz", THETA, X)
    with pytest.raises(RunDirectoryError, match="give --config"):
        import_simulations(run, tmp_path / "a.npz")
    import_simulations(run, tmp_path / "a.npz", config)
    records = run.records()
    run.open(records["config"], records["identity"])
    with pytest.raises(RunDirectoryError, match="being written by another process"):
        import_simulations(RunDirectory(run.path), tmp_path / "a.npz")
    run.close()
    other = write_campaign(tmp_path, seed=4)
    with pytest.raises(RunDirectoryError, match="seed changed"):
        import_simulations(run, tmp_path / "a.npz", other)
    run.update(config={**records["config"], "parameters": {}})
    with pytest.raises(ConfigError, match="started from Python"):
        import_simulations(run, tmp_path / "a.npz")


def test_the_command(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["temperflow", "import", *map(str, arguments)])
        with pytest.raises(SystemExit) as leaving:
            main()
        captured = capsys.readouterr()
        return int(leaving.value.code or 0), captured.out + captured.err

    _csv(tmp_path / "a.csv", THETA, X)
    code, text = call(tmp_path / "run", tmp_path / "a.csv", "--config", config, "--from-prior")
    assert (code, "40 simulations, 2 of them failures, imported" in text) == (0, True)
    code, text = call(tmp_path / "run", tmp_path / "a.csv")
    assert (code, "imported before; nothing was added" in text) == (0, True)
    code, text = call(tmp_path / "elsewhere", tmp_path / "a.csv")
    assert code == 1
    assert "give --config" in text
    assert "Traceback" not in text
    code, text = call("--help")
    assert code == 0
    assert "Example: temperflow import" in text


def test_a_campaign_goes_on_from_there(tmp_path: Path, run: RunDirectory, cluster: None) -> None:
    changes = {"acquisition": {"method": "prior"}, "calibration": {"share": 0.0}}
    config = write_campaign(tmp_path, budget={"simulations": 20}, **changes)
    _npz(tmp_path / "a.npz", THETA, X)
    import_simulations(run, tmp_path / "a.npz", config)
    assert Campaign.from_file(config, directory=run.path).simulate(progress=False) == N + 20
    assert run.store().summary().by_kind == {"imported": N, "prior": 20}
    assert run.store().ids().tolist() == list(range(N + 20))
    assert import_simulations(run, tmp_path / "a.npz").repeated
