"""External programs: a compiled one, and whatever it does, with real processes and files."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import stat
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from liveness import is_dead

from simulators.command import CommandSpec
from simulators.errors import ConfigError, SimulatorError
from simulators.isolated import IsolatedSimulator
from simulators.outcome import Outcome, Status
from simulators.run_folders import KEPT_BYTES, KEPT_FAILURES, RunFolders
from simulators.simulator import SimulatorSpec

#: A limit on waiting for what must happen; reaching it is a failure.
PATIENCE = 60.0
COMPILER = shutil.which("cc") or shutil.which("gcc")
SOURCE = Path(__file__).parent / "programs" / "solver.c"

#: Numbers that any rounding would change.
AWKWARD = np.array([[0.1 + 0.2, -1 / 3], [5e-324, -1e-310], [1.7976931348623157e308, 1e-7], [2.0, 1e22]])
SEEDS = np.array([0, 7, 2**32 - 1, 1], dtype=np.int64)

DECK = "&model\n  a={{ alpha }},\n  b={{ beta_ }},\n  seed={{ seed }}\n/\n"


@pytest.fixture(scope="session")
def solver(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The compiled program."""
    if COMPILER is None:
        pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("bin") / "solver"
    subprocess.run([COMPILER, "-O1", "-o", program, SOURCE], check=True)
    return str(program)


@pytest.fixture
def spec(solver: str, tmp_path: Path) -> Callable[..., CommandSpec]:
    """Makes the spec of the program with these arguments."""

    def make(*arguments: str, **options: Any) -> CommandSpec:
        settings = {"names": ("alpha", "beta_"), "folder": str(tmp_path), "workdir": str(tmp_path / "work"), **options}
        return CommandSpec((solver, *arguments), **settings)

    return make


def isolated(command: CommandSpec, **options: Any) -> IsolatedSimulator:
    return IsolatedSimulator(SimulatorSpec(command=command, **{"timeout": PATIENCE, **options}))


def run_here(command: CommandSpec, *theta: float) -> Outcome:
    """One run of the program, which is a process of its own, from this one."""
    return SimulatorSpec(command=command).build().run(np.array(theta), seed=7)


def wait_for(condition: Callable[[], Any]) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)
    return value


def failures(workdir: Path) -> list[Path]:
    """Folders of failed runs, the oldest first."""
    return sorted((workdir / "failures").glob("*"), key=lambda folder: folder.stat().st_mtime_ns)


def running(workdir: Path) -> list[Path]:
    """Folders of runs that are neither removed nor kept."""
    return list(workdir.glob("temperflow-*/*/"))


#: Arguments and options of the ways in and out; x is alpha, beta_ and the seed, the seed first where it says so.
WAYS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "arguments, stdout": (("print", "{alpha}", "{beta_}", "{seed}"), {}),
    "arguments with a format, stdout": (("print", "{alpha:.17e}", "{beta_!r}", "{seed:d}"), {}),
    "arguments, npy": (("npy", "{output}", "{alpha}", "{beta_}", "{seed}"), {"output": "npy"}),
    "json (seed first)": (("json", "{input}", "{output}"), {"input": "json", "output": "json"}),
    "json, chosen": (
        ("json", "{workdir}/input.json", "result.json"),
        {"input": "json", "output": "result.json", "fields": ("x", "seed")},
    ),
    "csv": (("csv", "{input}", "{output}"), {"input": "csv", "output": "csv"}),
    "csv, chosen": (
        ("csv", "input.csv", "a.txt"),
        {"input": "csv", "output": "a.txt", "fields": ("first", "second", "seed")},
    ),
    "template (seed first)": (("deck",), {"input": "deck.nml", "template": DECK, "output": "results/final.dat"}),
}


