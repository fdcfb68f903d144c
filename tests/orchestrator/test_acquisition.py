"""Acquisition: the fast criterion is BoTorch's, and what is in flight is not chosen again."""

from __future__ import annotations

import pytest
import torch
from botorch.acquisition.active_learning import qNegIntegratedPosteriorVariance
from botorch.models import SingleTaskGP
from botorch.sampling.normal import SobolQMCNormalSampler

from orchestrator.acquisition import Candidates, NegIntegratedVariance, choose


def candidates(n: int = 400, d: int = 2, seed: int = 0) -> Candidates:
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(n, d, generator=generator)
    slopes = torch.randn(3, d, generator=generator)
    return Candidates(u, torch.rand(n, generator=generator) + 0.1, torch.sin(2 * u @ slopes.mT).mT)


@pytest.mark.parametrize("num_pending", [0, 3])
def test_the_criterion_equals_botorchs(num_pending: int) -> None:
    generator = torch.Generator().manual_seed(1)

    def points(n: int) -> torch.Tensor:
        return torch.rand(n, 2, generator=generator, dtype=torch.float64)

    noise, pending, mc_points, x = 0.05, points(num_pending), points(40), points(7)
    kernel_owner = SingleTaskGP(points(5), points(5)[:, :1], outcome_transform=None)
    ours = NegIntegratedVariance(kernel_owner.eval(), mc_points, noise, pending if num_pending else None)
    # BoTorch's needs at least one observation: one too far away to matter.
    blank = SingleTaskGP(
        torch.full((1, 2), 1e4, dtype=torch.float64),
        torch.zeros(1, 1, dtype=torch.float64),
        train_Yvar=torch.full((1, 1), noise, dtype=torch.float64),
        covar_module=kernel_owner.covar_module,
        outcome_transform=None,
    )
    theirs = qNegIntegratedPosteriorVariance(
        blank,
        mc_points=mc_points,
        sampler=SobolQMCNormalSampler(torch.Size([1]), seed=0),
        X_pending=pending if num_pending else None,
    )
    with torch.no_grad():
        torch.testing.assert_close(ours(x.unsqueeze(1)), theirs(x.unsqueeze(1)), rtol=1e-4, atol=1e-6)


def test_chosen_points_are_distinct_candidates_with_their_temperature() -> None:
    pool = candidates()
    u, beta = choose(pool, 16, torch.zeros(0, 2), torch.Generator().manual_seed(0))
    rows = torch.cdist(u, pool.u).argmin(dim=1)
    assert len(set(rows.tolist())) == 16
    torch.testing.assert_close(u, pool.u[rows])
    torch.testing.assert_close(beta, pool.beta[rows])


def test_points_in_flight_repel_the_choice() -> None:
    pool = candidates()
    first, _ = choose(pool, 8, torch.zeros(0, 2), torch.Generator().manual_seed(0))
    again, _ = choose(pool, 8, first, torch.Generator().manual_seed(0))
    unaware, _ = choose(pool, 8, torch.zeros(0, 2), torch.Generator().manual_seed(0))
    assert torch.cdist(again, first).min() > torch.cdist(unaware, first).min()


def test_points_go_where_the_members_disagree() -> None:
    pool = candidates()
    one_sided = torch.where(pool.u[:, 0] > 0.5, pool.log_likelihood, torch.zeros_like(pool.log_likelihood))
    u, _ = choose(Candidates(pool.u, pool.beta, one_sided), 8, torch.zeros(0, 2), torch.Generator().manual_seed(0))
    assert (u[:, 0] > 0.4).float().mean() > 0.9


@pytest.mark.parametrize(("d", "members"), [(1, 3), (30, 3), (2, 1)])
def test_any_dimension_and_a_single_member_are_fine(d: int, members: int) -> None:
    pool = candidates(d=d)
    pool = Candidates(pool.u, pool.beta, pool.log_likelihood[:members])
    u, beta = choose(pool, 4, torch.randn(5, d), torch.Generator().manual_seed(0))
    assert u.shape == (4, d)
    assert beta.shape == (4,)


def test_absurd_members_do_not_break_it() -> None:
    pool = candidates()
    ell = pool.log_likelihood.clone()
    ell[0, :10] = float("-inf")
    ell[1, 10:20] = float("nan")
    u, _ = choose(Candidates(pool.u, pool.beta, ell), 4, torch.zeros(0, 2), torch.Generator().manual_seed(0))
    assert u.isfinite().all()
