"""What a simulator is: any callable `theta (d,) -> x`, named so that another process can build it."""

from __future__ import annotations

__all__ = ["Simulator", "SimulatorSpec"]

import inspect
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .command import CommandSpec
from .errors import SimulatorError
from .loading import load_object
from .outcome import Array, Outcome, Status, flatten_output
from .program_run import ProgramError


@dataclass(frozen=True)
class SimulatorSpec:
    """How to obtain and call a simulator in any process.

    Attributes:
        function: `path/to/file.py:name` (absolute path) or `package.module:name`.
        task: Name of a built-in task, instead of `function`.
        command: An external program, instead of `function`.
        pickled: The callable itself in cloudpickle's form, for callables that exist only in a running
            program; it travels between the processes of one campaign and is never saved.
        batched: Whether the callable takes `(n, d)` and returns `(n, ...)`.
        timeout: Seconds that one simulation may take, or None.
        grace: Seconds between asking a late simulation to stop (SIGTERM) and killing it.
        folder: Working directory of the simulations, where it exists.
    """

    function: str | None = None
    task: str | None = None
    pickled: bytes | None = None
    batched: bool = False
    timeout: float | None = None
    grace: float = 2.0
    folder: str | None = None
    command: CommandSpec | None = None

    def __post_init__(self) -> None:
        if isinstance(self.command, dict):  # As it arrives in another process.
            object.__setattr__(self, "command", CommandSpec(**self.command))

    def build(self) -> Simulator:
        """Imports the simulator.

        Raises:
            SimulatorError: It cannot be imported, or is not callable.
        """
        if self.task is not None:
            from .tasks import get_task

            return Simulator(_task_function(get_task(self.task)), batched=True)
        if self.command is not None:
            return Simulator(self.command.build())
        if self.function is not None:
            function = load_object(self.function)
        else:
            import cloudpickle

            function = cloudpickle.loads(self.pickled)
        if not callable(function):
            raise SimulatorError(f"expected a callable simulator at '{self.function}', got {type(function).__name__}")
        return Simulator(function, self.batched)


class Simulator:
    """A loaded simulator: calls the user's code and turns whatever happens into outcomes.

    Arguments:
        function: `theta (d,) -> x`, or `(n, d) -> (n, ...)` if `batched`; may take a keyword `seed`.
        batched: See above.
    """

    def __init__(self, function: Callable[..., Any], batched: bool = False) -> None:
        self.function, self.batched = function, batched
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):
            parameters = {}  # type: ignore[assignment]
        self.takes_seed = "seed" in parameters

    def run(self, theta: Array, seed: int) -> Outcome:
        """Simulates one parameter `(d,)`."""
        return self.run_batch(theta[None], [seed])[0]

    def run_batch(self, theta: Array, seeds: list[int]) -> list[Outcome]:
        """Simulates `(n, d)`; one call of the user's code if batched, else n calls."""
        if not self.batched:
            return [self._guarded(t, s) for t, s in zip(theta, seeds, strict=True)]
        started, begin = time.time(), time.perf_counter()
        n = len(theta)
        ends: list[tuple[Status, Array | None, str]]
        try:
            ends = [flatten_output(row) for row in _split(self._call(theta, seeds[0]), n)]
        except _WrongLengthError as error:
            ends = [(Status.WRONG_SHAPE, None, str(error))] * n
        except (Exception, SystemExit) as error:
            ends = [(Status.RAISED, None, _describe(error))] * n
        seconds = (time.perf_counter() - begin) / n
        return [Outcome(*end, started, seconds) for end in ends]

    def _guarded(self, theta: Array, seed: int) -> Outcome:
        started, begin = time.time(), time.perf_counter()
        try:
            status, x, reason = flatten_output(self._call(theta, seed))
        except ProgramError as error:
            status, x, reason = error.status, None, str(error)
        except (Exception, SystemExit) as error:
            status, x, reason = Status.RAISED, None, _describe(error)
        return Outcome(status, x, reason, started, time.perf_counter() - begin)

    def _call(self, theta: Array, seed: int) -> Any:
        # Simulators that draw from the global generators are reproducible from the row's seed as well.
        random.seed(seed)
        np.random.seed(seed % 2**32)
        if "torch" in sys.modules:
            sys.modules["torch"].manual_seed(seed)
        return self.function(theta, seed=seed) if self.takes_seed else self.function(theta)


class _WrongLengthError(Exception):
    """A batched simulator returned another number of results than it got parameters."""


def _split(result: Any, n: int) -> list[Any]:
    """The rows of a batched result; raises `_WrongLengthError` if there are not `n`."""
    if isinstance(result, dict):
        columns = {key: _split(value, n) for key, value in result.items()}
        return [{key: column[i] for key, column in columns.items()} for i in range(n)]
    if result is None:
        return [None] * n
    try:
        returned = f"{len(result)} results"
    except TypeError:
        returned = f"one {type(result).__name__}"
    if returned != f"{n} results":
        raise _WrongLengthError(f"a batched simulator got {n} parameters, but returned {returned}")
    return list(result)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def _task_function(task: Any) -> Callable[..., Any]:
    import torch

    def simulate(theta: Array, seed: int) -> Any:
        return task.simulate(torch.as_tensor(theta, dtype=torch.float32), seed=seed)

    return simulate
