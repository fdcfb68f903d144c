"""What a simulator is: any callable `theta (d,) -> x`, named so that another process can build it."""

from __future__ import annotations

__all__ = ["Seeds", "Simulator", "SimulatorSpec"]

import inspect
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

import numpy as np

from .command import CommandSpec
from .errors import SimulatorError
from .loading import load_object
from .outcome import Array, Outcome, Outcomes, Status, flatten_output, not_finite
from .processes import end_fork
from .program_run import ProgramError

Seeds = np.ndarray[Any, np.dtype[np.int64]]


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
        path: Folders that are searched for imports after all others: for what a pickled callable imports by name.
    """

    function: str | None = None
    task: str | None = None
    pickled: bytes | None = None
    batched: bool = False
    timeout: float | None = None
    grace: float = 2.0
    folder: str | None = None
    command: CommandSpec | None = None
    path: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.command, dict):  # As it arrives in another process.
            object.__setattr__(self, "command", CommandSpec(**self.command))
        object.__setattr__(self, "path", tuple(self.path))

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
            function = load_object(self.function, keep=True)
        else:
            import cloudpickle

            sys.path += [folder for folder in self.path if folder not in sys.path]
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

    def run_batch(self, theta: Array, seeds: list[int]) -> Outcomes:
        """Simulates `theta` `(n, d)`; one call of the user's code if batched, else n calls."""
        return Outcomes.concatenate(list(self.stream(theta, seeds, math.inf, np.empty(2))))

    def stream(self, theta: Array, seeds: list[int], every: float, progress: Array) -> Iterator[Outcomes]:
        """The same in parts: before a simulation starts, what ended `every` seconds ago or earlier has been yielded.

        `progress` `(2,)` tells whoever shares it which row is being simulated, and since when (`perf_counter`).
        """
        if self.batched:
            yield self._run_batch(theta, seeds)
            return
        clock = time.perf_counter
        part, last = _Part(len(theta), time.time() - clock()), clock()
        for i, (row, seed) in enumerate(zip(theta, seeds, strict=True)):
            begin = clock()
            if begin - last >= every and len(part):
                yield part.finish()
                part, last = _Part(len(theta), time.time() - clock()), clock()
                begin = last
            progress[0], progress[1] = i, begin
            try:
                part.add(begin, self._call(row, seed), clock)
            except ProgramError as error:
                part.fail(begin, error.status, str(error), clock())
            except MemoryError as error:
                part.fail(begin, Status.OUT_OF_MEMORY, _describe(error), clock())
            except (Exception, SystemExit) as error:
                part.fail(begin, Status.RAISED, _describe(error), clock())
        yield part.finish()

    def _run_batch(self, theta: Array, seeds: list[int]) -> Outcomes:
        started, begin = time.time(), time.perf_counter()
        n = len(theta)
        try:
            x = _rows(self._call(theta, seeds[0]), n)
        except _WrongLengthError as error:
            return Outcomes.failed(n, Status.WRONG_SHAPE, str(error), started, (time.perf_counter() - begin) / n)
        except MemoryError as error:
            seconds = (time.perf_counter() - begin) / n
            return Outcomes.failed(n, Status.OUT_OF_MEMORY, _describe(error), started, seconds)
        except (Exception, SystemExit) as error:
            return Outcomes.failed(n, Status.RAISED, _describe(error), started, (time.perf_counter() - begin) / n)
        seconds = (time.perf_counter() - begin) / n
        if isinstance(x, np.ndarray):
            lengths = np.full(n, x.shape[1], dtype=np.int64)
            code = np.full(n, Status.OK.code, dtype=np.uint8)
            whole = Outcomes(code, lengths, x.ravel(), np.full(n, started), np.full(n, seconds), {})
            return _checked(whole)
        return Outcomes.from_rows([Outcome(*flatten_output(row), started, seconds) for row in x])

    def _call(self, theta: Array, seed: int) -> Any:
        # Simulators that draw from the global generators are reproducible from the row's seed as well.
        random.seed(seed)
        np.random.seed(seed % 2**32)
        if "torch" in sys.modules:
            sys.modules["torch"].manual_seed(seed)
        else:
            _torch_to_come.seed = seed
            if _torch_to_come not in sys.meta_path:
                sys.meta_path.insert(0, _torch_to_come)
        owner = os.getpid()
        try:
            return self.function(theta, seed=seed) if self.takes_seed else self.function(theta)
        finally:
            end_fork(owner)


