"""Writes docs/configuration.md from the models themselves: `python -m orchestrator.config_docs` prints it."""

from __future__ import annotations

__all__ = ["EXAMPLE", "FIXED", "markdown", "sections"]

import inspect
import json
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from .config import CampaignConfig

#: A whole configuration: what examples/hudson_bay.yaml comes down to.
EXAMPLE = """\
name: hudson_bay
simulator:
  function: hudson_bay.py:simulate      # theta (d,) -> x (k,)
  timeout: 20                           # seconds
parameters:                             # one line for each of the d columns of theta
  alpha: {distribution: Normal, loc: 1, scale: 0.5, low: 0}
  hare0: {distribution: LogNormal, loc: 2.302585, scale: 1}
observation:
  file: hudson_bay_lynx_hare.csv
  columns: [hare, lynx]
  index: year
temperature: {low: 0.1, high: 2.0}
budget: {simulations: 9000}
seed: 1
"""

#: What `Problem.identity` compares, in the words of the configuration: it stays while a campaign is continued.
FIXED = {
    "simulator": "`simulator.function`, `simulator.task`, or `simulator.command` with `input`, `output` and `fields`",
    "batched": "`simulator.batched`",
    "parameters": "`parameters`",
    "prior": "`prior`",
    "observation": "the numbers in the observation, once there is one that has as many as the results",
    "temperature": "`temperature`",
    "seed": "`seed`",
    "store": "`store`",
}

_INTRODUCTION = """\
# Configuration

<!-- Made by `make docs` from orchestrator/config*.py: change the text there, or in orchestrator/config_docs.py. -->

A campaign is one YAML file, such as this one. What it leaves out has a default.

```yaml
{example}```

An unknown key is an error that names the nearest valid one. Give exactly one of `simulator.function`,
`simulator.task` and `simulator.command`. A task brings its own prior; with the others give exactly one of `parameters`
and `prior`.

A parameter's `distribution` is a univariate class of `torch.distributions` that has quantiles: Normal, LogNormal,
Uniform, Beta, Gamma, InverseGamma, Exponential, HalfNormal, HalfCauchy, Cauchy, Laplace, StudentT and some more. `low`
and `high` truncate it; for Uniform they are its arguments.

## Changing a key for one run

`--set KEY=VALUE`, as often as wanted: the key with dots, the value in YAML.

```bash
temperflow run examples/hudson_bay.yaml --set budget.simulations=2000 --set "learner.members=[gaussian, affine]"
```

From Python, sections are arguments: `Campaign(..., temperature={{"low": 0.2, "high": 1.0}}, seed=3)`. Only the keys of
`simulator` come as `simulator_options={{"timeout": 20}}`.

## How paths are resolved

- `simulator.function`, `prior` and `observation`, where they name files: relative to the configuration file's folder.
  `package.module:name` is imported as in Python.
- `learner.distance` and `learner.embedding`, where they name files: likewise.
- Functions have that folder as their working directory, on nodes where it exists.
- `simulator.command`, `simulator.input` and `simulator.workdir`: a program with a slash in its name, a template and the
  working folders are relative to the same folder. Other arguments are left as they are, and a program runs in a folder
  of its own: write `{{folder}}/mesh.dat` for a file of yours.
- `store`: relative to the run directory.
- The run directory (`--dir`, else `runs/NAME`) and MLflow's sqlite file: relative to the folder in which the command is
  given.

The simulator's file or program must be at the same path on every node. The other files, and the run directory, are
needed only where the command is given.

## What may change when a campaign is continued

`temperflow run` on an existing run directory continues it. It refuses if one of these has changed:

{fixed}

All else may change: `budget`, `learner`, `acquisition`, `calibration`, `tracking`, `reference`, and the simulator's
`resources`, `timeout` and `retries`; `name` too, if `--dir` names the run directory. A posterior that was trained on
all that the budget allows stays as it is: to train it anew with other `learner` keys, raise the budget, or delete the
folder `posterior` in the run directory.

Of a function, its name and the absolute path of its file are compared, not its code; of a program its path, its
arguments and its whole template. A campaign that was started from Python with a callable is not compared with that
callable, nor with its prior: to keep them is up to you. Of any prior the number and the names of the parameters are.

"""


def markdown() -> str:
    """The whole page."""
    fixed = "\n".join(f"- {key}" for key in FIXED.values())
    introduction = _INTRODUCTION.format(example=EXAMPLE, fixed=fixed)
    return introduction + "\n".join(_section(key, model) for key, model in sections(CampaignConfig))


def sections(model: type[BaseModel], key: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """`model` and all models within, depth first, each with its dotted key (empty for the first)."""
    yield key, model
    for name, field in model.model_fields.items():
        inner = _inner_model(field.annotation)
        if inner is not None:
            yield from sections(inner, _inner_key(key, name, field))


def _section(key: str, model: type[BaseModel]) -> str:
    lines = [f"## {f'`{key}`' if key else 'All keys'}", "", _line(inspect.getdoc(model) or ""), ""]
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        meaning = _line(field.description or "")
        if _inner_model(field.annotation) is not None:
            inner = _inner_key(key, name, field)
            # GitHub drops dots and backticks from a heading's anchor.
            meaning += f" See [`{inner}`](#{inner.lower().replace('.', '')})."
        cells = f"`{name}`", _type(field.annotation) + _constraints(field), _default(field), meaning
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _inner_key(key: str, name: str, field: FieldInfo) -> str:
    return f"{key}.{name}".lstrip(".") + (".NAME" if get_origin(field.annotation) is dict else "")


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation is, or holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for a in get_args(annotation) if (m := _inner_model(a)) is not None), None)


def _line(text: str) -> str:
    return " ".join(text.split())


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, BaseModel):
        return "its own"
    return "none" if field.default is None else f"`{json.dumps(field.default)}`"


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), [a for a in get_args(annotation) if a is not type(None)]
    if origin in (Union, types.UnionType):
        return " or ".join(map(_type, arguments))
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"mapping, name to {_type(arguments[1])}"
    if _inner_model(annotation) is not None:
        return "section"
    return {str: "text", int: "integer", float: "number", bool: "true or false"}.get(annotation, "value")


def _constraints(field: FieldInfo) -> str:
    symbols = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    bounds = [(symbols[k], getattr(c, k)) for c in field.metadata for k in symbols if getattr(c, k, None) is not None]
    patterns = [c.pattern for c in field.metadata if getattr(c, "pattern", None)]
    # Integers whole: those that are large would be told in powers of ten.
    told = [f" {s} {value}" if isinstance(value, int) else f" {s} {value:g}" for s, value in bounds]
    return " and".join(told) + "".join(f", `{p}`" for p in patterns)


if __name__ == "__main__":
    print(markdown(), end="")
