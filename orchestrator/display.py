"""The live progress display on a terminal; plain lines where there is none."""

from __future__ import annotations

__all__ = ["Display", "Progress"]

import math
import time
from dataclasses import dataclass

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.text import Text

_LINE_SECONDS = 10.0


@dataclass(frozen=True)
class Progress:
    """A moment of a campaign.

    Attributes:
        phase: What is going on, in words.
        total: Simulations of the budget, None if it is only limited by time.
        done: Simulations accounted for, failures included.
        failed: Failures among them.
        in_flight: Simulations under way.
        rate: Simulations a second, lately.
        training: What is being trained.
        loss: Its latest held-out loss in nats; NaN while nothing is trained.
        seconds_left: Estimate for the simulations, None if unknown.
    """

    phase: str
    total: int | None
    done: int
    failed: int
    in_flight: int
    rate: float
    training: str
    loss: float
    seconds_left: float | None

    def line(self) -> str:
        """One line for a person."""
        of = f"/{self.total}" if self.total is not None else ""
        loss = "" if math.isnan(self.loss) else f" · {self.training} loss {self.loss:.2f}"
        left = "" if self.seconds_left is None else f" · {_clock(self.seconds_left)} of simulating left"
        return (
            f"{self.phase}: {self.done}{of} simulations · {self.failed} failed · {self.in_flight} in flight · "
            f"{self.rate:.1f}/s{loss}{left}"
        )


class Display:
    """Shows `Progress`; use as a context manager.

    Arguments:
        console: Where to write.
        enabled: Whether to write at all.
    """

    def __init__(self, console: Console | None = None, enabled: bool = True) -> None:
        self.console, self.enabled = console or Console(stderr=True), enabled
        self._bar = Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
        )
        self._task = self._bar.add_task("starting", total=None)
        self._live: Live | None = None
        self._last_line = -math.inf

    def __enter__(self) -> Display:
        if self.enabled and self.console.is_terminal:
            self._live = Live(self._bar, console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, message: str) -> None:
        """A line that stays."""
        if self.enabled:
            self.console.print(message, highlight=False, markup=False)

    def show(self, progress: Progress) -> None:
        """Redraws the display, or writes a line every ten seconds where there is no terminal."""
        if not self.enabled:
            return
        if self._live is not None:
            self._bar.update(self._task, description=progress.phase, total=progress.total, completed=progress.done)
            self._live.update(Group(self._bar, Text(progress.line(), style="dim")))
        elif time.monotonic() - self._last_line > _LINE_SECONDS:
            self._last_line = time.monotonic()
            self.console.print(progress.line(), highlight=False, markup=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
