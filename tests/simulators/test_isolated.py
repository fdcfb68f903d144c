"""Isolation with real processes: whatever a simulator does, one outcome a row comes back, nothing is left."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped, unused-ignore]
import numpy as np
import pytest
from liveness import is_dead

import simulators
from simulators.child import Child
from simulators.errors import SimulatorError
from simulators.isolated import IsolatedSimulator
from simulators.outcome import Array, Outcome, Outcomes, Status
from simulators.simulator import SimulatorSpec
from simulators.wire import encode

#: Long enough for a simulation that does nothing, on a machine that does much else.
TIMEOUT = 1.0
#: A limit on waiting for what must happen; reaching it is a failure.
PATIENCE = 60.0
ROOT = Path(simulators.__path__[0]).parent

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def isolated(function: Callable[..., Any], **options: Any) -> IsolatedSimulator:
    return IsolatedSimulator(SimulatorSpec(pickled=cloudpickle.dumps(function), **{"timeout": PATIENCE, **options}))


def run(simulator: IsolatedSimulator, *theta: float) -> Outcomes:
    return simulator.run(np.array(theta).reshape(-1, 1), np.arange(len(theta), dtype=np.int64))


def values(outcomes: Sequence[Outcome]) -> list[float]:
    """The results, where each is one number."""
    assert [(o.status, o.reason) for o in outcomes] == [(Status.OK, "")] * len(outcomes)
    return [float(o.x[0]) for o in outcomes if o.x is not None]


def wait_for(condition: Callable[[], Any]) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)
    return value


def pids_in(file: Path, count: int) -> list[int]:
    """The `count` process ids that a simulator writes to `file`, one a line."""
    lines = wait_for(lambda: file.exists() and file.read_text().count("\n") == count and file.read_text())
    return [int(line) for line in lines.splitlines()]


def raises() -> None:
    raise ValueError("no root")


def exits_politely() -> None:
    sys.exit(3)


def is_interrupted() -> None:
    raise KeyboardInterrupt


def segfaults() -> None:
    ctypes.string_at(0)


def hangs() -> None:
    time.sleep(1000)


def hangs_holding_the_interpreter_lock() -> None:
    ctypes.PyDLL(None).sleep(1000)


def hangs_ignoring_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)


def talks_much() -> None:
    for _ in range(10):
        print("x" * 1_000_000)


def writes_to_a_closed_descriptor() -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    os.close(write_fd)
    os.write(write_fd, b"x")


def closes_standard_output() -> None:
    os.close(1)


def closes_every_descriptor() -> None:
    os.closerange(3, 256)


def closes_every_descriptor_and_hangs() -> None:
    os.closerange(3, 256)
    time.sleep(1000)


def dies_leaving_a_fork_with_its_pipes() -> None:
    if os.fork() == 0:
        time.sleep(1000)
    os._exit(4)


#: What a simulator does, the status, and a part of the reason.
FAULTS: list[tuple[Callable[[], Any], Status, str]] = [
    (raises, Status.RAISED, "ValueError: no root"),
    (lambda: input("your name? "), Status.RAISED, "EOFError"),
    (exits_politely, Status.RAISED, "SystemExit: 3"),
    (writes_to_a_closed_descriptor, Status.RAISED, "Bad file descriptor"),
    (lambda: np.nan, Status.NOT_FINITE, "1 of 1 values"),
    (lambda: None, Status.WRONG_TYPE, "returned None"),
    (list, Status.WRONG_SHAPE, "empty"),
    (talks_much, Status.WRONG_TYPE, "returned None"),
    (closes_standard_output, Status.WRONG_TYPE, "returned None"),
    (segfaults, Status.CRASHED, "killed by SIGSEGV"),
    (lambda: os.kill(os.getpid(), 40), Status.CRASHED, "killed by signal 40"),
    (is_interrupted, Status.CRASHED, "KeyboardInterrupt"),
    (lambda: os._exit(3), Status.CRASHED, "exit code 3"),
    (lambda: os._exit(0), Status.CRASHED, "exit code 0"),
    (closes_every_descriptor, Status.CRASHED, "Bad file descriptor"),
    (closes_every_descriptor_and_hangs, Status.CRASHED, "closed the pipe"),
    (dies_leaving_a_fork_with_its_pipes, Status.CRASHED, "exit code 4"),
    (hangs, Status.TIMEOUT, "timeout of 1 s"),
    (hangs_holding_the_interpreter_lock, Status.TIMEOUT, "timeout of 1 s"),
    (hangs_ignoring_sigterm, Status.TIMEOUT, "timeout of 1 s"),
]
NAMES = [function.__name__.replace("<lambda>", f"lambda{i}") for i, (function, _, _) in enumerate(FAULTS)]


def pid_or_fault(theta: Array) -> Any:
    """The simulator's process id for -1, else what the fault of that number does."""
    return os.getpid() if theta[0] < 0 else FAULTS[int(theta[0])][0]()


