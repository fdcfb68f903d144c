"""The probability that a simulation succeeds: learned where it depends on theta, one number where it does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from learners.validity import Validity


def fitted(u: Tensor, valid: Tensor, seed: int) -> Validity:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        validity = Validity(u.shape[1])
    validity.fit(u, valid, torch.Generator().manual_seed(seed))
    return validity


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("n", "d", "failures"), [(300, 5, 60), (300, 1, 3), (60, 2, 1)])
def test_failures_by_chance_tell_nothing_of_theta(n: int, d: int, failures: int, seed: int) -> None:
    u = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    validity = fitted(u, torch.arange(n) >= failures, seed)
    with torch.no_grad():
        log_valid = validity.log_prob(torch.randn(5000, d, generator=torch.Generator().manual_seed(99)))
    assert float(log_valid.std()) < 0.1
    assert float(log_valid.mean().exp()) == pytest.approx(1 - failures / n, abs=0.03)


@pytest.mark.parametrize(("n", "d"), [(300, 1), (300, 5), (2000, 5)])
def test_failures_that_depend_on_theta_are_learned(n: int, d: int) -> None:
    generator = torch.Generator().manual_seed(1)
    u = torch.randn(n, d, generator=generator)
    validity = fitted(u, torch.rand(n, generator=generator) < torch.sigmoid(2 + 3 * u[:, 0]), 0)
    fresh = torch.randn(5000, d, generator=generator)
    with torch.no_grad():
        error = validity.log_prob(fresh).exp() - torch.sigmoid(2 + 3 * fresh[:, 0])
    assert float(error.abs().mean()) < (0.1 if n < 1000 else 0.05)


def test_what_was_learned_before_does_not_count() -> None:
    # A fit begins anew: what it holds out, the last one has seen.
    u = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    validity = fitted(u, u[:, 0] > 0, 0)
    validity.fit(u, torch.arange(300) >= 60, torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert float(validity.log_prob(u).std()) < 0.1


def test_without_failures_it_is_certain() -> None:
    u = torch.randn(50, 2)
    assert not fitted(u, torch.ones(50, dtype=torch.bool), 0).log_prob(u).any()
