"""References `file.py:name` and `package.module:name`: what they find, and what the errors say."""

from __future__ import annotations

import json
import math
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import cloudpickle  # type: ignore[import-untyped, unused-ignore]
import pytest

import simulators
from simulators.errors import SimulatorError
from simulators.loading import OUR_PACKAGES, load_object


@pytest.fixture(autouse=True)
def _same_imports_afterwards() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_name_in_a_file(tmp_path: Path) -> None:
    file = write(tmp_path / "model.py", "SCALE = 3\ndef simulate(theta):\n    return SCALE * theta\n")
    assert load_object(f"{file}:simulate")(2) == 6
    assert load_object(f"{file}:SCALE") == 3


def test_relative_path_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "model.py", "x = 1\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_object("~/model.py:x") == 1
    monkeypatch.chdir(tmp_path)
    assert load_object("model.py:x") == 1


def test_name_in_a_module() -> None:
    assert load_object("math:hypot") is math.hypot
    assert load_object("os.path:join") is os.path.join


def test_neighbours_of_the_file_are_importable_at_once_and_later(tmp_path: Path) -> None:
    write(tmp_path / "neighbour_of_model.py", "two = 2\n")
    write(tmp_path / "late_neighbour_of_model.py", "three = 3\n")
    file = write(
        tmp_path / "model.py",
        "from neighbour_of_model import two\n"
        "def later():\n"
        "    from late_neighbour_of_model import three\n"
        "    return two * three\n",
    )
    assert load_object(f"{file}:later")() == 6


def test_neighbours_never_hide_installed_modules(tmp_path: Path) -> None:
    write(tmp_path / "json.py", "raise RuntimeError('the wrong json')\n")
    file = write(tmp_path / "model.py", "import json\n")
    assert load_object(f"{file}:json") is json


def test_a_file_may_be_called_like_any_module(tmp_path: Path) -> None:
    for name in ("random", "simulators", "numpy"):
        before = sys.modules.get(name)
        file = write(tmp_path / f"{name}.py", f"import fractions\nx = '{name}'\n")
        assert load_object(f"{file}:x") == name
        assert sys.modules.get(name) is before
    assert random.random() < 1.0


def test_dataclasses_with_postponed_annotations_load(tmp_path: Path) -> None:
    file = write(
        tmp_path / "model.py",
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Model:\n"
        "    rate: float = 2.0\n",
    )
    assert load_object(f"{file}:Model")().rate == 2.0


def test_what_a_file_defines_is_pickled_by_value(tmp_path: Path) -> None:
    file = write(tmp_path / "model.py", "SCALE = 3\ndef simulate(theta):\n    return SCALE * theta\n")
    pickled = cloudpickle.dumps(load_object(f"{file}:simulate"))
    file.unlink()
    assert cloudpickle.loads(pickled)(2) == 6


def test_the_file_is_read_anew_each_time(tmp_path: Path) -> None:
    file = write(tmp_path / "model.py", "x = 1\n")
    assert load_object(f"{file}:x") == 1
    write(file, "x = 12345\n")
    assert load_object(f"{file}:x") == 12345


@pytest.mark.parametrize("reference", ["", "model.py", ":simulate", "model.py:", "package.module"])
def test_malformed_reference(reference: str) -> None:
    with pytest.raises(SimulatorError, match=r"expected 'path/to/file\.py:name' or 'package\.module:name'"):
        load_object(reference)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SimulatorError, match=rf"{tmp_path}/nowhere\.py, but there is none"):
        load_object(f"{tmp_path}/nowhere.py:simulate")


def test_missing_module_suggests_a_file() -> None:
    with pytest.raises(SimulatorError, match=r"ModuleNotFoundError.*install it.*path/to/file\.py:name"):
        load_object("no_such_module_anywhere:simulate")


def test_missing_name_suggests_the_nearest(tmp_path: Path) -> None:
    file = write(tmp_path / "model.py", "def simulate(theta): ...\ndef _private(): ...\n")
    with pytest.raises(SimulatorError, match=r"has no 'simulat'; did you mean 'simulate'\?"):
        load_object(f"{file}:simulat")
    with pytest.raises(SimulatorError, match=r"valid are: simulate$"):
        load_object(f"{file}:xyz")
    with pytest.raises(SimulatorError, match=r"did you mean 'hypot'\?"):
        load_object("math:hypott")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("def simulate(:\n", "SyntaxError"),
        ("import no_such_module_anywhere\n", "ModuleNotFoundError.*no_such_module_anywhere"),
        ("import sys\nsys.exit('usage: model.py FILE')\n", "SystemExit: usage: model.py FILE"),
    ],
)
def test_error_on_import_is_named(tmp_path: Path, text: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "model_that_fails.py", text)
    with pytest.raises(SimulatorError, match=f"importing {file} failed with {message}"):
        load_object(f"{file}:simulate")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SimulatorError, match=f"'model_that_fails' failed with {message}"):
        load_object("model_that_fails:simulate")


@pytest.mark.parametrize("package", OUR_PACKAGES)
def test_a_folder_named_like_our_packages_is_refused(tmp_path: Path, package: str) -> None:
    write(tmp_path / package / "model.py", "")
    file = write(tmp_path / "model.py", "def simulate(theta): ...\n")
    with pytest.raises(SimulatorError, match=rf"{tmp_path}/{package} has the name.*rename it or move"):
        load_object(f"{file}:simulate")


def test_our_own_packages_beside_the_file_are_fine(tmp_path: Path) -> None:
    (tmp_path / "simulators").symlink_to(Path(simulators.__path__[0]))
    file = write(tmp_path / "model.py", "from simulators import TEMPERFLOW\n")
    assert load_object(f"{file}:TEMPERFLOW") is True
