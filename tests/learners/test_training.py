"""Fitting one flow: the best held-out state wins, held-out rows only score."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from zuko.flows import Flow

from learners.flows import affine_flow, gaussian_flow
from learners.threads import bounded_threads
from learners.training import TrainOptions, fit_flow, held_out_loss


def pairs(n: int = 600) -> tuple[Tensor, Tensor, Tensor]:
    """`v ~ N(2 c, 0.5^2)`, and every tenth row held out."""
    generator = torch.Generator().manual_seed(0)
    c = torch.randn(n, 1, generator=generator)
    v = 2 * c + 0.5 * torch.randn(n, 1, generator=generator)
    return v, c, torch.arange(n) % 10 == 0


def fresh() -> Flow:
    torch.manual_seed(0)
    return gaussian_flow(1, 1, (8,))


def fit(flow: Flow, v: Tensor, c: Tensor, held_out: Tensor, epochs: int = 30, rate: float = 1e-2) -> float:
    options = TrainOptions(max_epochs=epochs, patience=epochs, batch_size=64, learning_rate=rate)
    return fit_flow(flow, v, c, held_out, options, torch.Generator().manual_seed(0))


def test_reaches_the_entropy_of_the_model() -> None:
    v, c, held_out = pairs(2000)
    loss = fit(fresh(), v, c, held_out)
    assert loss == pytest.approx(0.5 * math.log(2 * math.pi * math.e * 0.25), abs=0.1)


def test_returns_the_loss_of_the_state_that_it_leaves() -> None:
    v, c, held_out = pairs()
    flow = fresh()
    # A rate so large that later epochs are worse than earlier ones.
    loss = fit(flow, v, c, held_out, rate=0.3)
    assert held_out_loss(flow, v[held_out], c[held_out]) == pytest.approx(loss)


@pytest.mark.parametrize(("n", "longest", "passes"), [(600, 500, 25), (20_000, 500, 2), (20_000, 10, 48)])
def test_of_many_data_fewer_passes_are_planned(
    n: int, longest: int, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 540 rows are 8 batches a pass, 18,000 are 281 or `longest`; 200 steps for a thousand, 476 for 18,000.
    monkeypatch.setattr("learners.training._LONGEST", longest)
    v, c, held_out = pairs(n)
    seen: list[int] = []
    options = TrainOptions(max_epochs=100, patience=100, batch_size=64, planned_steps=200)
    fit_flow(fresh(), v, c, held_out, options, torch.Generator(), lambda epoch, _: seen.append(epoch))
    assert len(seen) == passes


def test_held_out_rows_give_no_gradient() -> None:
    v, c, held_out = pairs()
    one, other = fresh(), fresh()
    fit(one, v, c, held_out, epochs=1)
    fit(other, torch.where(held_out[:, None], 100.0, v), c, held_out, epochs=1)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_same_generator_same_flow() -> None:
    v, c, held_out = pairs()
    one, other = fresh(), fresh()
    fit(one, v, c, held_out)
    torch.rand(17)
    fit(other, v, c, held_out)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_without_held_out_rows_training_rows_score() -> None:
    v, c, held_out = pairs()
    assert fit(fresh(), v, c, torch.zeros_like(held_out), epochs=2) < math.inf


def test_fewer_rows_than_a_batch_suffice() -> None:
    v, c, held_out = pairs(20)
    assert fit(fresh(), v, c, held_out, epochs=2) < math.inf


def test_unusable_data_leave_the_flow_as_it_was() -> None:
    v, c, held_out = pairs()
    flow = affine_flow(1, 1, (8,))
    before = {k: p.clone() for k, p in flow.state_dict().items()}
    assert fit(flow, torch.full_like(v, torch.nan), c, held_out, epochs=2) == math.inf
    assert all(torch.equal(p, before[k]) for k, p in flow.state_dict().items())


def test_every_epoch_is_reported() -> None:
    v, c, held_out = pairs()
    seen: list[tuple[int, float]] = []
    options = TrainOptions(max_epochs=5, patience=5, batch_size=64)
    best = fit_flow(
        fresh(), v, c, held_out, options, torch.Generator().manual_seed(0), lambda *epoch: seen.append(epoch)
    )
    assert [epoch for epoch, _ in seen] == list(range(5))
    assert min(loss for _, loss in seen) == best


def test_impatience_stops_early() -> None:
    v, c, held_out = pairs()
    epochs: list[int] = []
    options = TrainOptions(max_epochs=200, patience=2, batch_size=64, learning_rate=0.1)
    fit_flow(fresh(), v, c, held_out, options, torch.Generator().manual_seed(0), lambda epoch, _: epochs.append(epoch))
    assert len(epochs) < 200


def test_threads_are_restored() -> None:
    before = torch.get_num_threads()
    with bounded_threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_a_pair_that_overflows_does_not_undo_the_training() -> None:
    torch.manual_seed(0)
    c = torch.randn(600, 1)
    v = c + 0.1 * torch.randn(600, 1)
    c[::50] = 1e30
    flow = affine_flow(1, 1, (8,))
    held_out = torch.arange(600) % 50 == 1
    loss = fit_flow(flow, v, c, held_out, TrainOptions(max_epochs=20, patience=20, batch_size=16), torch.Generator())
    assert all(parameter.isfinite().all() for parameter in flow.parameters())
    assert loss < 0.5  # without training it is 1.4


def test_held_out_pairs_count_as_they_are_worth_and_those_learned_from_alike() -> None:
    # Two laws for the same context; one number cannot be the mean of both.
    generator = torch.Generator().manual_seed(0)
    first = torch.arange(1000) % 2 == 0
    v = torch.where(first, 1.0, -1.0)[:, None] + 0.01 * torch.randn(1000, 1, generator=generator)
    c, held_out = torch.zeros(1000, 1), torch.arange(1000) % 5 == 0
    worth = torch.where(first, 9.0, 1.0)
    flow, weighted = fresh(), fresh()
    options = TrainOptions(max_epochs=60, patience=60, batch_size=64, learning_rate=1e-2)
    fit_flow(flow, v, c, held_out, options, torch.Generator().manual_seed(0))
    loss = fit_flow(weighted, v, c, held_out, options, torch.Generator().manual_seed(0), worth=worth)
    assert held_out_loss(weighted, v[held_out], c[held_out], worth[held_out]) == pytest.approx(loss)
    # Of all epochs the one is kept whose score is best with the weights; both go through the same ones.
    assert loss <= held_out_loss(flow, v[held_out], c[held_out], worth[held_out]) + 1e-6
    # Weights among what is learned would have given the law nearest to nine parts of the one and one of the other.
    assert loss > 1.0
