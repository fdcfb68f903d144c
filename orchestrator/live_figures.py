"""Figures of a campaign that is still running, drawn from its run directory by the process that talks to MLflow."""

from __future__ import annotations

__all__ = ["draw", "drawn"]

from pathlib import Path

from matplotlib.figure import Figure

from .rendering import png
from .run_directory import RunDirectory
from .spending_report import COLUMNS, busy_times, read_history, simulated, spending_figures


def draw(directory: Path, folder: Path, step: int) -> None:
    """Draws the campaign as it is into `folder/figures`, under the number of its simulations."""
    target = folder / "figures"
    target.mkdir(exist_ok=True)
    run = RunDirectory(directory)
    table = run.store().read(COLUMNS)
    times = busy_times(simulated(table))
    for figure in spending_figures(table, run.records()["names"], read_history(run), times):
        assert isinstance(figure.image, Figure)
        (target / f"{figure.name}-{step:09d}.png").write_bytes(png(figure.image, 80))


def drawn(folder: Path, step: int) -> dict[str, Path]:
    """What was drawn at that number of simulations, by name."""
    suffix = f"-{step:09d}.png"
    return {path.name.removesuffix(suffix): path for path in sorted((folder / "figures").glob(f"*{suffix}"))}