@pytest.fixture(scope="module")
def faulty() -> Iterator[IsolatedSimulator]:
    with isolated(pid_or_fault, timeout=TIMEOUT, grace=0.2) as simulator:
        yield simulator


@pytest.mark.parametrize("number", range(len(FAULTS)), ids=NAMES)
def test_a_fault_is_one_outcome_and_harms_no_other(number: int, faulty: IsolatedSimulator) -> None:
    _, status, reason = FAULTS[number]
    (before,) = run(faulty, -1)
    fault, after = run(faulty, number, -1)
    assert fault.status is status
    assert reason in fault.reason
    assert fault.x is None
    (old,), (new,) = values([before]), values([after])
    if status in (Status.CRASHED, Status.TIMEOUT):
        assert old != new
        assert is_dead(int(old))
    else:
        assert old == new


def test_faults_in_a_row_keep_their_places(faulty: IsolatedSimulator) -> None:
    crash, error = NAMES.index("segfaults"), NAMES.index("raises")
    outcomes = run(faulty, crash, error, -1, crash, crash, -1, error)
    assert [o.status for o in outcomes] == ["crashed", "raised", "ok", "crashed", "crashed", "ok", "raised"]


def test_what_had_ended_when_the_process_died_is_told_all_the_same(faulty: IsolatedSimulator) -> None:
    crash = NAMES.index("segfaults")
    for outcomes in (run(faulty, *[-1] * 50, crash, -1), run(faulty, -1, -1, crash), run(faulty, crash, -1, -1)):
        assert sum(o.status is Status.CRASHED for o in outcomes) == 1
        assert all(o.x is not None for o in outcomes if o.status is not Status.CRASHED)


def test_no_parameters_no_outcomes(faulty: IsolatedSimulator) -> None:
    assert len(run(faulty)) == 0


def occupies(theta: Array) -> Any:
    """Fills as many megabytes as asked, then hangs."""
    held = np.ones(int(theta[0]) << 17)
    while theta[0] > 100:
        time.sleep(0.01)
    return held[:1]


def test_more_memory_than_allowed_is_its_own_failure() -> None:
    with isolated(occupies) as simulator:
        theta, seeds = np.array([[1.0], [400.0], [2.0]]), np.arange(3)
        outcomes = simulator.run(theta, seeds, memory=200_000_000)
        assert [o.status for o in outcomes] == ["ok", "out_of_memory", "ok"]
        assert "more than its memory of 200 MB" in outcomes[1].reason


def raises_memory_error() -> None:
    raise MemoryError("no room")


def test_running_out_of_memory_in_python_is_the_same_failure() -> None:
    with isolated(lambda theta: raises_memory_error()) as simulator:
        (outcome,) = run(simulator, 1)
        assert outcome.status is Status.OUT_OF_MEMORY
        assert "no room" in outcome.reason


def leaves_its_session(theta: Array) -> Any:
    """Starts a process that leaves the group, as MPI launchers do, and hangs."""
    process = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    Path(os.environ["TEST_FOLDER"], "pid").write_text(str(process.pid))
    while theta[0] > 0:
        time.sleep(0.01)
    return theta


def test_what_left_the_group_is_ended_too(tmp_path: Path) -> None:
    spec = SimulatorSpec(pickled=cloudpickle.dumps(leaves_its_session), timeout=TIMEOUT, grace=0.1)
    with IsolatedSimulator(spec, {"TEST_FOLDER": str(tmp_path)}) as simulator:
        (outcome,) = run(simulator, 1)
        assert outcome.status is Status.TIMEOUT
    assert is_dead(int((tmp_path / "pid").read_text()))


def prints_much(theta: Array) -> Any:
    for _ in range(200):
        os.write(1, b"x" * (1 << 19))
        time.sleep(0.005)
    return float(os.fstat(1).st_size)


def test_a_hundred_megabytes_of_output_do_not_stay_on_the_disk() -> None:
    with isolated(prints_much) as simulator:
        (outcome,) = run(simulator, 1)
        assert outcome.x is not None
        assert outcome.x[0] < 64e6


