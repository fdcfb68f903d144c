"""The Gaussian process: its marginal likelihood, its choice of scales, and what it leaves of what it has not seen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from learners.process import ProcessMean, evidence_loss
from learners.rows import evenly


def _data(n: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    """`z = (sin 2 u_1, u_1 + u_2)` and noise of 0.1, at normal `u` `(n, 2)`."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(n, 2, generator=generator)
    smooth = torch.stack([torch.sin(2 * u[:, 0]), u.sum(dim=1)], dim=-1)
    return u, smooth + 0.1 * torch.randn(n, 2, generator=generator)


def test_evidence_is_that_of_a_normal_distribution_with_the_best_scales() -> None:
    u, z = (t.double() for t in _data(30))
    parameters = torch.tensor([0.3, -0.2, -2.0], dtype=torch.float64)
    a = u / parameters[:2].exp()
    r = 5**0.5 * torch.cdist(a, a, compute_mode="donot_use_mm_for_euclid_dist")
    covariance = (1 + r + r.square() / 3) * torch.exp(-r) + torch.eye(30) * (torch.exp(parameters[2]) + 1e-6)
    expected = 0.0
    for column in z.T:
        variance = float(column @ torch.linalg.solve(covariance, column)) / 30
        law = torch.distributions.MultivariateNormal(torch.zeros(30, dtype=torch.float64), variance * covariance)
        expected -= float(law.log_prob(column)) / 30 / z.shape[1]
    constant = 0.5 + 0.5 * float(torch.log(torch.tensor(2 * torch.pi)))
    assert evidence_loss(u, z, parameters)[0] + constant == pytest.approx(expected, abs=1e-4)


def test_gradient_of_the_evidence_is_that_of_differences() -> None:
    u, z = (t.double() for t in _data(40))
    parameters = torch.tensor([0.3, -0.2, -2.0], dtype=torch.float64)
    _, gradient = evidence_loss(u, z, parameters)
    for i in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[i] = 1e-5
        slope = (evidence_loss(u, z, parameters + step)[0] - evidence_loss(u, z, parameters - step)[0]) / 2e-5
        assert float(gradient[i]) == pytest.approx(slope, rel=1e-4, abs=1e-8)


def test_chosen_scales_are_those_of_the_highest_evidence() -> None:
    u, z = _data(200)
    process = ProcessMean(2, 2)
    process.fit(u, z, torch.zeros(200, dtype=torch.bool), torch.Generator().manual_seed(0))
    design = torch.cat([torch.ones(200, 1), u], dim=-1).double()
    rest = z.double() - design @ process.linear.double()
    chosen = torch.cat([process.log_length, process.log_noise[None]]).double()
    best, gradient = evidence_loss(u.double(), rest / rest.std(dim=0), chosen)
    assert gradient.abs().max() < 1e-3
    for shift in torch.eye(3, dtype=torch.float64):
        assert evidence_loss(u.double(), rest / rest.std(dim=0), chosen + 0.3 * shift)[0] > best
        assert evidence_loss(u.double(), rest / rest.std(dim=0), chosen - 0.3 * shift)[0] > best


def test_what_is_left_of_a_simulation_is_what_a_process_without_it_leaves() -> None:
    u, z = _data(60)
    everything = torch.zeros(60, dtype=torch.bool)
    process = ProcessMean(2, 2)
    left = process.fit(u, z, everything, torch.Generator().manual_seed(0))
    # The same scales and linear part, without the first simulation.
    a = u.double() / process.log_length.double().exp()
    r = 5**0.5 * torch.cdist(a, a, compute_mode="donot_use_mm_for_euclid_dist")
    kernel = (1 + r + r.square() / 3) * torch.exp(-r)
    rest = z.double() - torch.cat([torch.ones(60, 1), u], dim=-1).double() @ process.linear.double()
    noise = torch.exp(process.log_noise.double()) + 1e-6
    inner = kernel[1:, 1:] + noise * torch.eye(59, dtype=torch.float64)
    predicted = kernel[0, 1:] @ torch.linalg.solve(inner, rest[1:])
    assert torch.allclose(left[0].double(), rest[0] - predicted, atol=1e-3)


