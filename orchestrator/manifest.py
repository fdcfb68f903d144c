"""What a store's manifest says: which files were merged, whether a merge is under way, and so which files count."""

from __future__ import annotations

__all__ = ["ChangingError", "Manifest", "MergedFile", "Merging", "load_manifest", "save_manifest"]

from collections.abc import Collection

from pydantic import BaseModel, ConfigDict, ValidationError

from simulators.errors import RunDirectoryError
from simulators.formats import check_format

from .location import Location

NAME = "_manifest.json"
_FORMAT = 1


class ChangingError(Exception):
    """The list of files and the manifest were read at different moments of a merge, or a file is missing."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MergedFile(_Model):
    """A file that replaced many."""

    name: str
    rows: int
    first_id: int
    last_id: int
    bytes: int


class Merging(_Model):
    """A merge under way: `into` replaces `files` from the moment at which it is there."""

    into: str
    files: tuple[str, ...]


class Manifest(_Model):
    """`_manifest.json` of a store. Files that it does not name count as well."""

    format: int = _FORMAT
    merged: tuple[MergedFile, ...] = ()
    merging: Merging | None = None

    def visible(self, listed: Collection[str]) -> list[str]:
        """The Parquet files that hold each row once, of those in the folder; sorted.

        The manifest must have been read after the folder.

        Raises:
            ChangingError: Look again; if it stays so, a file is missing.
        """
        replaced: set[str] = set()
        needed = {file.name for file in self.merged}
        if self.merging is not None:
            if self.merging.into in listed:
                replaced = set(self.merging.files)
            else:
                needed |= set(self.merging.files)
        missing = needed - replaced - set(listed)
        if missing:
            raise ChangingError(sorted(missing)[0])
        return sorted(name for name in listed if _is_data(name) and name not in replaced)


def load_manifest(location: Location) -> Manifest:
    """The manifest of a store; an empty one if nothing was ever merged.

    Raises:
        RunDirectoryError: Damaged, or of a newer version.
    """
    try:
        text = location.read(NAME)
    except FileNotFoundError:
        return Manifest()
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        raise RunDirectoryError(
            f"{NAME} of the store {location.text} is damaged or of a newer temperflow; upgrade, or delete that "
            "file: no simulation is lost with it"
        ) from error
    check_format(f"the store {location.text}", manifest.format, _FORMAT, RunDirectoryError)
    return manifest


def save_manifest(location: Location, manifest: Manifest) -> None:
    """Replaces the manifest."""
    content = manifest.model_dump_json(indent=1).encode()
    location.put(NAME, lambda file: file.write(content))


def _is_data(name: str) -> bool:
    return name.endswith(".parquet") and not name.startswith((".", "_"))