@pytest.mark.parametrize(
    ("fault", "status"),
    [(raises, Status.RAISED), (lambda: os._exit(1), Status.CRASHED), (hangs, Status.TIMEOUT)],
    ids=["raises", "crashes", "hangs"],
)
def test_a_batched_call_fails_as_a_whole(fault: Callable[[], Any], status: Status) -> None:
    def simulate(theta: Array) -> Any:
        return fault() if (theta < 0).any() else theta

    # The deadline of a batch is that of one simulation times their number.
    with isolated(simulate, batched=True, timeout=TIMEOUT / 3, grace=0.2) as simulator:
        assert [o.status for o in run(simulator, 1, -1, 3)] == [status] * 3
        assert values(run(simulator, 1, 2, 3, 4, 5, 6)) == [1, 2, 3, 4, 5, 6]


def test_the_time_of_a_batch_that_failed_is_counted_once() -> None:
    with isolated(lambda theta: hangs(), batched=True, timeout=TIMEOUT / 4, grace=0.1) as simulator:
        begin = time.monotonic()
        outcomes = run(simulator, 1, 2, 3, 4)
        assert [o.status for o in outcomes] == [Status.TIMEOUT] * 4
        assert TIMEOUT <= outcomes.seconds.sum() <= time.monotonic() - begin


class TestAFork:
    """A simulator that forks, and whose fork comes out of it as well."""

    @pytest.mark.parametrize("batched", [False, True])
    def test_does_not_answer_in_the_place_of_its_simulation(self, batched: bool) -> None:
        def simulate(theta: Array) -> Any:
            pid = os.fork()
            if pid == 0:
                if theta.flat[0] < 2:
                    sys.exit(7)
                if theta.flat[0] < 3:
                    raise ValueError("in the fork")
                return theta + 100
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            return np.column_stack([theta, np.full(len(theta), code)])

        with isolated(simulate, batched=batched, timeout=TIMEOUT * 5) as simulator:
            for rows in ([1, 2, 3], [1], [3], [2]):
                outcomes = run(simulator, *rows)
                assert [(o.status, o.reason) for o in outcomes] == [(Status.OK, "")] * len(rows)
                codes = {1: 7.0, 2: 1.0, 3: 0.0}
                expected = [(row, codes[rows[0] if batched else row]) for row in rows]
                assert [tuple(o.x) for o in outcomes if o.x is not None] == expected

    def test_does_not_answer_in_the_place_of_the_import(self, tmp_path: Path) -> None:
        (tmp_path / "forking.py").write_text(
            "import os\npid = os.fork()\nif pid == 0:\n    raise ValueError('in the fork')\nos.waitpid(pid, 0)\n"
            "def simulate(theta):\n    return theta\n"
        )
        with IsolatedSimulator(SimulatorSpec(function=f"{tmp_path / 'forking.py'}:simulate")) as simulator:
            assert values(run(simulator, 1, 2)) == [1, 2]


def forges(theta: Array) -> Any:
    """Writes an outcome of its own into the pipe: at once for theta = 1, for theta = 2 when a file says so."""
    frame = sys._getframe()
    while "sink" not in frame.f_locals:
        assert frame.f_back is not None
        frame = frame.f_back
    sink = frame.f_locals["sink"]

    def write() -> None:
        sink.write(encode(Outcomes.from_rows([Outcome(Status.OK, np.array([99.0]), "", 0.0, 0.0)]), 0))
        sink.flush()

    def write_later() -> None:
        wait_for(Path(os.environ["TEST_FOLDER"], "go").exists)
        write()

    if theta[0] == 1:
        write()
    elif theta[0] == 2:
        threading.Thread(target=write_later, daemon=True).start()
    return theta


def forges_or_hangs_once(theta: Array) -> Any:
    """Forges an outcome for theta = 1; for any other it hangs the first time, and has a result the second."""
    if theta[0] == 1:
        return forges(theta)
    begun = Path(os.environ["TEST_FOLDER"], "begun")
    if not begun.exists():
        begun.touch()
        time.sleep(PATIENCE)
    return theta


def test_who_began_before_a_wrong_answer_was_read_is_not_to_blame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive = Child._receive

    def late(self: Child) -> dict[str, Any]:
        wait_for((tmp_path / "begun").exists)
        return receive(self)

    spec = SimulatorSpec(pickled=cloudpickle.dumps(forges_or_hangs_once), timeout=PATIENCE)
    with IsolatedSimulator(spec, {"TEST_FOLDER": str(tmp_path)}) as simulator:
        simulator.start()
        monkeypatch.setattr(Child, "_receive", late)
        forged, after = run(simulator, 1, 3)
        assert "answered what it was not asked" in forged.reason
        assert values([after]) == [3]


