"""Whether an observation is like the simulated data: fresh simulations are, however wide they are."""

from __future__ import annotations

import pytest
import torch

from learners.familiarity import Familiarity


@pytest.mark.parametrize(("n", "k"), [(2000, 3), (200, 50), (200, 100), (1000, 200)])
def test_fresh_simulations_are_seldom_unlike_the_others(n: int, k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    familiarity = Familiarity.fit(torch.randn(n, k, generator=generator))
    fresh = familiarity.p_value(torch.randn(2000, k, generator=generator))
    assert (fresh < 0.005).double().mean() < 0.03
    assert 0.35 < fresh.mean() < 0.65
    far = torch.randn(100, k, generator=generator)
    far[:, 0] = 30.0
    assert (familiarity.p_value(far) < 0.005).all()


def test_each_simulation_is_measured_by_the_others() -> None:
    z = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).double()
    expected = []
    for i in range(40):
        others = torch.cat([z[:i], z[i + 1 :]])
        centered = z[i] - others.mean(dim=0)
        expected.append(centered @ torch.linalg.inv(torch.cov(others.mT)) @ centered)
    levels = torch.linspace(0, 1, 1001, dtype=torch.float64)
    torch.testing.assert_close(
        Familiarity.fit(z).distances, torch.quantile(torch.stack(expected), levels), rtol=1e-3, atol=1e-3
    )
