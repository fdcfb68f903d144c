"""The amortized network: temperature opens the gate."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from learners.network import NetworkOptions, PosteriorNetwork
from learners.whitening import log_normal


def network(beta_range: tuple[float, float] = (0.1, 2.0), dim: int = 2) -> PosteriorNetwork:
    torch.manual_seed(0)
    net = PosteriorNetwork(dim, 3, beta_range, NetworkOptions(hidden=(16,), transforms=2, bins=4, trunk=(8, 16)))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net


def log_prob(net: PosteriorNetwork, beta: float, u: Tensor) -> Tensor:
    with torch.no_grad():
        return net(torch.randn(len(u), 3), torch.full((len(u),), beta)).log_prob(u)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_beta_to_zero_gives_the_whitened_prior(dim: int) -> None:
    net, u = network(dim=dim), torch.randn(200, dim)
    deviation = [float((log_prob(net, beta, u) - log_normal(u)).abs().max()) for beta in (1e-2, 1e-4, 1e-8, 1e-12)]
    assert deviation == sorted(deviation, reverse=True)
    assert deviation[-1] < 1e-4 < deviation[0]


def test_position_of_log_beta_runs_from_minus_one_to_one() -> None:
    beta = torch.tensor([0.1, (0.1 * 2.0) ** 0.5, 2.0])
    context = network().context(torch.zeros(3, 3), beta)
    torch.testing.assert_close(context[:, 3:], torch.tensor([[-1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]), rtol=0, atol=1e-6)


def test_range_of_one_temperature_is_usable() -> None:
    net = network((1.0, 1.0))
    assert log_prob(net, 1.0, torch.randn(5, 2)).isfinite().all()


def test_dictionary_gives_the_same_architecture() -> None:
    net = network()
    again = PosteriorNetwork.from_dict(net.as_dict())
    again.load_state_dict(net.state_dict())
    u, z, beta = torch.randn(5, 2), torch.randn(5, 3), torch.rand(5) + 0.1
    assert torch.equal(again(z, beta).log_prob(u), net(z, beta).log_prob(u))
