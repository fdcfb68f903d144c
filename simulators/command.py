"""External programs as simulators: parameters into arguments and files, a run, numbers out of what it wrote."""

from __future__ import annotations

__all__ = ["Command", "CommandSpec"]

import csv
import json
import os
import shlex
import shutil
import socket
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ConfigError, SimulatorError, nearest
from .outcome import Array, Status, flatten_output
from .program_output import MAX_BYTES, OutputError, output_format, read_output
from .program_run import ProgramError, run_program
from .run_folders import RunFolders

#: Placeholders beside the parameters' names.
_RESERVED = ("folder", "input", "output", "seed", "workdir")


@dataclass(frozen=True)
class CommandSpec:
    """How to call an external program; see docs/external-programs.md.

    Attributes:
        command: Program and arguments. `{NAME}` is a parameter's value, `{seed}` the seed, `{input}` and `{output}`
            are the paths of the files, `{workdir}` is the run's folder, `{folder}` the attribute `folder`.
        names: Names of the parameters, in the order of theta.
        folder: To what the program's path is relative.
        input: `json`, `csv`, or the name of the file that is made from `template`; None for no file.
        template: Text of the input file, in Jinja's language.
        output: `stdout`, `json`, `csv`, `npy`, `hdf5`, or the name of the file that the program writes.
        fields: Keys, columns or datasets of the output that make up x, in this order; empty for all.
        workdir: Folder in which the runs have theirs; None for the system's temporary folder.

    Raises:
        ConfigError: An unknown placeholder, a parameter that goes nowhere, or another contradiction.
    """

    command: tuple[str, ...]
    names: tuple[str, ...]
    folder: str
    input: str | None = None
    template: str | None = None
    output: str = "stdout"
    fields: tuple[str, ...] = ()
    workdir: str | None = None

    def __post_init__(self) -> None:
        # JSON, in which a spec travels to another process, has lists only.
        for name in ("command", "names", "fields"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.command or not self.command[0]:
            raise ConfigError("command: expected the program and its arguments, got an empty list")
        for name in set(self.names) & set(_RESERVED):
            raise ConfigError(f"a program's parameter cannot be called '{name}', which is a placeholder; rename it")
        form, file = output_format(self.output)
        if file is not None and file == self.input_file:
            raise ConfigError(f"the program's input and output are both called {file}; rename one")
        if self.fields and form == "npy":
            raise ConfigError("fields: an .npy file has one array without a name; remove `fields`")
        if (self.template is None) != (self.input in (None, "json", "csv")):
            raise ConfigError(f"input: expected json, csv or a template, got '{self.input}'")
        self._format(self.command[0], {"folder": self.folder})
        trial = {**dict.fromkeys(self.names, 0.5), "seed": 1, **self._paths("")}
        used = set[str]().union(*(self._format(argument, trial)[1] for argument in self.command[1:]))
        used |= set(self.names) if self.input in ("json", "csv") else self._used_by_template()
        for name in self.names:
            if name not in used:
                raise ConfigError(
                    f"the program never sees the parameter '{name}': give `input`, or use {{{name}}} in `command`"
                )

    @property
    def input_file(self) -> str | None:
        """Name of the input file."""
        return f"input.{self.input}" if self.input in ("json", "csv") else self.input

    @property
    def program(self) -> str:
        """The program, with an absolute path if it has one at all."""
        program = self._format(self.command[0], {"folder": self.folder})[0]
        return str(Path(self.folder, Path(program).expanduser())) if os.sep in program else program

    def arguments(self, values: Mapping[str, float], workdir: str) -> list[str]:
        """The arguments for parameters and seed `values`; numbers have their full precision."""
        values = {**values, **self._paths(workdir)}
        return [argument.format_map(values) for argument in self.command[1:]]

    def build(self) -> Command:
        """The program, ready to be called.

        Raises:
            SimulatorError: It is not there, or what it needs is not.
        """
        return Command(self)

    def _paths(self, workdir: str) -> dict[str, Any]:
        """Values of the placeholders that are there for every run."""
        _, output = output_format(self.output)
        files = {"input": self.input_file, "output": output}
        paths = {key: os.path.join(workdir, name) for key, name in files.items() if name is not None}
        return {"folder": self.folder, "workdir": workdir, **paths}

    def _format(self, argument: str, values: Mapping[str, Any]) -> tuple[str, set[str]]:
        """An argument with its placeholders filled in, and which these were."""
        try:
            used = {name for _, name, _, _ in string.Formatter().parse(argument) if name is not None}
            for name in used - values.keys():
                hint = f"it needs `{name}:`" if name in ("input", "output") else nearest(name, values)
                raise ConfigError(
                    f"command: no placeholder {{{name}}} is known in '{argument}'; {hint}; double braces that are meant"
                )
            return argument.format_map(values), used
        except (ValueError, LookupError, AttributeError) as error:
            raise ConfigError(
                f"command: '{argument}' cannot be filled in: {error}; double braces that are meant"
            ) from error

    def _used_by_template(self) -> set[str]:
        if self.template is None:
            return set()
        import jinja2
        from jinja2 import meta

        environment = _environment()
        for name in self.names:
            environment.globals.pop(name, None)  # A parameter takes the place of what Jinja calls the same.
        try:
            used = meta.find_undeclared_variables(environment.parse(self.template)) - environment.globals.keys()
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(
                f"the template {self.input} has an error in line {error.lineno}: {error.message}"
            ) from error
        for name in used - {*self.names, "seed"}:
            hint = nearest(name, [*self.names, "seed"])
            raise ConfigError(f"the template {self.input} has '{name}', which is no parameter; {hint}")
        return used


class Command:
    """A program as a simulator: `theta (d,), seed -> x (k,)`.

    Each run has a folder of its own as working directory. What the program prints is read as it comes, and only its
    end is remembered; a failed run's folder is kept with it.

    Arguments:
        spec: The program.

    Raises:
        SimulatorError: It is not there, or what it needs is not.
    """

    def __init__(self, spec: CommandSpec) -> None:
        self.spec = spec
        self._program = _find(spec.program)
        self._form, self._output = output_format(spec.output)
        self._template = None if spec.template is None else _environment().from_string(spec.template)
        try:
            self._folders = RunFolders(spec.workdir)
        except OSError as error:
            raise SimulatorError(
                f"no folder can be made for the program's runs: {error}; name another place with `workdir`"
            ) from error

    def __call__(self, theta: Array, seed: int) -> Array:
        values = {**dict(zip(self.spec.names, map(float, theta), strict=True)), "seed": seed}
        folder = None
        try:
            folder = self._folders.make(f"seed-{seed}")
            x = self._run(folder, values)
        except ProgramError as error:
            assert folder is not None
            self._folders.keep(folder)
            # Without what differs from run to run: equal reasons are counted together.
            reason = _printable(str(error).replace(f"{folder}{os.sep}", ""))
            raise ProgramError(error.status, f"{reason} (see {self._folders.failures})") from error
        except OSError as error:
            # The parameters have no part in a full disk or too many processes: it is worth another try.
            if folder is not None:
                self._folders.remove(folder)
            reason = f"the system did not let the run be made: {error.strerror or error}"
            raise ProgramError(Status.CRASHED, reason) from error
        self._folders.remove(folder)
        return x

    def _run(self, folder: Path, values: Mapping[str, float]) -> Array:
        self._write_input(folder, values)
        again = shlex.join([self._program, *self.spec.arguments(values, ".")])
        (folder / "temperflow.command").write_text(again + "\n", errors="surrogateescape")
        wanted = MAX_BYTES if self._output is None else 0
        printed = run_program([self._program, *self.spec.arguments(values, str(folder))], folder, wanted)
        try:
            if self._output is None and printed.count > MAX_BYTES:
                raise OutputError(f"the program printed more than {MAX_BYTES >> 20} MiB; it must print x only")
            source = printed.kept if self._output is None else folder / self._output
            result = read_output(source, self._form, self.spec.fields)
        except OutputError as error:
            raise ProgramError(Status.WRONG_TYPE, str(error)) from error
        status, x, reason = flatten_output(result)
        if x is None:
            raise ProgramError(status, reason)
        return x

    def _write_input(self, folder: Path, values: Mapping[str, float]) -> None:
        # A program need not make the folder of its output.
        if self._output is not None:
            (folder / self._output).parent.mkdir(parents=True, exist_ok=True)
        if self.spec.input_file is None:
            return
        path = folder / self.spec.input_file
        if self._template is not None:
            try:
                text = self._template.render(values)
            except Exception as error:
                reason = f"the template {path.name} failed with {type(error).__name__}: {error}"
                raise ProgramError(Status.RAISED, reason) from error
            path.write_bytes(text.encode(errors="surrogateescape"))
        elif self.spec.input == "json":
            path.write_text(json.dumps(values) + "\n")
        else:
            with path.open("w", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows([values.keys(), values.values()])


def _find(program: str) -> str:
    if os.sep not in program:
        found = shutil.which(program)
        if found is None:
            raise SimulatorError(
                f"there is no program '{program}' on the PATH of {socket.gethostname()}; install it, or give a path "
                f"with a slash, such as './{program}'"
            )
        return found
    if not os.path.isfile(program):
        raise SimulatorError(f"expected a program at {program}, but there is no such file; build it, or mend `command`")
    if not os.access(program, os.X_OK):
        raise SimulatorError(
            f"{program} is not executable; make it so with chmod +x, or name what runs it before it, as in "
            f"[python, '{{folder}}/{os.path.basename(program)}']"
        )
    return program


def _environment() -> Any:
    import jinja2

    return jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)


def _printable(text: str) -> str:
    """Without line ends and the control sequences of a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)
