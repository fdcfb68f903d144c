"""Where a saved posterior lies, and what its `posterior.json` says. Without torch."""

from __future__ import annotations

__all__ = ["DAMAGE", "FORMAT_VERSION", "SPEC", "TENSORS", "damaged", "read_spec"]

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from simulators.errors import SavedModelError, TemperflowError
from simulators.formats import read_record

FORMAT_VERSION = 7
TENSORS, SPEC = "posterior.safetensors", "posterior.json"
_REMEDY = "save the posterior again"
#: What reading files with missing, surplus or altered parts may raise.
DAMAGE = (
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    SafetensorError,
    TemperflowError,
)


def read_spec(source: str | Path) -> tuple[Path, dict[str, Any]]:
    """The folder of the posterior, which may be that of a run directory, and what `SPEC` holds.

    Raises:
        SavedModelError: Nothing there, damaged, or written by a newer version.
    """
    directory = Path(source)
    if not (directory / SPEC).exists() and (directory / "posterior" / SPEC).exists():
        directory = directory / "posterior"
    if not (directory / SPEC).exists() or not (directory / TENSORS).exists():
        raise SavedModelError(
            f"expected {SPEC} and {TENSORS} in {directory}, but they are not there; has the campaign finished training?"
        )
    return directory, read_record(directory / SPEC, FORMAT_VERSION, SavedModelError, _REMEDY)


def damaged(directory: Path, error: BaseException) -> SavedModelError:
    """What to say of files that cannot be used."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return SavedModelError(f"{directory} is damaged ({reason}); {_REMEDY}")
