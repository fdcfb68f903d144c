"""The explorer's observation: a table to edit, and uploaded files, read as `temperflow sample --x` reads them."""

from __future__ import annotations

__all__ = ["MOST_UPLOAD_BYTES", "ObservationTable", "read_upload"]

import base64
import binascii
import dataclasses
import html
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bokeh.models import (
    ColumnDataSource,
    CustomJS,
    DataTable,
    NumberEditor,
    ScientificFormatter,
    StringFormatter,
    TableColumn,
)

from simulators.errors import ObservationError
from simulators.outcome import Array

from .config import ObservationConfig
from .explorer_style import WIDGETS, short
from .observation import Observation, read_observation

MOST_UPLOAD_BYTES = 2**24
_ROW, _MOST_HEIGHT = 25, 560
#: Column of the rows' labels; a column of numbers has its number as name.
_LABEL = "label"


class ObservationTable:
    """A table of the observation's numbers, one column a series.

    Arguments:
        observation: Its series and their length stay.
        on_edit: Called after each edit.
    """

    def __init__(self, observation: Observation, on_edit: Callable[[], None]) -> None:
        self._first = observation
        names = observation.series or ("x",)
        self._count = len(names)
        length = len(observation.x) // self._count
        index = np.arange(length) if observation.index is None else observation.index
        self._labels = [f"{value:g}" for value in index]
        self._source = ColumnDataSource(self._columns(observation.x))
        label = observation.index_name or ("component" if not observation.series else "row")
        columns = [TableColumn(field=_LABEL, title=_title(label), formatter=StringFormatter(), width=90)]
        numbers = ScientificFormatter(precision=4, power_limit_high=6, power_limit_low=-4)
        columns += [
            TableColumn(field=str(i), title=_title(name), formatter=numbers, editor=NumberEditor(), width=180)
            for i, name in enumerate(names)
        ]
        self.widget = DataTable(
            source=self._source,
            columns=columns,
            editable=True,
            auto_edit=True,
            sortable=False,
            reorderable=False,
            selectable=True,
            index_position=None,
            autosize_mode="none",
            sizing_mode="stretch_width",
            height=min(_MOST_HEIGHT, _ROW * (length + 1) + 15),
            row_height=_ROW,
            name="table",
            stylesheets=[WIDGETS],
        )
        self._source.on_change("data", lambda _attr, _old, _new: on_edit())
        # Bokeh draws a table anew when its rows become others, but not when only their numbers do.
        self._source.js_on_change("data", CustomJS(args={"table": self.widget}, code="table.change.emit()"))

    def show(self, x: Array) -> None:
        """Fills in the numbers `(k,)`."""
        self._source.data = self._columns(x)

    def read(self) -> Observation:
        """What the table holds.

        Raises:
            ObservationError: A cell is empty or no finite number.
        """
        columns = [np.array([_number(v) for v in self._source.data[str(i)]]) for i in range(self._count)]
        x = np.concatenate(columns)
        if not np.isfinite(x).all():
            raise ObservationError(
                f"{int((~np.isfinite(x)).sum())} of {x.size} cells of the table hold no finite number; fill them in"
            )
        return dataclasses.replace(self._first, x=x)

    def _columns(self, x: Array) -> dict[str, object]:
        # Copies: an edit is written into the column itself.
        parts = np.split(np.array(x, dtype=np.float64), self._count)
        return {_LABEL: self._labels, **{str(i): part for i, part in enumerate(parts)}}


def read_upload(name: str, content: str, first: Observation) -> Observation:
    """An uploaded file of the given name and base64 content, in the shape of the first observation.

    Raises:
        ObservationError: It is too large, cannot be read, or has another number of values.
    """
    try:
        raw = base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ObservationError(f"{name} did not arrive whole; upload it again") from error
    if len(raw) > MOST_UPLOAD_BYTES:
        raise ObservationError(f"{name} has {len(raw) / 2**20:.0f} MiB; an observation has at most 16 MiB")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("upload" + Path(name).suffix)
        path.write_bytes(raw)
        columns = list(first.series) if path.suffix.lower() in (".csv", ".parquet") else []
        try:
            x = read_observation(ObservationConfig(file=path.name, columns=columns), Path(folder)).x
        except ObservationError as error:
            raise ObservationError(str(error).replace(str(path), name)) from error
    if x.size != first.x.size:
        raise ObservationError(f"expected an observation of {first.x.size} numbers, got {x.size} in {name}")
    return dataclasses.replace(first, x=x)


def _title(name: str) -> str:
    """A column's title, which the table's script takes for HTML."""
    return html.escape(short(name, 24))


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return float("nan")
