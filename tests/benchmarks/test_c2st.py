"""Our batched classifier test reads what scikit-learn's reads."""

from __future__ import annotations

import pytest
import torch
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from torch import Tensor

from benchmarks.c2st import c2st


@pytest.fixture(scope="module")
def pairs() -> tuple[Tensor, Tensor]:
    """Reference and draws `(4, 1000, 2)`: equal, shifted, wider, correlated."""
    generator = torch.Generator().manual_seed(0)
    reference, draws = torch.randn(2, 4, 1000, 2, generator=generator)
    draws[1, :, 0] += 0.6
    draws[2] *= 1.6
    draws[3, :, 1] = 0.8 * draws[3, :, 0] + 0.6 * draws[3, :, 1]
    return reference, draws


def test_it_agrees_with_the_original(pairs: tuple[Tensor, Tensor]) -> None:
    ours = c2st(*pairs)
    labels = torch.cat([torch.zeros(1000), torch.ones(1000)]).numpy()
    for reference, draws, score in zip(*pairs, ours.tolist(), strict=True):
        data = (torch.cat([reference, draws]) - reference.mean(dim=0)) / reference.std(dim=0)
        classifier = MLPClassifier(hidden_layer_sizes=(20, 20), max_iter=1000, random_state=1)
        folds = KFold(5, shuffle=True, random_state=1)
        theirs = cross_val_score(classifier, data.numpy(), labels, cv=folds).mean()
        assert score == pytest.approx(theirs, abs=0.035)


def test_draws_that_are_not_finite_are_told_apart(pairs: tuple[Tensor, Tensor]) -> None:
    reference, draws = pairs[0][:2, :100], pairs[1][:2, :100].clone()
    draws[1, 3, 0] = torch.nan
    scores = c2st(reference, draws)
    assert float(scores[0]) < 0.7
    assert float(scores[1]) == 1.0