class _TorchToCome(MetaPathFinder):
    """Seeds torch as soon as it is imported: a simulator may do so in its first call, and draw from it at once."""

    seed = 0

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path) if fullname == "torch" else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_seed(module: Any) -> None:
                execute(module)
                module.manual_seed(self.seed)

            spec.loader.exec_module = execute_and_seed  # type: ignore[method-assign]
        return spec


_torch_to_come = _TorchToCome()


class _Part:
    """Outcomes of single calls while they come, at well under a microsecond each.

    Arguments:
        n: How many there may be.
        offset: Unix time minus the clock's.
    """

    def __init__(self, n: int, offset: float) -> None:
        self._n, self._offset = n, offset
        self._begins: list[float] = []
        self._ends: list[float] = []
        self._lengths: list[int] = []
        self._failures: list[tuple[int, Status, str]] = []
        self._values: Array = np.empty(64)
        self._used = 0

    def __len__(self) -> int:
        return len(self._begins)

    def add(self, begin: float, result: Any, clock: Callable[[], float]) -> None:
        """What a call returned."""
        end = clock()
        if type(result) is not np.ndarray or result.ndim != 1 or result.dtype != np.float64 or not result.size:
            status, x, reason = flatten_output(result)
            if x is None:
                return self.fail(begin, status, reason, end)
            result = x
        # At once, for the simulator may use its array again.
        last = self._used + len(result)
        if last > len(self._values):
            self._values = np.concatenate([self._values, np.empty(max(len(self._values), len(result) * 64))])
        self._values[self._used : last] = result
        self._used = last
        self._append(begin, end, len(result))

    def fail(self, begin: float, status: Status, reason: str, end: float) -> None:
        """A call that has no result."""
        self._failures.append((len(self._begins), status, reason))
        self._append(begin, end, -1)

    def finish(self) -> Outcomes:
        """The columns."""
        status = np.full(len(self), Status.OK.code, dtype=np.uint8)
        for row, failure, _ in self._failures:
            status[row] = failure.code
        begins = np.array(self._begins)
        return _checked(
            Outcomes(
                status,
                np.array(self._lengths, dtype=np.int64),
                self._values[: self._used],
                begins + self._offset,
                np.array(self._ends) - begins,
                {row: reason for row, _, reason in self._failures},
            )
        )

    def _append(self, begin: float, end: float, length: int) -> None:
        self._begins.append(begin)
        self._ends.append(end)
        self._lengths.append(length)


def _checked(outcomes: Outcomes) -> Outcomes:
    """Results with NaN or infinite values become failures."""
    finite = np.isfinite(outcomes.values)
    if finite.all():
        return outcomes
    owner = np.repeat(np.arange(len(outcomes)), outcomes.lengths.clip(0))
    bad = np.bincount(owner[~finite], minlength=len(outcomes))
    rows = bad > 0
    reasons = {int(i): not_finite(int(bad[i]), int(outcomes.lengths[i])) for i in np.flatnonzero(rows)}
    return outcomes.failing(rows, Status.NOT_FINITE, reasons)


class _WrongLengthError(Exception):
    """A batched simulator returned another number of results than it got parameters."""


def _rows(result: Any, n: int) -> Array | list[Any]:
    """The rows of a batched result, `(n, k)` where it is one array of numbers."""
    if hasattr(result, "detach"):
        result = result.detach().cpu().numpy()
    plain = type(result) is np.ndarray and result.ndim > 0 and result.dtype.kind in "fiub"
    if plain and len(result) == n and result.size:
        return np.ascontiguousarray(result.reshape(n, -1), dtype=np.float64)
    return _split(result, n)


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
