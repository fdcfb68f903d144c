"""The accuracy benchmark's table: cells are run once, and anew where observations are missing."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor

from benchmarks import accuracy
from benchmarks.accuracy_table import markdown
from benchmarks.exact import exact_draws
from benchmarks.tables import replace_marked

MARKED = "before\n<!-- made by benchmarks.accuracy -->\nold\n<!-- end of what benchmarks.accuracy made -->\nafter\n"


def table(method: str = "ours") -> pd.DataFrame:
    rows = [
        {"observation": o, "beta": b, "c2st": 0.5 + 0.1 * o + 0.01 * seed, "seed": seed}
        for o in (1, 2)
        for b in (0.5, 1.0)
        for seed in (1, 2, 3)
    ]
    return pd.DataFrame(rows).assign(method=method, task="slcp", budget=1000)


def test_the_median_of_the_seeds_of_the_mean_over_the_observations() -> None:
    *_, line = markdown(table()).splitlines()
    assert line == "| slcp | 1,000 | network | 3; 2 | 0.670 | **0.670** | 0.660 to 0.680 | 0.88 |"


def test_what_a_method_does_not_know_stays_empty() -> None:
    npe = table("npe")
    *_, line = markdown(pd.concat([table(), npe[npe["beta"] == 1.0]])).splitlines()
    assert line == "| slcp | 1,000 | `sbi` NPE | 3; 2 |  | **0.670** | 0.660 to 0.680 |  |"


def test_only_what_is_between_the_marks_is_replaced(tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"
    results.write_text(MARKED)
    for _ in range(2):
        replace_marked("benchmarks.accuracy", markdown(table()), results)
    text = results.read_text()
    assert text.startswith("before\n<!-- made") and text.endswith("-->\nafter\n")
    assert "old" not in text
    assert text.count("slcp") == 1
    results.write_text("no marks")
    replace_marked("benchmarks.accuracy", markdown(table()), results)
    assert results.read_text() == "no marks"


def test_a_cell_is_run_once_and_anew_where_observations_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = []

    def method(task: accuracy.Problem, theta: Tensor, x: Tensor, seed: int) -> accuracy.Fitted:
        fits.append(len(theta))
        return accuracy.Fitted(1.0, lambda x_o, beta: exact_draws("two_moons", 1, beta))

    def told_apart(exact: Tensor, drawn: Tensor) -> Tensor:
        return torch.tensor([0.5 if torch.equal(a, b) else 1.0 for a, b in zip(exact, drawn, strict=True)])

    monkeypatch.setitem(accuracy.METHODS, "ours", method)
    monkeypatch.setattr(accuracy, "c2st", told_apart)
    monkeypatch.setattr(accuracy, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(accuracy, "OUT", tmp_path / "table.parquet")
    (tmp_path / "RESULTS.md").write_text(MARKED)

    def run(observations: str, name: str = "table") -> pd.DataFrame:
        out = tmp_path / f"{name}.parquet"
        accuracy.main("two_moons", "50", "1", "1", observations, "ours", out)
        return pd.read_parquet(out)

    # Results of a table kept elsewhere are not those of the project.
    run("1", "other")
    assert (tmp_path / "RESULTS.md").read_text() == MARKED
    fits.clear()

    assert run("1")["c2st"].tolist() == [0.5]
    again = run("1,2")
    assert again["observation"].tolist() == [1, 2]
    assert again["c2st"].tolist() == [0.5, 1.0]
    assert run("2").equals(again)
    assert fits == [50, 50]
    assert "two_moons | 50 | network | 1; 2" in (tmp_path / "RESULTS.md").read_text()
