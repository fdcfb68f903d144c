"""Rows in memory and in a file are the same rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from learners import rows as module
from learners.rows import Rows, RowView, evenly


@pytest.mark.parametrize("in_memory", [1 << 20, 900, 0])
def test_what_was_appended_is_read(in_memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE", 40)
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (10, 1, 25)]
    rows, everything = Rows(in_memory), torch.cat(parts)
    for part in parts:
        rows.append(part)
    assert len(rows) == 36 and rows.width == 4
    positions = torch.tensor([35, 0, 7, 7, 20])
    assert torch.equal(rows[positions], everything[positions])
    chosen = torch.arange(36)[::2]
    pieces = list(rows.pieces(chosen))
    assert [part for part, _ in pieces] == [slice(0, 10), slice(10, 18)]
    assert torch.equal(torch.cat([piece for _, piece in pieces]), everything[chosen])
    view = RowView(rows, chosen)
    assert len(view) == 18 and torch.equal(view[torch.tensor([1, 17])], everything[[2, 34]])


def test_what_is_read_is_a_copy() -> None:
    for in_memory in (1 << 20, 0):
        rows = Rows(in_memory)
        rows.append(torch.zeros(3, 2, dtype=torch.float64))
        rows[torch.arange(3)].add_(1)
        for _, piece in rows.pieces(torch.arange(3)):
            piece.add_(1)
        assert not rows[torch.arange(3)].any()


def test_the_file_is_gone_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    rows = Rows(0)
    rows.append(torch.zeros(1000, 2, dtype=torch.float64))
    # It has no name even while it is used: a process that is killed leaves nothing behind.
    assert not list(tmp_path.iterdir())


def test_some_rows_are_spread_evenly() -> None:
    assert evenly(torch.arange(5), 5).tolist() == [0, 1, 2, 3, 4]
    some = evenly(torch.arange(1000) * 2, 11)
    assert some[0] == 0 and some[-1] == 1998 and (some.diff() - 199.8).abs().max() <= 2


def test_what_is_appended_is_a_copy() -> None:
    rows, given = Rows(), torch.zeros(3, 2, dtype=torch.float64)
    rows.append(given)
    given += 1
    assert not rows[torch.arange(3)].any()
