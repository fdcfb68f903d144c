"""Warnings that many parts of a run have reason for, said once."""

from __future__ import annotations

__all__ = ["warned_once"]

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def warned_once() -> Iterator[None]:
    """While it lasts each warning's text is shown once.

    Python's own filter for that goes by the line of code, and forgets all whenever somebody changes the filters.
    """
    said: set[str] = set()
    show = warnings.showwarning

    def once(message: Warning | str, *rest: Any, **options: Any) -> None:
        if str(message) not in said:
            said.add(str(message))
            show(message, *rest, **options)

    warnings.showwarning = once
    try:
        yield
    finally:
        warnings.showwarning = show