@pytest.mark.parametrize(("arguments", "options"), WAYS.values(), ids=WAYS)
def test_every_way_in_and_out_keeps_every_bit(
    arguments: tuple[str, ...], options: dict[str, Any], spec: Callable[..., CommandSpec], tmp_path: Path, request: Any
) -> None:
    with isolated(spec(*arguments, **options)) as simulator:
        outcomes = simulator.run(AWKWARD, SEEDS)
    assert [(o.status, o.reason) for o in outcomes] == [(Status.OK, "")] * len(AWKWARD)
    expected = np.column_stack([AWKWARD, SEEDS])
    if "seed first" in request.node.name:
        expected = expected[:, [2, 0, 1]]
    np.testing.assert_array_equal([o.x for o in outcomes], expected)
    assert running(tmp_path / "work") == failures(tmp_path / "work") == []


def test_hdf5_datasets_come_in_the_order_asked_for(tmp_path: Path) -> None:
    (tmp_path / "write.py").write_text(
        "import sys, h5py\n"
        "with h5py.File(sys.argv[1], 'w') as file:\n"
        "    file['fields/pressure'] = [[1.0, float(sys.argv[2])]]\n"
        "    file['label'] = 'a name'\n"
        "    file['energy'] = 3\n"
    )
    command = (sys.executable, "{folder}/write.py", "{output}", "{alpha}")
    settings: dict[str, Any] = {"names": ("alpha",), "folder": str(tmp_path), "output": "hdf5"}
    for fields, expected in (((), [3, 1, 0.5]), (("fields/pressure", "/energy"), [1, 0.5, 3])):
        outcome = run_here(CommandSpec(command, fields=fields, workdir=str(tmp_path / "work"), **settings), 0.5)
        assert outcome.x is not None, outcome
        assert outcome.x.tolist() == expected
    missing = run_here(CommandSpec(command, fields=("presure",), workdir=str(tmp_path / "work"), **settings), 0.5)
    assert missing.status is Status.WRONG_TYPE
    assert "no dataset 'presure'; " in missing.reason


#: What the program does instead of its work, the status, and a part of the reason.
FAULTS = [
    ("segfault", Status.CRASHED, "the program was killed by SIGSEGV: step 1"),
    ("abort", Status.CRASHED, "killed by SIGABRT: double free or corruption"),
    ("real_time_signal", Status.CRASHED, "the program was killed by signal 40: step 1"),
    ("exit", Status.RAISED, "ended with exit code 3: reading the mesh /  [31mno convergence [0m �"),
    ("exit_quietly", Status.RAISED, "ended with exit code 4: step 1 (see "),
    ("exit_139", Status.CRASHED, "exit code 139, which stands for SIGSEGV"),
    ("garbage", Status.WRONG_TYPE, "output.json cannot be read as json: UnicodeDecodeError"),
    ("half", Status.WRONG_TYPE, "output.json cannot be read as json: JSONDecodeError"),
    ("empty", Status.WRONG_TYPE, "output.json cannot be read as json: JSONDecodeError"),
    ("nothing", Status.WRONG_TYPE, "the program wrote no file output.json"),
    ("folder", Status.WRONG_TYPE, "the program wrote no file output.json"),
    ("device", Status.WRONG_TYPE, "the program wrote no file output.json"),
    ("huge", Status.WRONG_TYPE, "output.json has more than 16 MiB"),
    ("text", Status.WRONG_TYPE, "expected an array of real numbers, got dict"),
    ("null", Status.WRONG_TYPE, "returned None"),
    ("nan", Status.NOT_FINITE, "1 of 2 values are NaN"),
]


@pytest.mark.parametrize(("fault", "status", "reason"), FAULTS, ids=[name for name, *_ in FAULTS])
def test_a_fault_is_an_outcome_with_its_reason(
    fault: str, status: Status, reason: str, spec: Callable[..., CommandSpec], tmp_path: Path
) -> None:
    outcome = run_here(spec("fault", fault, "{output}", "{alpha}", names=("alpha",), output="json"), 0.5)
    assert outcome.status is status
    assert reason in outcome.reason
    assert outcome.x is None
    assert running(tmp_path / "work") == []
    (folder,) = failures(tmp_path / "work")
    assert folder.name.endswith("seed-7")
    if fault != "folder":  # There it was another program in the end.
        assert (folder / "temperflow.stdout").read_text() == "step 1\n"


