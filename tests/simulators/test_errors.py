"""The hierarchy of errors, and the hint that names what was meant."""

from __future__ import annotations

import pytest

from simulators import errors


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name != "nearest"])
def test_every_error_is_caught_as_a_temperflow_error(name: str) -> None:
    assert issubclass(getattr(errors, name), errors.TemperflowError)


def test_a_wrong_temperature_is_also_a_value_error() -> None:
    assert issubclass(errors.TemperatureError, ValueError)


def test_nearest_names_the_closest_or_else_all() -> None:
    assert errors.nearest("two_mons", ["slcp", "two_moons"]) == "did you mean 'two_moons'?"
    assert errors.nearest("xyz", ["two_moons", "slcp"]) == "valid are: slcp, two_moons"
