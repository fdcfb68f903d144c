"""Loading a user's own function or prior from `file.py:name` or `package.module:name`."""

from __future__ import annotations

__all__ = ["load_object"]

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from .errors import SimulatorError, nearest

#: Our import packages: a user's folder of the same name would be imported in their place, or hidden by them.
OUR_PACKAGES = ("simulators", "learners", "orchestrator")


def load_object(reference: str, keep: bool = False) -> Any:
    """Imports the object that `file.py:name` or `package.module:name` names.

    A file's own folder is searched last for what it imports, so that its neighbours can be imported.

    Arguments:
        reference: See above.
        keep: Whether a file's module stays importable, as pickle needs it, and with it pools of processes: where what
            it defines is run. Else cloudpickle carries what it defines to other processes, whole.

    Raises:
        SimulatorError: No such file, module or name, or an error while importing it.
    """
    module_name, separator, name = reference.rpartition(":")
    if not separator or not module_name or not name:
        raise SimulatorError(f"expected 'path/to/file.py:name' or 'package.module:name', got '{reference}'")
    is_file = module_name.endswith(".py")
    module = _load_file(Path(module_name), keep) if is_file else _load_module(module_name)
    if not hasattr(module, name):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise SimulatorError(f"'{module_name}' has no '{name}'; {nearest(name, public)}")
    return getattr(module, name)


def _load_file(path: Path, keep: bool) -> Any:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise SimulatorError(f"expected a Python file at {path}, but there is none; check the path")
    _refuse_shadows(path.parent)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    # The file's plain name may be that of a module which others import, such as `random`. Where it is not, the
    # processes of a pool find it by that name and this folder, even those that are not forked.
    name = path.stem if keep and _is_imported_by_name(path) else f"_temperflow_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up while they are made. Afterwards it must not stay where cloudpickle is to carry
    # what it defines, which would be taken for importable anywhere.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        keep = False
        raise SimulatorError(f"importing {path} failed with {type(error).__name__}: {error}") from error
    finally:
        if not keep:
            del sys.modules[name]
    return module


def _is_imported_by_name(path: Path) -> bool:
    """Whether an import of the file's name would find the file."""
    if not path.stem.isidentifier() or path.stem in sys.modules:
        return False
    found = importlib.util.find_spec(path.stem)
    return found is not None and found.origin == str(path)


def _load_module(name: str) -> Any:
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if package in OUR_PACKAGES:
            raise SimulatorError(
                f"'{name}' is looked for in temperflow's own package '{package}' and is not there ({error}); rename "
                "your folder of that name, or give the path of a file as 'path/to/file.py:name' from another folder"
            ) from error
        raise SimulatorError(
            f"importing the module '{name}' failed with {type(error).__name__}: {error}; install it in this "
            "environment, or give the path of a file as 'path/to/file.py:name'"
        ) from error


def _refuse_shadows(folder: Path) -> None:
    for name in OUR_PACKAGES:
        candidate = folder / name
        if candidate.is_dir() and candidate.resolve() != Path(__file__).resolve().parent.parent / name:
            raise SimulatorError(
                f"the folder {candidate} has the name of one of temperflow's own packages ({name}), so that "
                "imports between the two would be mixed up; rename it or move your simulator elsewhere"
            )
