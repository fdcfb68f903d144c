"""The source that a network was distilled from, beside the saved posterior: `source.safetensors`, read when wanted.

Weights and plain JSON, as everything saved. Functions of the user (a likelihood, a distance) are not in it.
"""

from __future__ import annotations

__all__ = ["SOURCE", "SavedSource", "read_source", "save_source"]

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulators.errors import SavedModelError

from .cost import Cost, no_distance
from .known import KnownLikelihood
from .packed import pack, unpack
from .ratio import Ratio
from .saved_files import DAMAGE
from .source import Source
from .surrogate import Surrogate, SurrogateOptions
from .surroundings import as_usual
from .whitening import Whitening

SOURCE = "source.safetensors"
_FORMAT = 1
_SPEC = "temperflow"


@dataclass(frozen=True)
class SavedSource:
    """What a file of a source holds; nothing is made of it before `restore`.

    Attributes:
        raw: The bytes of the file, empty if it is not there.
        digest: Their SHA-256 as it was when the posterior was saved.
    """

    raw: bytes
    digest: str

    @as_usual()
    def restore(self) -> Source:
        """The source, to be evaluated.

        Raises:
            SavedModelError: Damaged, or written by another version.
        """
        try:
            if hashlib.sha256(self.raw).hexdigest() != self.digest:
                raise SavedModelError("it is missing, damaged, or belongs to another training")
            spec, weights = unpack(_SPEC, self.raw)
            if spec["format"] != _FORMAT:
                raise SavedModelError(f"expected format {_FORMAT}, got {spec['format']}")
            source = _built(spec)
            if source.as_dict() != {k: v for k, v in spec.items() if k != "format"}:
                raise SavedModelError("its networks are made otherwise in this version")
            source.resume(weights)
        except DAMAGE as error:
            reason = str(error).splitlines()[0]
            raise SavedModelError(f"{SOURCE} cannot be used ({reason}); fit and save the posterior again") from error
        return source.eval().requires_grad_(False)


def save_source(source: Source | SavedSource | None, whitening: Whitening, directory: Path) -> str | None:
    """Writes `SOURCE` into `directory`, complete or not at all; returns its digest.

    Nothing is written, and None returned, where there is none, where it is a known likelihood, and where the prior is
    known to its object only.
    """
    path = directory / SOURCE
    if source is None or isinstance(source, KnownLikelihood) or not whitening.exact:
        path.unlink(missing_ok=True)
        return None
    if isinstance(source, SavedSource):
        raw = source.raw
    else:
        raw = pack(_SPEC, {"format": _FORMAT, **source.as_dict()}, source.state_dict())
    temporary = directory / f".{SOURCE}.{os.getpid()}"
    temporary.write_bytes(raw)
    os.replace(temporary, path)
    return hashlib.sha256(raw).hexdigest()


def read_source(directory: Path, digest: str | None) -> SavedSource | None:
    """What `save_source` wrote there, if anything; what is wrong with it is said when it is wanted."""
    if digest is None:
        return None
    try:
        return SavedSource((directory / SOURCE).read_bytes(), digest)
    except OSError:
        return SavedSource(b"", digest)


def _built(spec: dict[str, Any]) -> Source:
    sizes = spec["dim_u"], spec["dim_z"]
    hidden = tuple(spec["hidden"])
    if spec["source"] == "Surrogate":
        options = SurrogateOptions(members=tuple(spec["members"]), hidden=hidden)
        return Surrogate(*sizes, options, 0, spec["curved"])
    if spec["source"] == "Ratio":
        return Ratio(*sizes, hidden, 0)
    if spec["source"] == "Cost":
        return Cost(no_distance, *sizes, hidden, 0)
    raise SavedModelError(f"there is no source '{spec['source']}'")
