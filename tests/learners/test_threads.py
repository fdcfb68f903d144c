"""Threads that share work: in order, one thread of torch each, and nothing left behind."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from learners.threads import Threads, bounded_threads
from learners.training import Descent


@pytest.mark.parametrize("count", [1, 3])
def test_results_are_in_order_and_torch_has_one_thread_in_each(count: int) -> None:
    with bounded_threads(2):
        with Threads(count) as threads:
            seen = threads.map(lambda a, b: (a * b, torch.get_num_threads()), range(20), range(20))
        assert torch.get_num_threads() == 2
    assert seen == [(k * k, 1) for k in range(20)]


def test_they_work_at_the_same_time() -> None:
    meeting = threading.Barrier(3)
    with Threads(3) as threads:
        # None gets on before all have come.
        assert len(threads.map(lambda _: meeting.wait(60), range(3))) == 3


def test_no_thread_is_left_and_errors_are_those_of_the_work() -> None:
    before = threading.active_count()

    def fail(k: int) -> None:
        raise ValueError(f"at {k}")

    for count in (1, 2):
        with pytest.raises(ValueError, match="at 0"), Threads(count) as threads:
            threads.map(fail, range(4))
    assert threading.active_count() == before


@pytest.mark.parametrize("most", [1, 2, 8])
def test_a_step_in_terms_is_that_of_their_sum(most: int) -> None:
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))

    def stepped(count: int) -> tuple[Tensor, list[int]]:
        torch.manual_seed(1)
        module = nn.Linear(3, 1)
        unused = nn.Linear(2, 2)
        both = nn.ModuleList([module, unused])
        asked = []

        def terms(parts: int):  # type: ignore[no-untyped-def]
            asked.append(parts)
            return [lambda part=part: module(part).square().sum() for part in x.tensor_split(parts)]

        with Threads(count) as threads:
            Descent(both, torch.optim.SGD(both.parameters(), lr=0.01), 1, threads).step(terms, most)
        return torch.cat([p.detach().flatten() for p in both.parameters()]), asked

    alone, shared, crowd = stepped(1), stepped(3), stepped(64)
    torch.testing.assert_close(alone[0], shared[0])
    torch.testing.assert_close(alone[0], crowd[0])
    # Of many threads a step has no use: the parts would be too small.
    assert (alone[1], shared[1], crowd[1]) == ([1], [min(3, most)], [min(4, most)])
