"""Calls that do not come back hold up nobody for long."""

from __future__ import annotations

import threading

import pytest
from waiting import wait_until

from orchestrator import ray_calls
from orchestrator.ray_calls import NoAnswerError, answered, within


def test_an_answer_is_handed_on_and_so_is_an_error() -> None:
    assert answered(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        answered(lambda: 1 / 0)
    with pytest.raises(TimeoutError, match="its own"):
        answered(lambda: (_ for _ in ()).throw(TimeoutError("its own")))
    assert answered(lambda: 4) == 4


def test_while_one_call_hangs_no_other_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_calls, "_ANSWER_SECONDS", 0.0)
    hanging, calls = threading.Event(), []
    with pytest.raises(NoAnswerError, match="did not answer"):
        answered(hanging.wait)
    with pytest.raises(NoAnswerError, match="earlier call"):
        answered(lambda: calls.append(1))
    assert not calls
    assert within(60.0, lambda: 5) == 5
    hanging.set()
    wait_until(lambda: not ray_calls._under_way.locked())
    monkeypatch.setattr(ray_calls, "_ANSWER_SECONDS", 60.0)
    assert answered(lambda: 6) == 6
