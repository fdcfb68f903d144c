"""The journal, and which simulations a model may be trained on: nothing depends on which of them end first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from disks import fill, mounted

from orchestrator.journal import ProposalJournal
from orchestrator.proposal import ProposalKind, Proposals, row_seeds
from orchestrator.start_order import UNFINISHED_SHARE, cut


def proposals(first: int, n: int) -> Proposals:
    theta = np.random.default_rng(first).normal(size=(n, 3))
    density = np.where(np.arange(n) % 2, np.nan, -1.5)
    return Proposals.of_kind(first, theta, ProposalKind.TEMPERED, 7, density, np.full(n, 0.3))


def equal(a: Proposals, b: Proposals) -> bool:
    names = ("id", "theta", "beta", "kind", "log_density", "seed")
    return all(np.array_equal(getattr(a, n), getattr(b, n), equal_nan=n in ("beta", "log_density")) for n in names)


def test_what_was_recorded_comes_back_unchanged(tmp_path: Path) -> None:
    journal = ProposalJournal(tmp_path / "pending")
    assert not len(journal.read())
    journal.rotate(Proposals.none(3))
    parts = [proposals(0, 5), proposals(5, 1), proposals(6, 200)]
    for part in parts:
        journal.record(part, pytest.fail)
        assert equal(ProposalJournal(tmp_path / "pending").read().take(part.id), part)
    journal.rotate(parts[1])
    journal.close()
    assert equal(ProposalJournal(tmp_path / "pending").read(), parts[1])


@pytest.mark.parametrize("missing", [1, 7, 100])
def test_a_torn_end_costs_the_last_batch_only(tmp_path: Path, missing: int) -> None:
    journal = ProposalJournal(tmp_path / "pending")
    journal.rotate(proposals(0, 4))
    journal.record(proposals(4, 4), pytest.fail)
    journal.close()
    content = (tmp_path / "pending").read_bytes()
    (tmp_path / "pending").write_bytes(content[:-missing])
    assert equal(ProposalJournal(tmp_path / "pending").read(), proposals(0, 4))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "1m") as folder:
        yield folder


def test_while_the_disk_is_full_a_batch_waits_and_no_part_of_it_is_left(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = small_disk / "pending"
    journal = ProposalJournal(path)
    journal.rotate(proposals(0, 4))
    size, ballast = path.stat().st_size, fill(small_disk)
    tries = 0

    def meanwhile() -> None:
        nonlocal tries
        tries += 1
        # The last page of the file had room for a part.
        assert path.stat().st_size == size
        assert equal(ProposalJournal(path).read(), proposals(0, 4))
        if tries == 3:
            ballast.unlink()

    journal.record(proposals(4, 300), meanwhile)
    journal.record(proposals(304, 2), meanwhile)
    journal.close()
    assert tries == 3
    assert caplog.text.count("300 proposals wait to be written") == 1
    assert "No space left" in caplog.text
    expected = Proposals.concatenate([proposals(0, 4), proposals(4, 300), proposals(304, 2)])
    assert equal(ProposalJournal(path).read(), expected)


def test_what_cannot_be_written_anew_goes_on(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = small_disk / "pending"
    journal = ProposalJournal(path)
    journal.rotate(proposals(0, 4))
    ballast = fill(small_disk)
    journal.rotate(proposals(1, 1))
    assert "cannot be written anew" in caplog.text
    assert sorted(small_disk.iterdir()) == [ballast, path]
    with pytest.raises(OSError, match="No space left"):
        ProposalJournal(path).rotate(proposals(1, 1))
    ballast.unlink()
    journal.record(proposals(4, 2), pytest.fail)
    assert equal(ProposalJournal(path).read(), Proposals.concatenate([proposals(0, 4), proposals(4, 2)]))
    journal.rotate(proposals(5, 1))
    journal.close()
    assert equal(ProposalJournal(path).read(), proposals(5, 1))


def test_seeds_depend_on_campaign_and_id_and_never_repeat() -> None:
    ids = np.arange(1_000_000)
    seeds = row_seeds(3, ids)
    assert len(np.unique(seeds)) == len(ids)
    assert seeds.min() >= 0 and seeds.max() < 2**32
    assert np.array_equal(row_seeds(3, ids[500:600]), seeds[500:600])
    assert (row_seeds(4, ids) != seeds).mean() > 0.999


@pytest.mark.parametrize("seed", range(20))
def test_the_cut_is_the_largest_with_few_missing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    next_id = int(rng.integers(1, 400))
    in_flight = rng.permutation(np.flatnonzero(rng.random(next_id) < rng.choice([0.0, 0.02, 0.06, 0.5])))
    before, missing = cut(in_flight, next_id)
    assert missing == (in_flight < before).sum()
    allowed = [c for c in range(next_id + 1) if (in_flight < c).sum() <= UNFINISHED_SHARE * c]
    assert before == max(allowed)