def test_what_was_not_asked_for_is_no_result(tmp_path: Path) -> None:
    spec = SimulatorSpec(pickled=cloudpickle.dumps(forges), timeout=PATIENCE)
    with IsolatedSimulator(spec, {"TEST_FOLDER": str(tmp_path)}) as simulator:
        forged, after = run(simulator, 1, 3)
        assert forged.status is Status.CRASHED
        assert "answered what it was not asked" in forged.reason
        assert values([after]) == [3]
        assert values(run(simulator, 2)) == [2]
        assert simulator._child is not None and simulator._child.idle
        child = simulator._child
        (tmp_path / "go").touch()
        wait_for(lambda: not child.idle)
        # The next simulation is not to blame.
        assert values(run(simulator, 4, 5)) == [4, 5]


class TestNothingIsLeftBehind:
    def test_when_a_simulation_that_started_a_program_hangs(self, tmp_path: Path) -> None:
        def simulate(theta: Array) -> None:
            program = subprocess.Popen(["sleep", "1000"])
            (tmp_path / "pids").write_text(f"{os.getpid()}\n{program.pid}\n")
            program.wait()

        with isolated(simulate, timeout=TIMEOUT) as simulator:
            assert run(simulator, 0)[0].status is Status.TIMEOUT
            for pid in pids_in(tmp_path / "pids", 2):
                wait_for(partial(is_dead, pid))

    def test_when_a_simulation_that_forked_crashes(self, tmp_path: Path) -> None:
        def simulate(theta: Array) -> None:
            child = os.fork()
            if child == 0:
                time.sleep(1000)
            (tmp_path / "pids").write_text(f"{child}\n")
            os._exit(1)

        with isolated(simulate) as simulator:
            assert run(simulator, 0)[0].status is Status.CRASHED
            (pid,) = pids_in(tmp_path / "pids", 1)
            wait_for(partial(is_dead, pid))

    def test_when_it_is_closed(self) -> None:
        simulator = isolated(lambda theta: os.getpid())
        (pid,) = values(run(simulator, 0))
        simulator.close()
        simulator.close()
        assert is_dead(int(pid))
        (new,) = values(run(simulator, 0))
        simulator.close()
        assert new != pid
        assert is_dead(int(new))

    def test_when_the_calling_process_is_killed(self, tmp_path: Path) -> None:
        def simulate(theta: Array) -> None:
            program = subprocess.Popen(["sleep", "1000"])
            (tmp_path / "pids").write_text(f"{os.getpid()}\n{program.pid}\n")
            hangs_holding_the_interpreter_lock()

        (tmp_path / "simulate.pickle").write_bytes(cloudpickle.dumps(simulate))
        caller = (
            "import pathlib, sys, numpy\n"
            "from simulators.isolated import IsolatedSimulator\n"
            "from simulators.simulator import SimulatorSpec\n"
            "spec = SimulatorSpec(pickled=pathlib.Path(sys.argv[1]).read_bytes())\n"
            "IsolatedSimulator(spec).run(numpy.zeros((1, 1)), numpy.zeros(1))\n"
        )
        process = subprocess.Popen([sys.executable, "-c", caller, str(tmp_path / "simulate.pickle")], cwd=ROOT)
        try:
            pids = pids_in(tmp_path / "pids", 2)
            assert not any(map(is_dead, pids))
        finally:
            process.kill()
            process.wait()
        for pid in pids:
            wait_for(partial(is_dead, pid))


