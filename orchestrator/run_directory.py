"""A campaign's folder: what is where, which configuration it belongs to, and that only one process writes it."""

from __future__ import annotations

__all__ = ["RunDirectory"]

import json
import logging
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from simulators.errors import RunDirectoryError
from simulators.formats import read_record

from .file_lock import lock
from .store import SimulationStore

logger = logging.getLogger(__name__)

_FORMAT = 1
_COPY = ".campaign.json.copy"


class RunDirectory:
    """Paths and small records of a campaign.

    Layout: `campaign.json` (configuration and records), `simulations/*.parquet`, `pending.arrows` (what is in flight),
    `posterior/`, `metrics.jsonl`, `calibration.json`, `figures/`, `report.html`.

    Arguments:
        path: The folder; made by `create`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: TextIO | None = None

    simulations = property(lambda self: self.path / "simulations")
    posterior = property(lambda self: self.path / "posterior")
    checkpoint = property(lambda self: self.path / "checkpoint.safetensors")
    figures = property(lambda self: self.path / "figures")
    report = property(lambda self: self.path / "report.html")
    metrics = property(lambda self: self.path / "metrics.jsonl")
    journal = property(lambda self: self.path / "pending.arrows")
    calibration = property(lambda self: self.path / "calibration.json")

    @property
    def exists(self) -> bool:
        return (self.path / "campaign.json").is_file()

    def open(
        self, config: dict[str, Any], identity: dict[str, Any], names: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """Creates the folder, or continues it if it has the same identity; returns its records.

        An amortized campaign may be given an observation later, and one whose observation never fitted another.

        Arguments:
            config, identity: What is asked, and what of it may not change.
            names: Names of the parameters, which are the columns of theta; None if the caller writes no rows.

        Raises:
            RunDirectoryError: It holds something else, belongs to another configuration, is in use, or not writable.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunDirectoryError(f"expected a folder at {self.path}, but it is a file; choose another --dir")
        if self.path.exists() and not self.exists and any(not _ours(file.name) for file in self.path.iterdir()):
            raise RunDirectoryError(
                f"{self.path} holds files, but no campaign; choose an empty or new folder with --dir"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._acquire()
        except OSError as error:
            raise RunDirectoryError(
                f"the run directory {self.path} cannot be written: {error.strerror or error}; check whose folder it is "
                "and whether its disk is there and not read-only, or choose another place with --dir"
            ) from error
        try:
            new: dict[str, Any] = {"identity": identity, "id": uuid.uuid4().hex}
            records = {**self.records(), "identity": self.entry("identity")} if self.exists else new
            differing = [key for key in identity if not _same(records["identity"].get(key), identity[key])]
            if "observation" in differing and self._serves(records["identity"].get("observation"), config):
                differing.remove("observation")
            if differing:
                how = ["the order of parameters" if _reordered(records, identity, key) else key for key in differing]
                raise RunDirectoryError(
                    f"{self.path} belongs to another configuration: {', '.join(how)} changed; use the same "
                    "configuration to continue it (budget, learner, acquisition and tracking may change), or another "
                    "--dir to start anew"
                )
            if names is not None:
                self._check_parameters(records.get("names"), names, self._store(config))
                records["names"] = list(names)
            if config.get("store") is not None:
                self._store(config).claim(records["id"], str(self.path))
            return self.update(**{**records, "config": config, "identity": identity})
        except BaseException:
            self.close()
            raise

    def records(self) -> dict[str, Any]:
        """Contents of `campaign.json` or, if that is damaged, of its copy.

        Raises:
            RunDirectoryError: No campaign here, a damaged record, or one of a newer version.
        """
        if not self.exists:
            raise RunDirectoryError(
                f"expected a campaign's run directory at {self.path}, but there is no campaign.json; check the path"
            )
        try:
            return self._read("campaign.json")
        except RunDirectoryError as damage:
            try:
                copied = self._read(_COPY)
            except (OSError, RunDirectoryError):
                raise damage from None
            logger.warning("%s/campaign.json cannot be used; going on with the copy %s", self.path, _COPY)
            return copied

    def entry(self, name: str) -> dict[str, Any]:
        """An entry of `campaign.json` that each campaign has.

        Raises:
            RunDirectoryError: As for `records`, or it is not there.
        """
        found = self.records().get(name)
        if not isinstance(found, dict):
            raise RunDirectoryError(f"{self.path}/campaign.json is damaged (it has no '{name}'); {self._remedy}")
        return found

    @property
    def _remedy(self) -> str:
        where = f"{self.simulations}/*.parquet" if self.simulations.exists() else "the parquet files of its store"
        return (
            "put back a copy of it, or begin anew with another --dir and save the simulations, which are not hurt: "
            f"`temperflow import NEW_DIR FILE --config CONFIG` for each of {where}"
        )

    def _read(self, name: str) -> dict[str, Any]:
        return read_record(self.path / name, _FORMAT, RunDirectoryError, self._remedy)

    def update(self, **values: Any) -> dict[str, Any]:
        """Sets entries of `campaign.json`, atomically; returns all."""
        records = self.records() if self.exists else {"format": _FORMAT}
        records.update(values)
        text = json.dumps(records, indent=1)
        self.write("campaign.json", text)
        # All depends on this file, and disks have been seen to leave an empty one behind.
        self.write(_COPY, text)
        return records

    def write(self, name: str, text: str) -> None:
        """Writes a small file whole or not at all."""
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, content: bytes) -> None:
        """The same for bytes."""
        temporary = self.path / f".{name}.{os.getpid()}"
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # else a power cut may leave the new name, and none of the content
            os.replace(temporary, self.path / name)
        except OSError:
            # What little room a full disk has left is not for a part of it.
            temporary.unlink(missing_ok=True)
            raise

    def store(self) -> SimulationStore:
        """The simulations, in this folder or where the configuration says."""
        return self._store(self.records().get("config", {}) if self.exists else {})

    def close(self) -> None:
        """Lets another process write here."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _serves(self, observed: list[float] | None, config: dict[str, Any]) -> bool:
        """Whether what is simulated is of use for another observation than that of before.

        What was simulated for any is, and so is what was simulated for one that it never fitted: nothing was chosen for
        its sake.
        """
        return observed is None or self._store(config).summary().width != len(observed)

    def _check_parameters(self, recorded: list[str] | None, names: Sequence[str], store: SimulationStore) -> None:
        """Whether the columns of theta are those of before: a prior is known by where it is, not by what it is."""
        stored = store.summary().parameters
        if recorded in (None, list(names)) and stored in (None, len(names)):
            return
        had = f"the parameters {', '.join(recorded)}" if recorded is not None else f"{stored} parameters"
        if recorded is not None and stored not in (None, len(recorded)):
            had += f" in its record and {stored} in its store"
        raise RunDirectoryError(
            f"{self.path} belongs to a campaign with {had}, but the prior has {', '.join(names)}; use the prior of "
            "before, with its parameters in the same order, to continue it, or another --dir to start anew"
        )

    def _store(self, config: dict[str, Any]) -> SimulationStore:
        place = config.get("store")
        if place is None:
            return SimulationStore(self.simulations)
        return SimulationStore(place if "://" in place else self.path / Path(place).expanduser())

    def _acquire(self) -> None:
        self._lock = (self.path / ".lock").open("w")
        if not lock(self._lock):
            raise RunDirectoryError(
                f"{self.path} is being written by another process; wait for it to end, or choose another --dir"
            )


def _ours(name: str) -> bool:
    """Whether a file may be there before there is a campaign: the lock, and what a kill left of the first record."""
    return name == ".lock" or name.startswith(".campaign.json.")


def _same(old: Any, new: Any) -> bool:
    """Whether two parts of an identity say the same: the order of the parameters is that of theta's columns."""
    return bool(old == new) and (not isinstance(new, dict) or list(old) == list(new))


def _reordered(records: dict[str, Any], identity: dict[str, Any], key: str) -> bool:
    return key == "parameters" and records["identity"].get(key) == identity[key]
