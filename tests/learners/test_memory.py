"""A device whose memory runs out: the work goes on in smaller parts, says so, and gives the same."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from problems import LinearGaussian
from torch import Tensor, nn

from learners import LearnerOptions, TemperedPosterior, guide
from learners.member import Member
from learners.memory import Parts
from learners.training import Descent, TrainOptions, fit_module
from simulators.errors import ResourceError


class Line:
    """A regression whose memory ends at `fits` rows."""

    def __init__(self, fits: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.u = torch.randn(256, 3, generator=generator)
        self.y = self.u @ torch.tensor([1.0, -2.0, 0.5])
        self.fits, self.largest = fits, 0

    def __len__(self) -> int:
        return len(self.u)

    def loss(self, module: nn.Module, rows: Tensor, generator: torch.Generator) -> Tensor:
        if len(rows) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.largest = max(self.largest, len(rows))
        return (module(self.u[rows]).squeeze(-1) - self.y[rows]).square().mean()

    def score(self, module: nn.Module) -> float:
        return float((module(self.u).squeeze(-1) - self.y).square().mean())


def fitted(lesson: Line) -> nn.Module:
    torch.manual_seed(1)
    module = nn.Linear(3, 1)
    options = TrainOptions(max_epochs=5, batch_size=64)
    fit_module(module, lesson, torch.device("cpu"), options, torch.Generator().manual_seed(2))
    return module


def test_training_goes_on_in_smaller_batches_with_the_same_result(caplog: pytest.LogCaptureFixture) -> None:
    roomy, narrow = Line(1000), Line(20)
    expected = fitted(roomy)
    with caplog.at_level(logging.WARNING):
        got = fitted(narrow)
    assert roomy.largest == 64 and narrow.largest == 16
    assert torch.allclose(got.weight, expected.weight, atol=1e-5)
    assert [r.getMessage() for r in caplog.records] == [
        "the GPU's memory ran out: a training step goes on in 2 parts",
        "the GPU's memory ran out: a training step goes on in 4 parts",
    ]


def test_a_step_that_never_fits_ends_with_what_to_do() -> None:
    with pytest.raises(ResourceError, match=r"too little memory for a training step.*CUDA_VISIBLE_DEVICES="):
        fitted(Line(4))


def test_an_interrupted_step_leaves_no_gradient_behind() -> None:
    module = nn.Linear(1, 1, bias=False)
    descent = Descent(module, torch.optim.SGD(module.parameters(), lr=0.0), 1)

    def terms(count: int) -> Iterator[Callable[[], Tensor]]:
        for _ in range(count):
            yield lambda: module(torch.ones(1, 1)).sum() / count
            if count == 1:
                raise torch.OutOfMemoryError("CUDA out of memory")

    descent.step(terms, 8)
    assert module.weight.grad is not None and module.weight.grad.item() == pytest.approx(1.0)


def test_rows_are_evaluated_in_order_whatever_the_memory() -> None:
    asked: list[int] = []

    def double(rows: Tensor) -> Tensor:
        asked.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 2 * rows

    parts = Parts("doubling")
    assert parts.map(double, torch.arange(10)).tolist() == [2 * i for i in range(10)]
    assert parts.count == 4
    asked.clear()
    parts.map(double, torch.arange(10))
    assert max(asked) == 3, "what did not fit once is not tried again"
    assert parts.map(double, torch.arange(0)).tolist() == []


@pytest.mark.parametrize("what", ["sample", "middle", "log_prob", "hints"])
def test_all_that_is_asked_of_a_surrogate_and_a_guide_fits_in_parts(
    linear_gaussian: LinearGaussian, tiny: LearnerOptions, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    owner = guide if what == "hints" else Member
    whole, most = getattr(owner, what), 0

    def narrow(*arguments: Any) -> Tensor:
        nonlocal most
        rows = len(arguments[1])  # after self, or torch
        if rows > 7:
            raise torch.OutOfMemoryError("CUDA out of memory")
        most = max(most, rows)
        result: Tensor = whole(*arguments)
        return result

    monkeypatch.setattr(owner, what, narrow)
    theta, x = linear_gaussian.draw(100, seed=1)
    few = replace(tiny, distillation=replace(tiny.distillation, pairs=200))
    posterior = TemperedPosterior.fit(theta, x, linear_gaussian.prior, (0.2, 2.0), few)
    assert posterior.sample((5,), x=x[0]).isfinite().all()
    assert 0 < most <= 7


def test_where_memory_is_enough_all_is_done_in_one_call() -> None:
    calls = []
    Parts("nothing").map(lambda rows: calls.append(len(rows)) or rows, torch.zeros(5, 1))
    assert calls == [5]
