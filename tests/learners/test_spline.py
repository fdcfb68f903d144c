"""The rational-quadratic spline: zuko's function, from parameters laid out the other way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from zuko.transforms import MonotonicRQSTransform

from learners.spline import RationalQuadraticSpline
from learners.spline_inverse import invert_spline

BINS = 8


def parameters(scale: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(3 * BINS - 1, 40, generator=generator, dtype=torch.float64)


GRID = torch.linspace(-8, 8, 321, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])
class TestSpline:
    def test_equals_zuko(self, scale: float) -> None:
        phi = parameters(scale)
        reference = MonotonicRQSTransform(*phi.T.split([BINS, BINS, BINS - 1], dim=-1), slope=1e-3)
        y, log_slope = RationalQuadraticSpline(phi).call_and_ladj(GRID)
        expected, expected_log_slope = reference.call_and_ladj(GRID.expand(-1, 40))
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(log_slope, expected_log_slope, rtol=1e-6, atol=1e-6)

    def test_inverse(self, scale: float) -> None:
        spline = RationalQuadraticSpline(parameters(scale))
        torch.testing.assert_close(spline.inv(spline(GRID)), GRID.expand(-1, 40), rtol=0, atol=1e-6)

    def test_inverse_in_numpy_is_the_same(self, scale: float) -> None:
        phi, y = parameters(scale), GRID[::8, 0][:40]
        expected = RationalQuadraticSpline(phi).inv(y)
        np.testing.assert_allclose(invert_spline(phi.numpy(), y.numpy()), expected, rtol=0, atol=1e-9)

    def test_increases(self, scale: float) -> None:
        assert (RationalQuadraticSpline(parameters(scale))(GRID).diff(dim=0) > 0).all()

    def test_slope_equals_autograd(self, scale: float) -> None:
        spline = RationalQuadraticSpline(parameters(scale))
        x = GRID.expand(-1, 40).clone().requires_grad_()
        (slope,) = torch.autograd.grad(spline(x).sum(), x)
        torch.testing.assert_close(spline.log_abs_det_jacobian(x, spline(x)), slope.log())


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_gradients_of_values_and_slopes(scale: float) -> None:
    """With respect to parameters and values, in all bins and outside of them; broadcasting included."""
    phi = parameters(scale)[:, :7].clone().requires_grad_()
    x = torch.linspace(-6.3, 6.1, 5 * 7, dtype=torch.float64).reshape(7, 5).mT.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p, v: RationalQuadraticSpline(p).call_and_ladj(v), (phi, x))


def test_parameters_of_zero_are_the_identity() -> None:
    y, log_slope = RationalQuadraticSpline(torch.zeros(3 * BINS - 1, 1).double()).call_and_ladj(GRID)
    torch.testing.assert_close(y, GRID)
    torch.testing.assert_close(log_slope, torch.zeros_like(GRID))


def test_extreme_parameters_stay_finite() -> None:
    phi = torch.where(torch.arange(3 * BINS - 1) % 2 == 0, 1e6, -1e6)[:, None].requires_grad_()
    y, log_slope = RationalQuadraticSpline(phi).call_and_ladj(GRID.float())
    (y.sum() + log_slope.sum()).backward()
    assert y.isfinite().all() and log_slope.isfinite().all()
    assert phi.grad is not None and phi.grad.isfinite().all()
    phi = phi.detach().expand(-1, len(GRID))
    assert np.isfinite(invert_spline(phi.numpy(), GRID[:, 0].float().numpy())).all()
