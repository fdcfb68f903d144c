"""Calls of Ray that get a few seconds: where Ray is gone they take a minute, and then Ray ends this program.

As when all processes of a campaign are asked to end at once, by a batch system or by systemd.
"""

from __future__ import annotations

__all__ = ["NoAnswerError", "answered", "within"]

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from ray.exceptions import RayError

_ANSWER_SECONDS = 5.0

Answer = TypeVar("Answer")

#: Held by the call that has not come back.
_under_way = threading.Lock()


class NoAnswerError(RayError):  # type: ignore[misc, unused-ignore]
    """Ray did not answer in time; the call may still be under way."""


def answered(call: Callable[[], Answer]) -> Answer:
    """What `call` returns, or raises.

    Raises:
        NoAnswerError: It took too long; or an earlier one did and has not come back yet, so that nothing was tried.
    """
    if not _under_way.acquire(blocking=False):
        raise NoAnswerError("Ray still owes the answer to an earlier call")

    def guarded() -> Answer:
        try:
            return call()
        finally:
            _under_way.release()

    return within(_ANSWER_SECONDS, guarded)


def within(seconds: float, call: Callable[[], Answer]) -> Answer:
    """The same with a limit of its own, and whatever else is under way."""
    future: Future[Answer] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    # Not of a pool, whose threads would be waited for at exit.
    threading.Thread(target=work, name="ray-call", daemon=True).start()
    if not wait([future], seconds).done:
        raise NoAnswerError(f"Ray did not answer within {seconds:g} s")
    return future.result()
