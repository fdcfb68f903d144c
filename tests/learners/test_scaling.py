"""Data scaling: a monotone bijection that tames heavy tails."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from learners.scaling import DataScaling


def columns() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(2000, generator=generator, dtype=torch.float64)
    heavy = normal / torch.randn(2000, generator=generator, dtype=torch.float64).abs() ** 1.5
    return {
        "normal": 3 + 0.1 * normal,
        "heavy": heavy,
        "far_from_zero": 1e6 + normal,
        "decades": torch.exp(4 * normal),
        "minuscule": torch.exp(4 * normal - 40),
        "negative_decades": -torch.exp(4 * normal),
        "constant": torch.full((2000,), 7.0, dtype=torch.float64),
        "zero": torch.zeros(2000, dtype=torch.float64),
        "integer": torch.poisson(torch.full((2000,), 3.0), generator=generator).double(),
        "mostly_zero": torch.where(normal > 1.5, normal, 0.0),
    }


COLUMNS = columns()


@pytest.mark.parametrize("x", COLUMNS.values(), ids=COLUMNS)
class TestColumn:
    def test_inverse_undoes_scaling(self, x: Tensor) -> None:
        scaling = DataScaling.fit(x[:, None])
        # z is kept in single precision: seven digits of z, times the slope of the inverse.
        spread = float(x.std()) + 1e-12
        torch.testing.assert_close(scaling.inverse(scaling(x[:, None]))[:, 0], x, rtol=3e-5, atol=1e-5 * min(1, spread))

    def test_order_is_kept(self, x: Tensor) -> None:
        values = x.sort().values
        beyond = torch.cat([values[:1] - values.std() - 1, values, values[-1:] + values.std() + 1])
        z = DataScaling.fit(x[:, None])(beyond[:, None])[:, 0]
        assert (z.diff() >= 0).all() and z.isfinite().all()

    def test_dictionary_gives_the_same_map(self, x: Tensor) -> None:
        scaling = DataScaling.fit(x[:, None])
        again = DataScaling.from_dict(scaling.as_dict())
        z = scaling(x[:, None])
        assert torch.equal(again(x[:, None]), z)
        assert torch.equal(again.inverse(z), scaling.inverse(z))

    def test_scaled_data_are_of_order_one(self, x: Tensor) -> None:
        z = DataScaling.fit(x[:, None])(x[:, None])
        assert z.isfinite().all() and float(z.abs().max()) < 30
        assert len(x.unique()) == 1 or 0.1 < float(z.std()) < 5


def test_positive_columns_spanning_decades_are_logarithmic() -> None:
    names = list(COLUMNS)
    scaling = DataScaling.fit(torch.stack(list(COLUMNS.values()), dim=-1))
    assert {name for name, log in zip(names, scaling.logarithmic, strict=True) if log} == {"decades", "minuscule"}


def test_linear_within_five_scales() -> None:
    x = torch.linspace(-4.9, 4.9, 11).double()[:, None]
    scaling = DataScaling(torch.zeros(1), torch.ones(1), 2 * torch.ones(1))
    torch.testing.assert_close(scaling(2 * x + 1).double(), x, rtol=1e-6, atol=1e-6)


def test_slope_is_continuous_at_the_knee() -> None:
    scaling = DataScaling(torch.zeros(1), torch.zeros(1), torch.ones(1))
    z = scaling(torch.tensor([[4.99], [5.0], [5.01]]))
    torch.testing.assert_close(z[1] - z[0], z[2] - z[1], rtol=2e-2, atol=0)


@pytest.mark.parametrize("outlier", [1e9, 1e200, -1e200])
def test_one_huge_outlier_does_not_hide_the_column(outlier: float) -> None:
    x = COLUMNS["normal"].clone()[:, None]
    expected = DataScaling.fit(x)
    x[0] = outlier
    scaling = DataScaling.fit(x)
    torch.testing.assert_close(scaling(x[1:]), expected(x[1:]), rtol=0, atol=0.05)
    assert scaling(x).isfinite().all()


@pytest.mark.parametrize("outlier", [1e6, 1e30, -1e200])
def test_one_huge_outlier_does_not_hide_the_few_that_differ(outlier: float) -> None:
    x = torch.zeros(1000, 1, dtype=torch.float64)
    x[:100] = torch.linspace(1.0, 3.0, 100).double()[:, None]
    expected = DataScaling.fit(x)
    x[-1] = outlier
    scaling = DataScaling.fit(x)
    low, high = scaling(torch.tensor([[1.0], [3.0]]))
    assert low > 0.3 and high - low > 0.5
    assert scaling.scale < 5 * expected.scale


def test_rare_counts_are_scaled_by_their_standard_deviation() -> None:
    x = torch.poisson(torch.full((1000, 1), 0.05), generator=torch.Generator().manual_seed(0)).double()
    assert torch.equal(DataScaling.fit(x).scale, (x + 0.5).sqrt().std(dim=0))


def test_units_may_be_as_small_as_they_like() -> None:
    alike = [name for name in COLUMNS if name != "integer"]  # those are counts in one unit alone
    x = torch.stack([COLUMNS[name] for name in alike], dim=-1)
    z = DataScaling.fit(x)(x)
    for unit in (1e-9, 1e-21, 1e-100, 1e12):
        torch.testing.assert_close(DataScaling.fit(unit * x)(unit * x), z, rtol=1e-4, atol=1e-4)


def test_small_positive_numbers_are_told_apart_and_old_saves_do_as_they_did() -> None:
    x = torch.cat([1e-40 * COLUMNS["decades"], torch.zeros(1)])[:, None].double()
    scaling = DataScaling.fit(x[:-1])
    assert scaling.logarithmic.all()
    assert len(scaling(x).unique()) > 0.99 * len(x.unique())
    for again in (DataScaling.from_dict(json.loads(json.dumps(scaling.as_dict()))), scaling.to("cpu")):
        assert torch.equal(again(x), scaling(x))
    old = {key: value for key, value in scaling.as_dict().items() if key != "floor"}
    assert len(DataScaling.from_dict(old)(x).unique()) == 1


def test_batch_shapes_are_kept() -> None:
    scaling = DataScaling.fit(torch.randn(100, 3))
    assert scaling.dim == 3
    assert scaling(torch.randn(4, 5, 3)).shape == scaling.inverse(torch.randn(4, 5, 3)).shape == (4, 5, 3)
    assert scaling(torch.randn(3)).shape == (3,)


def test_counts_have_nearly_constant_noise() -> None:
    rate = torch.tensor([3.0, 30.0, 300.0], dtype=torch.float64)
    x = torch.poisson(rate.expand(4000, 3), generator=torch.Generator().manual_seed(0)).reshape(-1, 1)
    scaling = DataScaling.fit(x)
    assert scaling.root.all()
    spread = scaling(x).reshape(4000, 3).std(dim=0)
    assert spread.max() / spread.min() < 1.2
    torch.testing.assert_close(scaling.inverse(scaling(x)), x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(DataScaling.from_dict(scaling.as_dict())(x), scaling(x))


def test_the_slope_is_that_of_the_inverse() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.stack(
        [
            torch.randn(500, generator=generator).double(),
            torch.exp(3 * torch.randn(500, generator=generator)).double(),
            torch.poisson(torch.full((500,), 6.0), generator=generator).double(),
        ],
        dim=1,
    )
    scaling = DataScaling.fit(x)
    assert (scaling.logarithmic.tolist(), scaling.root.tolist()) == ([False, True, False], [False, False, True])
    z = torch.linspace(-1.5, 8, 50).double()[:, None].expand(50, 3).clone().requires_grad_()
    (slope,) = torch.autograd.grad(scaling.inverse(z).sum(), z)
    torch.testing.assert_close(scaling.log_slope(z), slope.log())