class TestStopping:
    def test_sigterm_comes_first_so_that_a_simulator_can_tidy_up(self, tmp_path: Path) -> None:
        def simulate(theta: Array) -> None:
            def tidy_up(*_: object) -> None:
                (tmp_path / "tidy").touch()
                os._exit(0)

            signal.signal(signal.SIGTERM, tidy_up)
            time.sleep(1000)

        with isolated(simulate, timeout=TIMEOUT, grace=PATIENCE) as simulator:
            assert run(simulator, 0)[0].status is Status.TIMEOUT
        assert (tmp_path / "tidy").exists()

    def test_an_interrupted_caller_never_sees_late_answers(self) -> None:
        class Interrupted(BaseException):
            pass

        def interrupt(*_: object) -> None:
            raise Interrupted

        def simulate(theta: Array) -> Array:
            if theta[0] == 1:
                os.kill(os.getppid(), signal.SIGUSR1)
            return theta

        previous = signal.signal(signal.SIGUSR1, interrupt)
        try:
            with isolated(simulate) as simulator:
                with pytest.raises(Interrupted):
                    run(simulator, *range(1, 1000))
                assert values(run(simulator, 5, 6)) == [5, 6]
        finally:
            signal.signal(signal.SIGUSR1, previous)

    def test_a_death_while_idle_is_not_blamed_on_the_next_simulation(self) -> None:
        with isolated(lambda theta: os.getpid()) as simulator:
            (pid,) = values(run(simulator, 0))
            os.kill(int(pid), signal.SIGKILL)
            os.waitid(os.P_PID, int(pid), os.WEXITED | os.WNOWAIT)
            assert values(run(simulator, 0)) != [pid]

    def test_the_child_outlives_the_thread_that_started_it(self) -> None:
        pids: list[float] = []
        with isolated(lambda theta: os.getpid()) as simulator:
            for _ in range(3):
                thread = threading.Thread(target=lambda: pids.extend(values(run(simulator, 0))))
                thread.start()
                thread.join()
            pids += values(run(simulator, 0))
        assert len(pids) == 4
        assert len(set(pids)) == 1


class TestResults:
    def test_larger_than_a_pipe_holds(self) -> None:
        with isolated(lambda theta: np.full(1_000_000, theta[0])) as simulator:
            outcomes = run(simulator, 1.5, 2.5)
        assert [o.status for o in outcomes] == [Status.OK] * 2
        for outcome, value in zip(outcomes, (1.5, 2.5), strict=True):
            assert outcome.x is not None
            assert outcome.x.shape == (1_000_000,)
            assert (outcome.x == value).all()
            assert outcome.x.flags.writeable

    def test_of_more_parameters_than_a_pipe_holds(self) -> None:
        theta = np.random.default_rng(0).normal(size=(2_000, 40))
        with isolated(lambda theta: theta[:, ::-1], batched=True) as simulator:
            outcomes = simulator.run(theta, np.arange(len(theta)))
        np.testing.assert_array_equal([o.x for o in outcomes], theta[:, ::-1])

    def test_are_decided_by_the_seeds_alone(self) -> None:
        def simulate(theta: Array, seed: int) -> list[float]:
            if theta[0] < 0:
                os._exit(1)
            return [random.random(), np.random.normal(), np.random.default_rng(seed).normal()]

        theta, seeds = np.array([[1.0], [2.0], [3.0]]), np.array([7, 2**40, 9], dtype=np.int64)
        spec = SimulatorSpec(pickled=cloudpickle.dumps(simulate))
        here = [o.x for o in spec.build().run_batch(theta, seeds.tolist())]
        with IsolatedSimulator(spec) as simulator:
            there = [o.x for o in simulator.run(theta, seeds)]
            assert simulator.run(-theta[:1], seeds[:1])[0].status is Status.CRASHED
            afterwards = [o.x for o in simulator.run(theta[::-1], seeds[::-1])][::-1]
        np.testing.assert_array_equal(there, here)
        np.testing.assert_array_equal(afterwards, here)

    def test_reasons_end_with_the_last_words(self) -> None:
        def simulate(theta: Array) -> Array:
            if theta[0] < 0:
                print("out of cheese", flush=True)
                os._exit(1)
            talks_much()
            return theta

        with isolated(simulate) as simulator:
            *_, crash = run(simulator, 1, 2, 3, -1)
        assert crash.status is Status.CRASHED
        assert crash.reason.endswith("out of cheese")
        assert crash.reason.isprintable()


