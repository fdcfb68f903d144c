"""From YAML, or values, to the configuration of a campaign; every mistake is told with the nearest valid key."""

from __future__ import annotations

__all__ = ["load_config", "validate_config"]

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from simulators.errors import ConfigError, nearest

from .config import CampaignConfig


class _OnceEach(yaml.SafeLoader):
    """YAML as it should be: a key that is given twice is a mistake, not a correction."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        given: set[str] = set()
        for key, _ in node.value:
            if key.value in given and isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    problem=f"the key '{key.value}' is given twice; remove one", problem_mark=key.start_mark
                )
            given.update([key.value] if isinstance(key, yaml.ScalarNode) else [])
        return super().construct_mapping(node, deep)


def load_config(path: Path, overrides: Sequence[str] = ()) -> CampaignConfig:
    """Reads a configuration file; `overrides` are `dotted.key=value` with values in YAML.

    Raises:
        ConfigError: Missing, malformed, or invalid; names the nearest valid key for an unknown one.
    """
    if not path.is_file():
        raise ConfigError(f"expected a configuration file at {path}, but there is none; check the path")
    try:
        values = yaml.load(path.read_text(), _OnceEach)
    except (yaml.YAMLError, ValueError) as error:  # A date that there is not is a ValueError.
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold `key: value` lines, but holds {type(values).__name__}")
    for override in overrides:
        _set(values, override)
    return validate_config(values, str(path))


def validate_config(values: dict[str, Any], source: str) -> CampaignConfig:
    """The model of `values`, or a `ConfigError` that lists every problem."""
    try:
        return CampaignConfig.model_validate(values)
    except ValidationError as error:
        problems = "\n".join(f"  {_explain(dict(e))}" for e in error.errors())
        raise ConfigError(f"{source} cannot be used:\n{problems}\nsee docs/configuration.md") from error


def _set(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"expected --set key=value, got '{override}'; for example --set budget.simulations=500")
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override}: '{parent}' is a value, not a section")
    try:
        values[last] = yaml.load(text, _OnceEach)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML: {' '.join(str(error).split())}") from error


def _explain(error: dict[str, Any]) -> str:
    """One line for one of pydantic's errors: where, what was expected, what came."""
    location = [str(part) for part in error["loc"]]
    where = ".".join(location)
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key; {nearest(location[-1], _keys_at(location[:-1]))}"
    if error["type"] == "missing":
        return f"{where}: required, but missing"
    message = str(error["msg"]).removeprefix("Value error, ")
    came = "" if error["type"] == "value_error" else f", got {error['input']!r}"
    return f"{where}: {message}{came}" if where else f"{message}{came}"


def _keys_at(location: Sequence[str]) -> list[str]:
    """The valid keys of the section at `location`."""
    model: Any = CampaignConfig
    for part in location:
        if part not in model.model_fields:
            continue  # a name that the user gave, such as a parameter's
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if model is None:
            return []
    return list(model.model_fields)