def test_simulations_at_one_place_are_no_harm() -> None:
    u = torch.zeros(80, 2)
    z = torch.randn(80, 3, generator=torch.Generator().manual_seed(1))
    left = ProcessMean(2, 3).fit(u, z, torch.arange(80) % 10 == 0, torch.Generator().manual_seed(0))
    assert left.isfinite().all()
    assert left.std() == pytest.approx(float(z.std()), rel=0.1)


def test_fit_is_the_same_for_the_same_seed_and_continues() -> None:
    u, z = _data(1500)
    held_out = torch.zeros(1500, dtype=torch.bool)
    held_out[evenly(torch.arange(1500), 150)] = True

    def fitted() -> tuple[ProcessMean, Tensor]:
        process = ProcessMean(2, 2)
        return process, process.fit(u, z, held_out, torch.Generator().manual_seed(0))

    process, left = fitted()
    assert torch.equal(left, fitted()[1])
    again = process.fit(u, z, held_out, torch.Generator().manual_seed(0))
    assert torch.allclose(left, again, atol=0.02)
    assert left[held_out].square().mean().sqrt() < 0.12  # of noise 0.1


def test_the_mean_does_not_depend_on_what_is_asked_beside_it() -> None:
    u, z = _data(900)
    process = ProcessMean(2, 2)
    process.fit(u, z, torch.zeros(900, dtype=torch.bool), torch.Generator().manual_seed(0))
    asked = 2 * torch.randn(2500, 2, generator=torch.Generator().manual_seed(5))  # more than are computed at once
    together = process(asked)
    alone = torch.cat([process(row[None]) for row in asked[::250]])
    # In single precision, with large coefficients of both signs.
    torch.testing.assert_close(together[::250], alone, atol=5e-3, rtol=0)
    assert process(torch.zeros(0, 2)).shape == (0, 2)


def test_far_from_all_simulations_only_the_straight_line_is_left() -> None:
    u, z = _data(200)
    process = ProcessMean(2, 2)
    process.fit(u, z, torch.zeros(200, dtype=torch.bool), torch.Generator().manual_seed(0))
    far = torch.tensor([[1e4, -1e4], [1e6, 1e6]])
    line = torch.cat([torch.ones(2, 1), far], dim=-1) @ process.linear
    torch.testing.assert_close(process(far), line)


def test_a_process_finds_a_curve_and_knows_what_it_leaves() -> None:
    u, z = _data(300, seed=1)
    process = ProcessMean(2, 2)
    left = process.fit(u, z, torch.zeros(300, dtype=torch.bool), torch.Generator().manual_seed(0))
    fresh_u, fresh_z = _data(1000, seed=5)
    error = (fresh_z - process(fresh_u)).abs().quantile(0.68)
    assert float(error) == pytest.approx(0.1, rel=0.3)
    # Left-out residuals tell the error at new points; those of the fit itself would be too small.
    assert float(left.abs().quantile(0.68)) == pytest.approx(float(error), rel=0.15)
    assert float((z - process(u)).abs().quantile(0.68)) < 0.9 * float(error)


@pytest.mark.parametrize(("n", "d", "k"), [(60, 1, 1), (60, 30, 2), (1500, 2, 3)])
def test_a_process_of_any_size(n: int, d: int, k: int) -> None:
    u = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    z = u[:, :1].expand(n, k).clone()
    z[:, -1] = 3.0  # a constant
    process = ProcessMean(d, k)
    nothing = torch.zeros(n, dtype=torch.bool)
    assert process.fit(u, z, nothing, torch.Generator().manual_seed(0)).isfinite().all()
    torch.testing.assert_close(process(u), z, rtol=0, atol=0.05)
    assert process(u.reshape(n // 2, 2, d)).shape == (n // 2, 2, k)
