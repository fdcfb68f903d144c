"""Simulators in this process: whatever user code returns or raises becomes one outcome per parameter."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped, unused-ignore]
import numpy as np
import pytest
import torch

from simulators.errors import SimulatorError
from simulators.outcome import Status, flatten_output
from simulators.simulator import Simulator, SimulatorSpec

THETA = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
SEEDS = [10, 11, 12]

VECTORS: dict[str, tuple[Any, list[float]]] = {
    "float": (1.5, [1.5]),
    "int": (3, [3.0]),
    "bool": (True, [1.0]),
    "numpy scalar": (np.float32(0.5), [0.5]),
    "list": ([1, 2.5], [1.0, 2.5]),
    "tuple": ((1, 2), [1.0, 2.0]),
    "nested list": ([[1, 2], [3, 4]], [1.0, 2.0, 3.0, 4.0]),
    "array": (np.arange(4, dtype=np.int16).reshape(2, 2), [0.0, 1.0, 2.0, 3.0]),
    "0-d array": (np.array(2.0), [2.0]),
    "masked array": (np.ma.masked_array([1, 2], mask=False), [1.0, 2.0]),
    "torch": (torch.tensor([1.0, 2.0]), [1.0, 2.0]),
    "torch with a graph": (torch.tensor([1.0, 2.0], requires_grad=True), [1.0, 2.0]),
    "list of tensors": ([torch.tensor(1.0), torch.tensor(2.0)], [1.0, 2.0]),
    "dict in its order": ({"b": [1, 2], "a": torch.tensor(3.0), "c": np.eye(1)}, [1.0, 2.0, 3.0, 1.0]),
}

FAILURES: dict[str, tuple[Any, Status, str]] = {
    "nan": ([1.0, np.nan, 3.0], Status.NOT_FINITE, "1 of 3 values"),
    "infinite": (np.array([np.inf, -np.inf]), Status.NOT_FINITE, "2 of 2 values"),
    "None": (None, Status.WRONG_TYPE, "returned None"),
    "object": (object(), Status.WRONG_TYPE, "got object"),
    "text": ("1.0", Status.WRONG_TYPE, "got str"),
    "complex": (np.array([1j]), Status.WRONG_TYPE, "complex128"),
    "dates": (np.array(["2020-01-01"], dtype="datetime64[D]"), Status.WRONG_TYPE, "datetime64"),
    "ragged": ([[1.0], [1.0, 2.0]], Status.WRONG_TYPE, "inhomogeneous"),
    "None in a list": ([1.0, None], Status.WRONG_TYPE, "object"),
    "None in a dict": ({"a": 1.0, "b": None}, Status.WRONG_TYPE, "got dict"),
    "masked": (np.ma.masked_array([1.0, 2.0], mask=[False, True]), Status.NOT_FINITE, "1 of 2 values"),
    "empty list": ([], Status.WRONG_SHAPE, "empty"),
    "empty array": (np.zeros((0, 3)), Status.WRONG_SHAPE, "empty"),
}


@pytest.mark.parametrize(("result", "expected"), VECTORS.values(), ids=VECTORS)
def test_numbers_of_any_kind_become_a_vector(result: Any, expected: list[float]) -> None:
    outcome = Simulator(lambda _: result).run(THETA[0], seed=0)
    assert outcome.status is Status.OK
    assert outcome.reason == ""
    assert outcome.x is not None
    assert outcome.x.dtype == np.float64
    assert outcome.x.tolist() == expected


@pytest.mark.parametrize(("result", "status", "reason"), FAILURES.values(), ids=FAILURES)
def test_anything_else_is_a_failure_with_its_reason(result: Any, status: Status, reason: str) -> None:
    outcome = Simulator(lambda _: result).run(THETA[0], seed=0)
    assert outcome.status is status
    assert outcome.x is None
    assert reason in outcome.reason


def test_the_result_is_a_copy() -> None:
    theta = THETA[0].copy()
    _, x, _ = flatten_output(theta)
    theta[:] = 0.0
    assert x is not None
    assert x.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("error", [ValueError("no\nroot"), KeyError("rate"), SystemExit("usage"), AssertionError()])
def test_what_the_simulator_raises_is_the_reason(error: BaseException, batched: bool) -> None:
    def simulate(theta: np.ndarray) -> None:
        raise error

    outcomes = Simulator(simulate, batched).run_batch(THETA, SEEDS)
    assert [o.status for o in outcomes] == [Status.RAISED] * 3
    assert {o.reason for o in outcomes} == {f"{type(error).__name__}: {error}"}


@pytest.mark.parametrize("batched", [False, True])
def test_pythons_memory_error_is_a_lack_of_memory(batched: bool) -> None:
    def simulate(theta: np.ndarray) -> None:
        raise MemoryError("no room")

    outcomes = Simulator(simulate, batched).run_batch(THETA, SEEDS)
    assert [o.status for o in outcomes] == [Status.OUT_OF_MEMORY] * 3


def test_a_long_error_is_cut() -> None:
    def simulate(theta: np.ndarray) -> None:
        raise ValueError("x" * 100_000)

    assert len(Simulator(simulate).run(THETA[0], seed=0).reason) == 500


def test_keyboard_interrupt_is_no_outcome() -> None:
    def simulate(theta: np.ndarray) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Simulator(simulate).run(THETA[0], seed=0)


def test_one_failure_leaves_the_others_alone() -> None:
    outcomes = Simulator(lambda theta: 1.0 / float(theta[0] != 3.0)).run_batch(THETA, SEEDS)
    assert [o.status for o in outcomes] == [Status.OK, Status.RAISED, Status.OK]


def test_a_parameter_is_a_vector_and_a_batch_a_matrix() -> None:
    shapes: list[tuple[int, ...]] = []

    def simulate(theta: np.ndarray) -> np.ndarray:
        shapes.append(theta.shape)
        return theta

    Simulator(simulate).run_batch(THETA, SEEDS)
    Simulator(simulate, batched=True).run_batch(THETA, SEEDS)
    Simulator(simulate, batched=True).run(THETA[0], seed=0)
    assert shapes == [(2,), (2,), (2,), (3, 2), (1, 2)]


class TestBatched:
    @pytest.mark.parametrize(
        "simulate",
        [
            lambda theta: theta,
            lambda theta: torch.as_tensor(theta),
            lambda theta: theta.tolist(),
            lambda theta: theta.reshape(-1, 2, 1),
            lambda theta: {"a": theta[:, 0], "b": torch.as_tensor(theta[:, 1:])},
        ],
        ids=["array", "torch", "list", "3-d", "dict"],
    )
    def test_rows_are_outcomes_in_order(self, simulate: Callable[..., Any]) -> None:
        outcomes = Simulator(simulate, batched=True).run_batch(THETA, SEEDS)
        assert [o.status for o in outcomes] == [Status.OK] * 3
        np.testing.assert_array_equal([o.x for o in outcomes], THETA)

    def test_each_row_has_its_own_status(self) -> None:
        rows = [[1.0, 2.0], None, [np.nan, 1.0]]
        outcomes = Simulator(lambda _: rows, batched=True).run_batch(THETA, SEEDS)
        assert [o.status for o in outcomes] == [Status.OK, Status.WRONG_TYPE, Status.NOT_FINITE]

    @pytest.mark.parametrize(
        ("result", "returned"),
        [
            (np.zeros((2, 5)), "returned 2 results"),
            ([], "returned 0 results"),
            ({"a": np.zeros(3), "b": np.zeros(4)}, "returned 4 results"),
            (1.5, "returned one float"),
            (np.array(1.5), "returned one ndarray"),
        ],
    )
    def test_another_number_of_results_is_a_wrong_shape(self, result: Any, returned: str) -> None:
        outcomes = Simulator(lambda _: result, batched=True).run_batch(THETA, SEEDS)
        assert [o.status for o in outcomes] == [Status.WRONG_SHAPE] * 3
        assert outcomes[0].reason.endswith(f"got 3 parameters, but {returned}")

    def test_none_for_the_whole_batch_is_none_for_each(self) -> None:
        outcomes = Simulator(lambda _: None, batched=True).run_batch(THETA, SEEDS)
        assert [o.status for o in outcomes] == [Status.WRONG_TYPE] * 3

    def test_results_that_cannot_become_numbers_are_failures(self) -> None:
        lazy = torch.tensor([[1j], [1j], [1j]]).conj()  # Its .numpy() raises a RuntimeError.
        outcomes = Simulator(lambda _: lazy, batched=True).run_batch(THETA, SEEDS)
        assert [o.status for o in outcomes] == [Status.RAISED] * 3


def with_seed(theta: np.ndarray, seed: int) -> int:
    return seed


def with_optional_seed(theta: np.ndarray, *, seed: int = -1) -> int:
    return seed


class CallableWithSeed:
    def __call__(self, theta: np.ndarray, seed: int) -> int:
        return seed


def without_seed(theta: np.ndarray, scale: int = -1) -> int:
    return scale


class TestSeed:
    @pytest.mark.parametrize(
        "simulate", [with_seed, with_optional_seed, CallableWithSeed(), functools.partial(with_seed)]
    )
    def test_passed_where_it_is_taken(self, simulate: Callable[..., Any]) -> None:
        assert [o.x for o in Simulator(simulate).run_batch(THETA, SEEDS)] == [[10.0], [11.0], [12.0]]

    @pytest.mark.parametrize("simulate", [without_seed, np.sum], ids=["function", "numpy"])
    def test_not_passed_where_it_is_not(self, simulate: Callable[..., Any]) -> None:
        assert Simulator(simulate).run(THETA[0], seed=3).status is Status.OK

    def test_callables_without_a_signature_are_called_without_seed(self) -> None:
        assert Simulator(max).run(THETA[0], seed=3).x == [2.0]

    @pytest.mark.parametrize(
        "draw",
        [lambda _: random.random(), lambda _: np.random.normal(), lambda _: torch.randn(())],
        ids=["random", "numpy", "torch"],
    )
    @pytest.mark.parametrize("seed", [0, 1, 2**40 + 1])
    def test_decides_what_global_generators_draw(self, draw: Callable[..., Any], seed: int) -> None:
        simulator = Simulator(draw)
        first, other = simulator.run(THETA[0], seed).x, simulator.run(THETA[0], seed + 1).x
        assert first == simulator.run(THETA[0], seed).x
        assert first != other

    def test_results_do_not_depend_on_what_ran_before(self) -> None:
        simulator = Simulator(lambda _: np.random.normal())
        together = [o.x for o in simulator.run_batch(THETA, SEEDS)]
        assert simulator.run(THETA[2], SEEDS[2]).x == together[2]


class TestSpec:
    def test_builds_a_function_from_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "model.py").write_text("def simulate(theta, seed):\n    return theta * seed\n")
        simulator = SimulatorSpec(function=f"{tmp_path}/model.py:simulate").build()
        assert [o.x.tolist() for o in simulator.run_batch(THETA[:2], [1, 2]) if o.x is not None] == [
            [1, 2],
            [6, 8],
        ]

    def test_builds_a_closure_from_its_pickle(self) -> None:
        scale = 3.0
        simulator = SimulatorSpec(pickled=cloudpickle.dumps(lambda theta: scale * theta), batched=True).build()
        np.testing.assert_array_equal([o.x for o in simulator.run_batch(THETA, SEEDS)], 3.0 * THETA)

    def test_builds_a_task_whose_seed_decides(self) -> None:
        simulator = SimulatorSpec(task="two_moons").build()
        first, again = simulator.run_batch(THETA, SEEDS), simulator.run_batch(THETA, SEEDS)
        assert [o.status for o in first] == [Status.OK] * 3
        np.testing.assert_array_equal([o.x for o in first], [o.x for o in again])

    def test_refuses_what_cannot_be_called(self, tmp_path: Path) -> None:
        (tmp_path / "model.py").write_text("simulate = 3\n")
        with pytest.raises(SimulatorError, match=r"callable simulator at '.*model\.py:simulate', got int"):
            SimulatorSpec(function=f"{tmp_path}/model.py:simulate").build()

    def test_is_a_key(self) -> None:
        assert SimulatorSpec(pickled=b"a", timeout=1.0) == SimulatorSpec(pickled=b"a", timeout=1.0)
        assert len({SimulatorSpec(pickled=b"a"), SimulatorSpec(pickled=b"b")}) == 2