class TestImporting:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("def simulat(theta): ...\n", "did you mean 'simulat'"),
            ("simulate = 3\n", "callable simulator"),
            ("1 / 0\n", "ZeroDivisionError: division by zero"),
            ("import os\nos.write(2, b'no licence')\nos._exit(1)\n", "loads the simulator died: no licence"),
        ],
    )
    def test_what_cannot_be_imported_is_an_error_for_the_user(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "model.py").write_text(text)
        simulator = IsolatedSimulator(SimulatorSpec(function=f"{tmp_path}/model.py:simulate"))
        with pytest.raises(SimulatorError, match=message):
            run(simulator, 0)

    def test_what_stands_in_the_way_of_another_start_may_pass(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Imported as often as a number in a file says; each time it is one less.
        (tmp_path / "model.py").write_text(
            "import os, pathlib\n"
            "left = pathlib.Path(__file__).with_name('left')\n"
            "left.write_text(str(int(left.read_text()) - 1))\n"
            "if int(left.read_text()) >= 0:\n    raise OSError('no room')\n"
            "def simulate(theta):\n    return theta if theta[0] > 0 else os._exit(1)\n"
        )
        left = tmp_path / "left"
        monkeypatch.setattr("simulators.isolated._PAUSES", (0.0, 0.0))
        with IsolatedSimulator(SimulatorSpec(function=f"{tmp_path}/model.py:simulate")) as simulator:
            left.write_text("1")
            with pytest.raises(SimulatorError, match="no room"):  # At once: this may well be for good.
                simulator.start()
            simulator.start()
            left.write_text("2")
            assert [o.status for o in run(simulator, -1, 4)] == ["crashed", "ok"]
            left.write_text("3")
            with pytest.raises(SimulatorError, match="no room"):
                run(simulator, -1, 4)

    def test_a_broken_pickle_is_an_error_for_the_user(self) -> None:
        with pytest.raises(SimulatorError, match="loading the simulator failed with UnpicklingError"):
            IsolatedSimulator(SimulatorSpec(pickled=b"garbage")).start()

    def test_a_plain_numpy_function_does_not_wait_for_torch(self, tmp_path: Path) -> None:
        (tmp_path / "model.py").write_text(
            "import sys\nimport numpy as np\ndef simulate(theta):\n    return float('torch' in sys.modules)\n"
        )
        with IsolatedSimulator(SimulatorSpec(function=f"{tmp_path}/model.py:simulate")) as simulator:
            assert values(run(simulator, 0)) == [0.0]

    @pytest.mark.parametrize(
        ("file", "method"),
        [("model.py", "fork"), ("model.py", "spawn"), ("random.py", "fork"), ("my-model.py", "fork")],
    )
    def test_a_file_may_hand_its_own_functions_to_a_pool(self, tmp_path: Path, file: str, method: str) -> None:
        (tmp_path / file).write_text(
            "import concurrent.futures, multiprocessing, numpy\n"
            "def double(value):\n    return 2 * value\n"
            "def simulate(theta):\n"
            f"    context = multiprocessing.get_context('{method}')\n"
            "    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:\n"
            "        return numpy.array(list(pool.map(double, theta)))\n"
        )
        spec = SimulatorSpec(function=f"{tmp_path}/{file}:simulate", timeout=PATIENCE)
        with IsolatedSimulator(spec) as simulator:
            assert values(run(simulator, 4)) == [8.0]

    def test_torch_that_is_imported_in_a_call_draws_by_the_seed_of_that_call(self, tmp_path: Path) -> None:
        (tmp_path / "model.py").write_text(
            "import importlib.util\n"
            "def simulate(theta):\n"
            "    assert importlib.util.find_spec('torch')  # as some libraries look whether it is there\n"
            "    import torch\n"
            "    return torch.rand(())\n"
        )
        spec = SimulatorSpec(function=f"{tmp_path}/model.py:simulate", timeout=PATIENCE)
        with IsolatedSimulator(spec) as one, IsolatedSimulator(spec) as other:
            first, second = values(run(one, 0, 0))
            assert values(other.run(np.zeros((2, 1)), np.array([1, 0]))) == [second, first]

    def test_folders_named_like_ours_in_the_current_folder_do_no_harm(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "simulators").mkdir()
        (tmp_path / "simulators" / "__init__.py").write_text("raise RuntimeError('the wrong simulators')\n")
        (tmp_path / "model_in_the_current_folder.py").write_text("def simulate(theta):\n    return theta\n")
        monkeypatch.chdir(tmp_path)
        spec = SimulatorSpec(function="model_in_the_current_folder:simulate")
        with IsolatedSimulator(spec) as simulator:
            assert values(run(simulator, 4)) == [4.0]

    def test_runs_in_the_folder_of_the_spec_where_there_is_one(self, tmp_path: Path) -> None:
        for folder, expected in ((tmp_path, tmp_path), (tmp_path / "nowhere", Path.cwd())):
            with isolated(lambda theta, at=expected: Path.cwd() == at, folder=str(folder)) as simulator:
                assert values(run(simulator, 0)) == [1.0]

    def test_programs_that_the_simulator_starts_keep_the_callers_search_path(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("PYTHONPATH", raising=False)
        with isolated(lambda theta: "PYTHONPATH" in os.environ) as simulator:
            assert values(run(simulator, 0)) == [0.0]
