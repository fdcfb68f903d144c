"""Discrete data are spread over their cells before a density is fitted."""

from __future__ import annotations

import torch

from learners.embedding import EmbeddingOptions
from learners.features import Features
from learners.lattice import lattice_steps
from learners.rows import Rows
from learners.scaling import DataScaling


def spread(x: torch.Tensor, scaling: DataScaling, generator: torch.Generator) -> torch.Tensor:
    """What the networks see of `x`."""
    features, rows = Features(None, EmbeddingOptions(), torch.device("cpu")), Rows()
    features.scaling = scaling
    rows.append(x)
    everything = torch.arange(len(x))
    return features.of(rows, everything, features.lattice(rows, everything), generator)


def data(n: int = 500) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    count = torch.poisson(torch.full((n,), 4.0), generator=generator).double()
    continuous = torch.randn(n, generator=generator, dtype=torch.float64)
    # Sums in another order differ by rounding, not by a step.
    shares = count / 20 + 1e-16 * continuous
    return torch.stack([continuous, count, shares, torch.full_like(count, 7.0), torch.exp(count)], dim=-1)


def test_steps_are_zero_for_continuous_columns_and_the_gap_for_others() -> None:
    expected = torch.tensor([0.0, 1.0, 0.05, 1.0, torch.e - 1], dtype=torch.float64)
    torch.testing.assert_close(lattice_steps(data()), expected)


def test_every_value_stays_in_its_cell() -> None:
    x = data()
    scaling = DataScaling.fit(x)
    moved = scaling.inverse(spread(x, scaling, torch.Generator().manual_seed(1)))
    assert torch.equal(moved[:, 1].round(), x[:, 1])
    torch.testing.assert_close(moved[:, 0], x[:, 0], rtol=1e-5, atol=1e-5)
    assert moved[:, 1].unique().numel() == moved[:, 3].unique().numel() == len(x)


def test_logarithmic_columns_stay_positive() -> None:
    x = data()[:, 4:]
    scaling = DataScaling.fit(x)
    assert scaling.logarithmic.all()
    assert (scaling.inverse(spread(x, scaling, torch.Generator().manual_seed(1))) > 0).all()


def test_continuous_data_are_left_alone_and_use_no_randomness() -> None:
    x = data()[:, :1]
    scaling, generator = DataScaling.fit(x), torch.Generator().manual_seed(1)
    before = generator.get_state()
    assert torch.equal(spread(x, scaling, generator), scaling(x))
    assert torch.equal(generator.get_state(), before)
