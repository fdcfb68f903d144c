"""What a campaign has to tell MLflow, one line of JSON a record, in the order in which it happened."""

from __future__ import annotations

__all__ = [
    "CAMPAIGN",
    "Artifact",
    "Begin",
    "Dataset",
    "End",
    "Figures",
    "Metrics",
    "Model",
    "Params",
    "Record",
    "RunStatus",
    "Tags",
    "Text",
    "parse",
]

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

#: Key of the campaign's own run; all others are nested in it.
CAMPAIGN = "campaign"

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    run: str = CAMPAIGN
    """Key of the run that it belongs to."""


class Begin(_Record):
    """A run begins, or goes on after an interruption."""

    kind: Literal["begin"] = "begin"
    name: str
    """Name of the run."""
    experiment: str
    """Experiment in which a new run appears."""
    time: int
    """Milliseconds since 1970."""
    tags: dict[str, str] = {}
    """Tags of a new run."""


class Params(_Record):
    """Parameters."""

    kind: Literal["params"] = "params"
    values: dict[str, str]
    """Name to value."""


class Tags(_Record):
    """Tags; a later value replaces an earlier one."""

    kind: Literal["tags"] = "tags"
    values: dict[str, str]
    """Name to value."""


class Metrics(_Record):
    """Values at one moment."""

    kind: Literal["metrics"] = "metrics"
    step: int
    """Simulations so far."""
    time: int
    """Milliseconds since 1970."""
    values: dict[str, float]
    """Name to finite value."""


class Artifact(_Record):
    """A file as it is when it is delivered."""

    kind: Literal["artifact"] = "artifact"
    path: str
    """Its path, relative to the run directory. What lies outside is not delivered."""
    folder: str | None
    """Folder of the run's artifacts."""


class Text(_Record):
    """A small file by its contents."""

    kind: Literal["text"] = "text"
    text: str
    """Contents."""
    name: str
    """Path in the run's artifacts."""


class Dataset(_Record):
    """What was simulated, and where it is."""

    kind: Literal["dataset"] = "dataset"
    uri: str
    """Address of the Parquet files."""
    digest: str
    """Identity of their rows."""
    rows: int
    """How many rows."""


class Figures(_Record):
    """The moment to draw the campaign as it is."""

    kind: Literal["figures"] = "figures"
    step: int
    """Simulations so far."""
    time: int
    """Milliseconds since 1970."""


class Model(_Record):
    """The posterior, to be registered."""

    kind: Literal["model"] = "model"
    directory: str
    """Folder of the saved posterior, relative to the run directory."""
    digest: str
    """Identity of the saved posterior."""
    name: str
    """Name in the registry."""


class End(_Record):
    """A run ends."""

    kind: Literal["end"] = "end"
    status: RunStatus
    """How."""
    time: int
    """Milliseconds since 1970."""


Record = Annotated[
    Begin | Params | Tags | Metrics | Artifact | Text | Dataset | Figures | Model | End,
    Field(discriminator="kind"),
]
_ADAPTER: TypeAdapter[Record] = TypeAdapter(Record)


def parse(line: bytes) -> Record:
    """The record of a line.

    Raises:
        ValueError: It is none.
    """
    return _ADAPTER.validate_json(line)
