"""Laplace's approximation at every temperature: exact for a linear simulator, and what a guided flow begins as."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from learners.guide import Guide, GuideOptions, fit_guide
from learners.laplace import MOST_FRAMED, frame_size, framed, tempered
from learners.network import NetworkOptions, PosteriorNetwork

SMALL = GuideOptions(hidden=(48, 48), guess=(32, 32), scales=(16,))
BETAS = (1e-6, 0.1, 0.7, 1.0, 2.0)


def information(n: int, d: int) -> torch.Tensor:
    a = 3 * torch.randn(n, d, 2 * d, generator=torch.Generator().manual_seed(d))
    return torch.eye(d) + a @ a.mT


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("d", [1, 2, 5])
def test_of_a_normal_likelihood_it_is_the_tempered_posterior(beta: float, d: int) -> None:
    f = information(20, d)
    mode = torch.randn(20, d, generator=torch.Generator().manual_seed(1))
    frames, variances = framed(torch, f, torch.eye(d))
    assert frames.shape == (20, frame_size(d))
    torch.testing.assert_close(variances, torch.linalg.inv(f).diagonal(dim1=-2, dim2=-1), rtol=1e-3, atol=1e-5)
    normal = tempered(mode, frames, beta)
    # exp(-u^T u / 2) exp(beta (h^T u - u^T H u / 2)) with H = F - I and h = F mode
    precision = torch.eye(d) + beta * (f - torch.eye(d))
    mean = torch.linalg.solve(precision, beta * (f @ mode[..., None]))[..., 0]
    torch.testing.assert_close(normal.mean, mean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(normal.root(1.0), precision, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        normal.root(0.5) @ normal.root(-0.5), torch.eye(d).expand(20, d, d), rtol=1e-3, atol=1e-4
    )


def test_what_is_no_number_leaves_the_prior() -> None:
    f = information(3, 2)
    f[1, 0, 1] = torch.nan
    f[2] = torch.inf
    frames, variances = framed(torch, f, torch.eye(2))
    assert frames.isfinite().all()
    torch.testing.assert_close(variances[1:], torch.ones(2, 2))
    of_numpy, _ = framed(np, f.numpy(), np.eye(2, dtype=np.float32))
    assert of_numpy.dtype == np.float32
    assert np.isfinite(of_numpy).all()


@pytest.mark.parametrize("xp", [torch, np])
def test_of_nothing_there_are_no_frames(xp: Any) -> None:
    frames, variances = framed(xp, xp.zeros((0, 2, 2)), xp.eye(2))
    assert frames.shape == (0, frame_size(2))
    assert variances.shape == (0, 2)


def network(d: int, framed: bool = True) -> PosteriorNetwork:
    torch.manual_seed(0)
    made = PosteriorNetwork(d, 3, (0.1, 2.0), NetworkOptions((32, 32)), Guide(d, 3, SMALL, framed))
    for parameter in made.flow.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made


@pytest.mark.parametrize("d", [1, 3])
def test_densities_and_draws_of_a_framed_flow_belong_together(d: int) -> None:
    made = network(d)
    z, beta = torch.randn(4, 3), torch.tensor([0.1, 0.5, 1.0, 2.0])
    flow = made(z, beta)
    u = flow.sample((6,))
    assert u.shape == (6, 4, d)
    torch.testing.assert_close(flow.transform.inv(flow.transform(u)), u, rtol=1e-3, atol=1e-4)
    for i in range(4):
        transform = made(z[i], beta[i]).transform
        jacobian = torch.autograd.functional.jacobian(transform, u[0, i])
        expected = torch.linalg.slogdet(jacobian)[1]
        torch.testing.assert_close(transform.log_abs_det_jacobian(u[0, i], transform(u[0, i])), expected)


def test_an_untrained_framed_flow_is_the_approximation_at_every_temperature() -> None:
    made = network(2)
    for parameter in made.flow.parameters():
        torch.nn.init.zeros_(parameter)
    z = torch.randn(5, 3)
    told = made.guide(z) if made.guide is not None else z
    for beta in (0.1, 0.4, 2.0):
        normal = tempered(told[:, :2], told[:, 4:], beta)
        exact = torch.distributions.MultivariateNormal(normal.mean, precision_matrix=normal.root(1.0))
        u = torch.randn(7, 5, 2)
        torch.testing.assert_close(made(z, torch.full((5,), beta)).log_prob(u), exact.log_prob(u), rtol=1e-3, atol=1e-3)


def test_the_flow_within_is_not_told_of_frames() -> None:
    (first, *_), (bare, *_) = (list(network(3, framed).flow.parameters()) for framed in (True, False))
    assert first.shape == bare.shape


@pytest.mark.parametrize("d", [MOST_FRAMED, MOST_FRAMED + 1])
def test_with_many_parameters_there_are_no_frames(d: int) -> None:
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(2000, d, generator=generator)
    z = u + 0.5 * torch.randn(2000, d, generator=generator)
    guide = fit_guide(u, z, u, SMALL, 400, 256, generator)
    assert guide is not None
    assert guide.framed == (d <= MOST_FRAMED)
    assert guide(z).shape == (2000, guide.dim + frame_size(d) * guide.framed)
