"""Tables of a benchmark in RESULTS.md, between two marks: they show what is in its Parquet file."""

from __future__ import annotations

__all__ = ["as_table", "number", "replace_marked"]

from collections.abc import Sequence
from pathlib import Path


def replace_marked(benchmark: str, table: str, results: Path) -> None:
    """Replaces what is between the marks of `benchmark` in `results`; leaves a file without marks as it is."""
    first, last = f"<!-- made by {benchmark} -->", f"<!-- end of what {benchmark} made -->"
    text = results.read_text() if results.exists() else ""
    if first not in text or last not in text:
        return
    before, rest = text.split(first)
    after = rest.split(last)[1]
    results.write_text(f"{before}{first}\n\n{table}\n\n{last}{after}")


def as_table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown of a table."""
    rows = [titles, ["---"] * len(titles), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def number(value: float | None, strong: bool = False) -> str:
    """Three digits; nothing for what is not known."""
    if value is None or value != value:
        return ""
    return f"**{value:.3f}**" if strong else f"{value:.3f}"
