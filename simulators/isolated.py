"""A simulator in a process of its own: may hang, crash or leak without harm to whoever called it."""

from __future__ import annotations

__all__ = ["IsolatedSimulator"]

import contextlib
import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Self

import numpy as np

from .child import Child
from .errors import SimulatorError
from .memory import resident_bytes
from .outcome import Array, Outcome, Outcomes
from .simulator import Seeds, SimulatorSpec

#: Before another start is tried, where one has succeeded before: a full disk or too many processes may pass.
_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)


class IsolatedSimulator:
    """Runs simulations in a child process and process group, with a deadline for each.

    The child is started on first use and kept between calls. It is replaced after a crash or a deadline: its
    whole process group gets SIGTERM, after `spec.grace` seconds SIGKILL, grandchildren included, even those that
    left the group.

    Arguments:
        spec: The simulator.
        environment: Variables that the child has beside ours.

    Raises:
        SimulatorError: On first use, if the simulator cannot be imported; later, if it cannot be any more.
    """

    def __init__(self, spec: SimulatorSpec, environment: Mapping[str, str] | None = None) -> None:
        self.spec, self.environment = spec, dict(environment or {})
        self._child: Child | None = None
        self._has_started = False
        self._since = math.inf

    def start(self) -> None:
        """Starts the child and waits until the simulator is imported.

        Once that has succeeded, a failure is tried again for a while: what it lacks may come back.
        """
        if self._child is not None and not self._child.idle:
            # It died since (out of memory, say), or spoke unasked: the next simulation is not to blame.
            self.close()
        if self._child is None:
            self._since = math.inf
            self._child = self._launch()
            self._has_started = True
            self._since = time.monotonic()

    @property
    def ready_since(self) -> float:
        """When the child had started (`time.monotonic`); infinite while it starts, which has a limit of its own."""
        return self._since

    def _launch(self) -> Child:
        for pause in _PAUSES if self._has_started else ():
            with contextlib.suppress(SimulatorError, OSError):
                return Child(self.spec, self.environment)
            time.sleep(pause)
        return Child(self.spec, self.environment)

    def run(self, theta: Array, seeds: Seeds, memory: int | None = None) -> Outcomes:
        """Simulates `theta` `(n, d)` with `seeds` `(n,)`; always one outcome a row, in order.

        Arguments:
            theta, seeds: See above.
            memory: Bytes that the child with all that it started may occupy.
        """
        theta = np.ascontiguousarray(theta, dtype=np.float64)
        parts: list[Outcomes] = []
        done = 0
        while done < len(theta):
            self.start()
            assert self._child is not None
            try:
                received, failure, culprit = self._child.simulate(theta[done:], seeds[done:], memory)
            except BaseException:
                self.close()  # Interrupted: what the child still answers would be taken for the next results.
                raise
            parts += received
            if failure is not None:
                self.close()
                told = done + sum(map(len, received))
                parts.append(self._settle(theta[told:], seeds[told:], memory, failure, culprit))
            done = sum(map(len, parts))
        return Outcomes.concatenate(parts)

    def _settle(
        self, theta: Array, seeds: Seeds, memory: int | None, failure: Outcome, culprit: int | None
    ) -> Outcomes:
        """Outcomes of the first rows of which the child that failed had told nothing.

        What had ended, but was not told yet, is simulated again; it took a moment only. If the child died between two
        simulations, each of these is tried alone, to know which is to blame.
        """
        if self.spec.batched:
            # The call's time is shared: it was spent once.
            each = dataclasses.replace(failure, seconds=failure.seconds / len(theta))
            return Outcomes.from_rows([each] * len(theta))
        if culprit is None and len(theta) > 1:
            return Outcomes.concatenate(
                [self.run(theta[i : i + 1], seeds[i : i + 1], memory) for i in range(len(theta))]
            )
        ended = culprit or 0
        return Outcomes.concatenate([self.run(theta[:ended], seeds[:ended], memory), Outcomes.from_rows([failure])])

    @property
    def resident(self) -> int:
        """Bytes of memory that the child and what it started occupy; 0 where that is unknown."""
        child = self._child
        return 0 if child is None else resident_bytes(child.process.pid)

    def end_for_memory(self, reason: str) -> None:
        """Ends the simulation that is running, if any, for want of memory; may be called from another thread."""
        child = self._child
        if child is not None:
            child.unwanted = reason

    def close(self) -> None:
        """Ends the child and everything that it started."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
