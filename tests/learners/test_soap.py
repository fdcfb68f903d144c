"""SOAP: goes down where Adam crawls, and is Adam where nothing can be turned."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from learners.soap import Soap
from learners.threads import Threads


def losses(optimizer_of: type[torch.optim.Optimizer], steps: int, **options: float) -> Tensor:
    """Of a regression whose inputs are badly scaled in a rotated basis."""
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(10, 10, generator=generator)).Q
    x = torch.randn(500, 10, generator=generator) * torch.logspace(-1.5, 0.5, 10) @ rotation
    y = x @ torch.randn(10, 6, generator=generator)
    weight = torch.nn.Parameter(torch.zeros(10, 6))
    optimizer = optimizer_of([weight], **options)  # type: ignore[arg-type]
    seen = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (x @ weight - y).square().mean()
        loss.backward()
        optimizer.step()
        seen.append(loss.detach())
    return torch.stack(seen)


def test_goes_down_faster_than_adam_in_a_rotated_basis() -> None:
    assert losses(Soap, 300, lr=0.02)[-1] < 0.1 * losses(torch.optim.Adam, 300, lr=0.02)[-1]


def test_a_vector_is_left_to_adam() -> None:
    starts = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.nn.Parameter(starts[0].clone()) for _ in range(2))
    a = Soap([ours], lr=0.1, decay=0.9)
    b = torch.optim.Adam([theirs], lr=0.1, betas=(0.9, 0.9), eps=1e-8)
    for _ in range(20):
        for parameter, optimizer in ((ours, a), (theirs, b)):
            optimizer.zero_grad()
            (parameter - starts[1]).pow(4).sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(600, 3), (3, 600), (1, 4), (600, 600)])
def test_matrices_of_any_shape(shape: tuple[int, int]) -> None:
    weight = torch.nn.Parameter(torch.ones(shape))
    optimizer = Soap([weight], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        weight.square().mean().backward()
        optimizer.step()
    assert weight.isfinite().all()
    assert weight.abs().mean() < 0.2


def test_threads_change_nothing() -> None:
    ends = []
    for count in (1, 3):
        generator = torch.Generator().manual_seed(0)
        shapes = [(5, 4), (4,), (6, 6), (1, 3), (7, 2)]
        weights = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
        with Threads(count) as threads:
            optimizer = Soap(weights, lr=0.05, threads=threads)
            for _ in range(25):
                optimizer.zero_grad()
                torch.stack([w.pow(4).sum() for w in weights]).sum().backward()
                optimizer.step()
        ends.append([w.detach() for w in weights])
    for alone, shared in zip(*ends, strict=True):
        assert torch.equal(alone, shared)
