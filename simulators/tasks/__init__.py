"""Built-in models: the public benchmark of Lueckmann et al. (2021) and a stochastic weather model.

    >>> from simulators.tasks import get_task
    >>> task = get_task("two_moons")
    >>> x = task.simulate(task.prior.sample((100,)), seed=1)  # (100, 2)

A task's module is imported when the task is asked for: listing the names must not wait for torch.
"""

from __future__ import annotations

__all__ = ["Task", "get_task", "task_names"]

import importlib
from typing import TYPE_CHECKING, Any

from simulators.errors import ConfigError, nearest

if TYPE_CHECKING:
    from simulators.tasks.task import Task

_NAMES = (
    "gaussian_linear",
    "gaussian_linear_uniform",
    "gaussian_mixture",
    "lorenz96",
    "lotka_volterra",
    "sir",
    "slcp",
    "two_moons",
)


def task_names() -> tuple[str, ...]:
    """Names of all built-in tasks, in alphabetical order."""
    return _NAMES


def get_task(name: str) -> Task:
    """The built-in task of that name.

    Raises:
        ConfigError: There is no such task; the message names the nearest one.
    """
    if name not in _NAMES:
        raise ConfigError(f"there is no built-in task '{name}'; {nearest(name, _NAMES)}")
    task: Task = importlib.import_module(f"{__name__}.{name}").TASK
    return task


def __getattr__(name: str) -> Any:
    if name == "Task":
        return importlib.import_module(f"{__name__}.task").Task
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
