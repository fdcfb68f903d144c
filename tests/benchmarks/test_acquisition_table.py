"""The acquisition benchmark's table: arms beside each other, and beside ten times as many prior draws."""

from __future__ import annotations

import pandas as pd

from benchmarks.acquisition_table import markdown


def rows(arm: str, c2st: float, observations: tuple[int, ...] = (1, 2), seed: int = 1) -> pd.DataFrame:
    cells = [{"observation": o, "beta": b, "c2st": c2st + 0.1 * o} for o in observations for b in (0.5, 1.0)]
    return pd.DataFrame(cells).assign(arm=arm, task="sir", budget=1000, seed=seed)


def amortized() -> pd.DataFrame:
    return rows("", 0.4, (1, 2, 3)).drop(columns="arm").assign(method="ours", budget=10_000)


def lines(table: pd.DataFrame) -> list[str]:
    return markdown(table, amortized()).splitlines()[2:]


def test_the_median_of_the_seeds_and_which_observations_they_saw() -> None:
    table = pd.concat([rows("default", 0.3), rows("default", 0.5, seed=2), rows("default", 0.6, (1,), seed=3)])
    ours, many = lines(table)
    said = "1: 1, 2; 2: 1, 2; 3: 1 | 0.650 | **0.650** | 0.450 to 0.700 | 0.52 |"
    assert ours == f"| sir | 1,000 | **default acquisition** | {said}"
    # Of the observations that the campaigns saw only.
    assert many == "| sir | 1,000 | prior draws, ten times as many | 1: 1, 2 | 0.550 | **0.550** |  |  |"


def test_refined_draws_have_a_line_of_their_own() -> None:
    table = pd.concat([rows("default", 0.3).assign(refined=0.5), rows("prior", 0.7)])
    ours, refined, prior, _ = lines(table)
    assert "**0.450** |  | 0.52 |" in ours
    assert "the same, refined | 1: 1, 2 | 0.500 | **0.500** |  | 0.52 |" in refined
    assert "prior draws | 1: 1, 2 | 0.850 | **0.850** |  |  |" in prior


def test_what_an_arm_does_not_know_stays_empty() -> None:
    tsnpe = rows("tsnpe", 0.6)
    *_, line, _ = lines(pd.concat([rows("default", 0.3), tsnpe[tsnpe["beta"] == 1.0]]))
    assert line == "| sir | 1,000 | `sbi` TSNPE, four rounds | 1: 1, 2 |  | **0.750** |  |  |"
