"""What the pool needs of whatever runs simulations: a Ray cluster, or a clock that only counts (see `benchmarks`)."""

from __future__ import annotations

__all__ = ["Blame", "Ended", "Executor", "Lost"]

import enum
from dataclasses import dataclass
from typing import Protocol

from simulators.outcome import Array, Outcomes
from simulators.simulator import Seeds


@dataclass(frozen=True, eq=False)
class Ended:
    """A task that came back.

    Attributes:
        task: Its number.
        outcomes: One for each row.
        worker: Where it ran, `host:pid`.
        seconds: From its start to its end, everything included.
    """

    task: int
    outcomes: Outcomes
    worker: str
    seconds: float


class Blame(enum.Enum):
    """Whether a lost task may have brought its worker down."""

    NONE = "it had not started, or its whole node is gone"
    SUSPECT = "it was one of several that ran there"
    PROVEN = "it ran there alone"


@dataclass(frozen=True)
class Lost:
    """A task that will not come back.

    Attributes:
        task: Its number.
        started: Whether it had been started.
        blame: See `Blame`.
        reason: What happened, for a person to read.
    """

    task: int
    started: bool
    blame: Blame
    reason: str


class Executor(Protocol):
    """Runs tasks on slots; each is reported once, as `Ended` or `Lost`."""

    @property
    def slots(self) -> int:
        """Simulations that can run at once, as things are now; at least 1."""

    @property
    def widest(self) -> int:
        """The most slots that one task can have."""

    def room(self, seconds: float | None) -> int:
        """How many more tasks of about `seconds` keep all slots busy until the next call."""

    def warm_up(self, timeout: float) -> bool:
        """Waits up to `timeout` seconds; whether simulations can now start without delay on all slots that there are.

        Raises:
            SimulatorError: The simulator cannot be imported on any worker.
            ConfigError: No simulation can ever run here.
        """

    def start(self, task: int, theta: Array, seeds: Seeds, share: int, alone: bool) -> None:
        """Hands a task over.

        Arguments:
            task: Its number.
            theta: `(n, d)`.
            seeds: `(n,)`.
            share: Slots that it occupies.
            alone: Whether nothing else may run on its worker meanwhile.
        """

    def wait(self, timeout: float) -> list[Ended | Lost]:
        """What has come to an end, waiting up to `timeout` seconds for the first.

        Raises:
            SimulatorError: The simulator cannot be imported on any worker.
        """

    def recall(self) -> None:
        """Lets nothing more start: tasks that have not come back from `wait` as lost, those that run go on."""

    def now(self) -> float:
        """Seconds on the clock that `wait` waits by."""

    def stop(self) -> None:
        """Ends everything that runs; nothing of it will be reported."""