@pytest.mark.parametrize("fault", ["none", "linger", "chatter"])
def test_what_a_program_leaves_running_does_not_hold_up_its_result(
    fault: str, spec: Callable[..., CommandSpec]
) -> None:
    with isolated(spec("fault", fault, "{output}", "{alpha}", names=("alpha",), output="json")) as simulator:
        (outcome,) = simulator.run(np.zeros((1, 1)), SEEDS[:1])
    assert outcome.x is not None, outcome
    assert outcome.x.tolist() == [1.5, 2]


def test_a_crash_is_one_outcome_and_by_default_kept_in_a_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    script = 'test {alpha:.0f} = 1 && kill -s SEGV "$$"; echo {alpha}'
    with isolated(CommandSpec(("sh", "-c", script), ("alpha",), "/")) as simulator:
        outcomes = simulator.run(np.array([[0.0], [1.0], [2.0]]), SEEDS[:3])
    assert [o.status for o in outcomes] == [Status.OK, Status.CRASHED, Status.OK]
    (workdir,) = tmp_path.glob("temperflow-*")
    assert stat.S_IMODE(workdir.stat().st_mode) == 0o700
    assert f"(see {workdir}/failures)" in outcomes[1].reason
    assert len(failures(workdir)) == 1


def test_a_program_that_the_system_kills_for_its_memory_is_its_own_failure(tmp_path: Path) -> None:
    group = Path("/sys/fs/cgroup/memory") / f"temperflow-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no group of processes with a limit of memory can be made: {error}")
    try:
        (group / "memory.limit_in_bytes").write_text("50000000")
        script = f'echo $$ > {group}/cgroup.procs; exec "$0" -c "bytearray(int({{megabytes}}) << 20)"'
        command = CommandSpec(
            ("sh", "-c", script, sys.executable), ("megabytes",), "/", output="x.csv", workdir=str(tmp_path)
        )
        with isolated(command) as simulator:
            outcomes = simulator.run(np.array([[1.0], [200.0], [1.0]]), SEEDS[:3])
        assert [o.status for o in outcomes] == ["wrong_type", "out_of_memory", "wrong_type"]
        assert outcomes[1].reason.startswith("the system ran out of memory and killed the program (see ")
    finally:
        wait_for(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


class TestFailedRuns:
    def test_can_be_repeated_from_what_is_kept(self, spec: Callable[..., CommandSpec], tmp_path: Path) -> None:
        command = spec("json", "{input}", "{workdir}/missing/out", input="json", output="json")
        reason = "the program ended with exit code 2: missing/out: No such file or directory (see "
        assert run_here(command, 0.5, 0.25).reason.startswith(reason)
        (folder,) = failures(tmp_path / "work")
        assert json.loads((folder / "input.json").read_text()) == {"alpha": 0.5, "beta_": 0.25, "seed": 7}
        complaint = (folder / "temperflow.stderr").read_text()
        assert complaint.endswith("/missing/out: No such file or directory\n")
        again = subprocess.run(
            ["sh", "temperflow.command"], cwd=folder, capture_output=True, text=True, check=False, timeout=PATIENCE
        )
        assert (again.returncode, again.stderr) == (2, "./missing/out: No such file or directory\n")

    def test_are_bounded_in_number(self, spec: Callable[..., CommandSpec], tmp_path: Path) -> None:
        simulator = SimulatorSpec(command=spec("fault", "exit", "x", "{alpha}", names=("alpha",))).build()
        theta = np.zeros((KEPT_FAILURES + 5, 1))
        simulator.run_batch(theta, list(range(len(theta))))
        seeds = [int(folder.name.rpartition("-")[2]) for folder in failures(tmp_path / "work")]
        assert seeds == list(range(5, len(theta)))

    def test_are_bounded_in_size(self, tmp_path: Path) -> None:
        script = 'head -c 8000000 /dev/zero > small; head -c 9000000 /dev/zero > big; echo "$0" >&2; exit 1'
        command = CommandSpec(("sh", "-c", script, "{alpha}"), ("alpha",), "/", workdir=str(tmp_path / "work"))
        assert run_here(command, 0.5).reason.startswith("the program ended with exit code 1: 0.5")
        (folder,) = failures(tmp_path / "work")
        sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
        assert sizes.keys() == {"small", "temperflow.command", "temperflow.stderr"}
        assert sum(sizes.values()) <= KEPT_BYTES

    def test_never_cost_a_folder_of_the_users(self, spec: Callable[..., CommandSpec], tmp_path: Path) -> None:
        precious = tmp_path / "work" / "failures" / "mine" / "data"
        precious.parent.mkdir(parents=True)
        precious.touch()
        simulator = SimulatorSpec(command=spec("fault", "exit", "x", "{alpha}", names=("alpha",))).build()
        simulator.run_batch(np.zeros((KEPT_FAILURES + 5, 1)), list(range(KEPT_FAILURES + 5)))
        assert precious.exists()

    def test_that_cannot_be_kept_are_failures_all_the_same(
        self, spec: Callable[..., CommandSpec], tmp_path: Path
    ) -> None:
        (tmp_path / "work").mkdir()
        (tmp_path / "work" / "failures").write_text("a file in the way")
        outcome = run_here(spec("fault", "exit", "x", "{alpha}", names=("alpha",)), 0.5)
        assert outcome.status is Status.RAISED
        assert running(tmp_path / "work") == []

    def test_of_another_host_are_left_to_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # Locks that stay within a node, as on some shared file systems: from node-1, node's look free.
        monkeypatch.setattr("fcntl.flock", lambda *_: None)
        workdir = tmp_path / "work"
        monkeypatch.setattr("socket.gethostname", lambda: "node")
        folder = RunFolders(str(workdir)).make("seed-7")
        for host in ("node-1", "nod", "other"):
            monkeypatch.setattr("socket.gethostname", lambda host=host: host)
            RunFolders(str(workdir))
            assert (running(workdir), failures(workdir)) == ([folder], [])
        monkeypatch.setattr("socket.gethostname", lambda: "node")
        RunFolders(str(workdir))
        assert running(workdir) == []
        assert [kept.name for kept in failures(workdir)] == [f"{folder.parent.name}-{folder.name}"]

    def test_a_tidied_temporary_folder_is_made_anew(self, spec: Callable[..., CommandSpec], tmp_path: Path) -> None:
        simulator = SimulatorSpec(command=spec("print", "{alpha}", "{beta_}", "{seed}")).build()
        shutil.rmtree(tmp_path / "work")
        assert simulator.run(np.array([1.0, 2.0]), 3).x is not None

    def test_a_place_that_cannot_be_used_is_worth_another_try(
        self, spec: Callable[..., CommandSpec], tmp_path: Path
    ) -> None:
        simulator = SimulatorSpec(command=spec("print", "{alpha}", "{beta_}", "{seed}")).build()
        shutil.rmtree(tmp_path / "work")
        (tmp_path / "work").touch()
        outcome = simulator.run(np.array([1.0, 2.0]), 3)
        assert outcome.status is Status.CRASHED
        assert "the system did not let the run be made: " in outcome.reason


@pytest.mark.parametrize("output", ["stdout", "json"])
def test_much_output_costs_neither_memory_nor_disk(
    output: str, spec: Callable[..., CommandSpec], tmp_path: Path
) -> None:
    simulator = SimulatorSpec(command=spec("flood", "{alpha}", names=("alpha",), output=output)).build()
    tracemalloc.start()
    try:
        outcome = simulator.run(np.zeros(1), seed=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert outcome.status is Status.WRONG_TYPE
    assert ("printed more than 16 MiB" if output == "stdout" else "wrote no file") in outcome.reason
    assert peak < 64 << 20
    (folder,) = failures(tmp_path / "work")
    assert (folder / "temperflow.stdout").read_text().endswith("x\nthe end\n")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1 << 20


class TestDeadline:
    """What the process group gets at the deadline reaches the program and all that it started."""

    def kill(self, command: CommandSpec, pids: Path, **options: Any) -> IsolatedSimulator:
        """Lets the program run into its timeout, and checks that nothing of it is left."""
        simulator = isolated(command, timeout=2.0, **options)
        (outcome,) = simulator.run(np.zeros((1, 1)), SEEDS[:1])
        assert outcome.status is Status.TIMEOUT
        for pid in map(int, pids.read_text().split()):
            assert pid == 0 or wait_for(partial(is_dead, pid))
        return simulator

    @pytest.mark.parametrize("mode", ["hang", "hang_with_child", "stubborn"])
    def test_nothing_is_left_and_the_last_words_are_kept(
        self, mode: str, spec: Callable[..., CommandSpec], tmp_path: Path
    ) -> None:
        pids = tmp_path / "pids"
        command = spec(mode, str(pids), "{alpha}", names=("alpha",))
        with self.kill(command, pids, grace=0.5) as simulator:
            simulator.start()  # The next process puts in order what the killed one left.
        assert running(tmp_path / "work") == []
        (folder,) = failures(tmp_path / "work")
        if mode != "hang_with_child":
            assert (folder / "temperflow.stdout").read_text() == "iteration 17\n"

    def test_a_program_may_tidy_up_when_it_is_asked_to_stop(
        self, spec: Callable[..., CommandSpec], tmp_path: Path
    ) -> None:
        pids, tidied = tmp_path / "pids", tmp_path / "tidied"
        self.kill(spec("tidy", str(pids), str(tidied), "{alpha}", names=("alpha",)), pids, grace=PATIENCE).close()
        assert tidied.read_text() == "15\n"


def test_an_mpi_launcher_is_just_a_command(solver: str, tmp_path: Path) -> None:
    launcher = shutil.which("mpirun")
    if launcher is None:
        pytest.skip("no mpirun")
    launch = (launcher, "--allow-run-as-root", "--oversubscribe", "-np", "2")
    workdir = str(tmp_path / "work")
    command = CommandSpec((*launch, solver, "print", "{alpha}", "1", "2"), ("alpha",), "/", workdir=workdir)
    crashing = CommandSpec((*launch, solver, "fault", "segfault", "{alpha}"), ("alpha",), "/", workdir=workdir)
    with isolated(command) as simulator:
        (outcome,) = simulator.run(np.array([[0.1]]), SEEDS[:1])
    assert outcome.x is not None, outcome
    assert outcome.x.tolist() == [0.1, 0.1, 1, 1, 2, 2]  # A line from each of two ranks, column after column.
    assert run_here(crashing, 0.1).status is Status.CRASHED


class TestSpec:
    def test_travels_as_json(self, spec: Callable[..., CommandSpec]) -> None:
        simulator = SimulatorSpec(command=spec("deck", input="deck", template=DECK, fields=("a",), output="x.csv"))
        copy = SimulatorSpec(**json.loads(json.dumps(dataclasses.asdict(simulator))))
        assert copy == simulator
        assert len({copy, simulator}) == 1

    def test_a_template_keeps_all_but_its_placeholders(self, tmp_path: Path) -> None:
        template = b"\xe9 caf\xe9\n! {% raw %}{{ as it is }}{% endraw %}\n a = {{ '%.3e' % alpha }}\n\n"
        command = CommandSpec(
            ("cat", "{input}"),
            ("alpha",),
            "/",
            "deck",
            template.decode(errors="surrogateescape"),
            workdir=str(tmp_path),
        )
        assert run_here(command, 0.5).status is Status.WRONG_TYPE
        (folder,) = failures(tmp_path)
        expected = b"\xe9 caf\xe9\n! {{ as it is }}\n a = 5.000e-01\n\n"
        assert (folder / "deck").read_bytes() == (folder / "temperflow.stdout").read_bytes() == expected

    def test_a_template_that_fails_is_the_reason(self, tmp_path: Path) -> None:
        command = CommandSpec(("true",), ("alpha",), "/", "deck", "{{ 1 / alpha }}", workdir=str(tmp_path))
        outcome = run_here(command, 0.0)
        assert outcome.status is Status.RAISED
        assert "the template deck failed with ZeroDivisionError" in outcome.reason

    @pytest.mark.parametrize("name", ["range", "dict", "lipsum", "cycler", "joiner", "namespace"])
    def test_a_parameter_may_be_called_like_a_function_of_the_template(self, tmp_path: Path, name: str) -> None:
        deck = f"{{{{ {name} }}}}\n"
        command = CommandSpec(("cat", "{input}"), (name,), "/", "deck", deck, workdir=str(tmp_path))
        assert run_here(command, 0.5).x == [0.5]

    def test_braces_are_doubled(self, tmp_path: Path) -> None:
        script = 'test "$0" = {{alpha}} && echo {alpha}'
        command = CommandSpec(("sh", "-c", script, "{{alpha}}"), ("alpha",), "/", workdir=str(tmp_path))
        assert run_here(command, 0.5).x == [0.5]

    @pytest.mark.parametrize(
        ("command", "options", "message"),
        [
            ([], {}, "expected the program"),
            (["x", "{alpa}"], {}, r"no placeholder \{alpa\} is known in '\{alpa\}'; did you mean 'alpha'"),
            (["{alpha}"], {}, r"no placeholder \{alpha\}"),
            (["x", "{input}"], {}, "it needs `input:`"),
            (["x", "{alpha}", "{output}"], {}, "it needs `output:`"),
            (["x", "{}"], {}, "double braces"),
            (["x", "{alpha"], {}, "cannot be filled in.*double braces"),
            (["x", "{alpha:zz}"], {}, "'{alpha:zz}' cannot be filled in"),
            (["x", "{alpha.nothing}"], {}, "no placeholder"),
            (["x", "{alpha:{width}}"], {}, "cannot be filled in: 'width'"),
            (["x"], {}, "never sees the parameter 'alpha'"),
            (["x"], {"input": "deck", "template": "a = 1"}, "never sees the parameter 'alpha'"),
            (["x"], {"input": "deck", "template": "a = {{ alhpa }}"}, "has 'alhpa'.*did you mean 'alpha'"),
            (["x"], {"input": "deck", "template": "\na = {{ alpha"}, "error in line 2"),
            (["x"], {"input": "deck"}, "expected json, csv or a template, got 'deck'"),
            (["x", "{alpha}"], {"output": "xml"}, "output: expected stdout, json.*got 'xml'"),
            (["x", "{alpha}"], {"output": "/tmp/x.json"}, "in the run's own folder"),
            (["x", "{alpha}"], {"output": "../x.json"}, "in the run's own folder"),
            (["x"], {"input": "x.csv", "template": "{{ alpha }}", "output": "x.csv"}, "both called x.csv"),
            (["x", "{alpha}"], {"output": "npy", "fields": ["a"]}, "remove `fields`"),
            (["x", "{seed}"], {"names": ["seed"]}, "cannot be called 'seed'"),
        ],
    )
    def test_what_contradicts_itself_is_refused(
        self, command: list[str], options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            CommandSpec(**{"command": command, "names": ["alpha"], "folder": "/", **options})


class TestMissing:
    """What is not there is said before anything is simulated."""

    @pytest.mark.parametrize(
        ("command", "message"),
        [
            ("./absent", r"expected a program at .*/absent, but there is no such file"),
            ("no_such_program", r"no program 'no_such_program' on the PATH.*'\./no_such_program'"),
            ("./", "no such file"),
            ("{folder}/script.py", r"not executable.*\[python, '\{folder\}/script.py'\]"),
        ],
    )
    def test_programs(self, command: str, message: str, tmp_path: Path) -> None:
        (tmp_path / "script.py").touch()
        simulator = isolated(CommandSpec((command, "{a}"), ("a",), str(tmp_path), workdir=str(tmp_path)))
        with pytest.raises(SimulatorError, match=message):
            simulator.start()

    def test_places_for_the_runs(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        simulator = isolated(CommandSpec(("echo", "{a}"), ("a",), "/", workdir=str(tmp_path / "file" / "work")))
        with pytest.raises(SimulatorError, match="name another place with `workdir`"):
            simulator.start()

    def test_a_program_that_cannot_be_executed(self, tmp_path: Path) -> None:
        program = tmp_path / "program"
        program.write_bytes(b"\x00\x01")
        os.chmod(program, 0o755)
        outcome = run_here(CommandSpec(("./program", "{a}"), ("a",), str(tmp_path), workdir=str(tmp_path)), 1.0)
        assert outcome.status is Status.CRASHED
        assert "Exec format error" in outcome.reason
