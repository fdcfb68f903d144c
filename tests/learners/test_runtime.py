"""Runtimes: what a simulation will cost."""

from __future__ import annotations

import pytest
import torch

from learners.runtime import Runtime


def noisy_times(n: int, d: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Parameters, log-normal times, and their expectation."""
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(n, d, generator=generator, dtype=torch.float64)
    log_mean = 1.0 + 0.8 * u[:, 0] - 0.3 * u[:, -1].square()
    noise = 0.4 * torch.randn(n, generator=generator, dtype=torch.float64)
    return u, (log_mean + noise).exp(), (log_mean + 0.08).exp()


@pytest.mark.parametrize(("n", "d"), [(500, 1), (500, 2), (800, 10), (2000, 30)])
def test_expected_times(n: int, d: int) -> None:
    u, seconds, expected = noisy_times(n, d)
    middle = (expected > seconds.quantile(0.05)) & (expected < seconds.quantile(0.95))
    ratio = (Runtime.fit(u, seconds).expected(u) / expected)[middle].log()
    assert abs(float(ratio.mean())) < 0.06
    assert float(ratio.std()) < 0.25


def test_times_that_nobody_knows_are_left_out() -> None:
    u, seconds, _ = noisy_times(400, 2)
    known = Runtime.fit(u[:300], seconds[:300])
    holes = seconds.clone()
    holes[300:350], holes[350:] = float("nan"), 0.0
    torch.testing.assert_close(Runtime.fit(u, holes).expected(u), known.expected(u))


def test_noise_alone_is_no_dependence() -> None:
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(300, 5, generator=generator)
    expected = Runtime.fit(u, torch.randn(300, generator=generator).exp()).expected(u)
    assert float(expected.log().std()) < 0.15


def test_a_constant_time_is_constant() -> None:
    u = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Runtime.fit(u, torch.full((100,), 2.5)).expected(u), torch.full((100,), 2.5).double())


@pytest.mark.parametrize("n", [0, 1, 10])
def test_few_times_are_taken_to_be_alike(n: int) -> None:
    u, seconds, _ = noisy_times(n, 4) if n else (torch.zeros(0, 4), torch.zeros(0), torch.zeros(0))
    expected = Runtime.fit(u, seconds).expected(torch.randn(7, 4))
    assert expected.isfinite().all()
    assert (expected > 0).all()
    assert float(expected.max() - expected.min()) == 0.0


def test_no_time_is_beyond_those_that_were_seen() -> None:
    u, seconds, _ = noisy_times(500, 2)
    expected = Runtime.fit(u, seconds).expected(1e3 * torch.randn(100, 2))
    assert expected.max() <= seconds.max()
    assert expected.min() >= seconds.min()
