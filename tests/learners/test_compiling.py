"""Compiled training steps: the same density and gradients for every flow; none without a compiler."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from problems import LinearGaussian
from torch import Tensor
from torch._inductor import config
from zuko.flows import Flow

from learners import LearnerOptions, TemperedPosterior, compiling
from learners.compiling import compiled_log_prob
from learners.flows import affine_flow, spline_flow
from learners.network import NetworkOptions, PosteriorNetwork
from learners.training import TrainOptions, fit_flow

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("c++", "g++", "clang++")), reason="needs a C++ compiler"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    compiled_log_prob.cache_clear()


def spline(seed: int = 0) -> Flow:
    torch.manual_seed(seed)
    return spline_flow(2, 3, (8,), transforms=1, bins=4)


def rows() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(64, 2, generator=generator), torch.randn(64, 3, generator=generator)


@needs_compiler
def test_the_same_density_and_gradients_for_every_flow_of_an_architecture() -> None:
    v, c = rows()
    for seed in (0, 1):
        plain, fast = spline(seed), spline(seed)
        expected, found = plain(c).log_prob(v), compiled_log_prob()(fast, v, c)
        torch.testing.assert_close(found, expected)
        expected.mean().backward()
        found.mean().backward()
        for one, other in zip(plain.parameters(), fast.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


@needs_compiler
def test_training_is_deterministic_and_as_good() -> None:
    generator = torch.Generator().manual_seed(0)
    c = torch.randn(400, 3, generator=generator)
    v = c[:, :2] + 0.3 * torch.randn(400, 2, generator=generator)
    held_out = torch.arange(400) % 10 == 0

    def loss(wanted: bool) -> tuple[float, Tensor]:
        flow, options = affine_of_two(), TrainOptions(max_epochs=8, patience=8, batch_size=64, compiled=wanted)
        best = fit_flow(flow, v, c, held_out, options, torch.Generator().manual_seed(0))
        return best, torch.cat([p.detach().flatten() for p in flow.parameters()])

    (plain, _), (first, weights), (second, again) = loss(False), loss(True), loss(True)
    assert first == second
    assert torch.equal(weights, again)
    assert first == pytest.approx(plain, abs=1e-2)


def affine_of_two() -> Flow:
    torch.manual_seed(0)
    return affine_flow(2, 3, (8,), transforms=1)


@needs_compiler
def test_the_network_with_its_temperatures() -> None:
    torch.manual_seed(0)
    network = PosteriorNetwork(2, 3, (0.1, 2.0), NetworkOptions((8,), 1, 4))
    v, c = rows()
    for beta in (0.1, 1.0, 2.0):
        context = network.context(c, torch.full((64,), beta))
        expected = network.flow(context).log_prob(v)
        torch.testing.assert_close(compiled_log_prob()(network.flow, v, context), expected)


def test_without_a_compiler_steps_run_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    v, c = rows()
    flow, log_prob = spline(), compiled_log_prob()
    with config.patch({"cpp.cxx": (None, "/nonexistent")}), caplog.at_level(logging.WARNING):
        for _ in range(2):
            torch.testing.assert_close(log_prob(flow, v, c), flow(c).log_prob(v))
    assert len(caplog.records) == 1
    assert "cannot be compiled" in caplog.text
    assert "compiler" in caplog.text


def test_nothing_is_compiled_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learners.training.compiled_log_prob", lambda: pytest.fail("compiled"))
    v, c = rows()
    options = TrainOptions(max_epochs=1)
    fit_flow(spline(), v, c, torch.zeros(64, dtype=torch.bool), options, torch.Generator())


def test_the_learners_option_reaches_surrogate_and_network(
    tiny: LearnerOptions, linear_gaussian: LinearGaussian, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    for module in ("training", "distillation"):

        def instead(module: str = module) -> compiling.LogProb:
            asked.append(module)
            return compiling.log_prob

        monkeypatch.setattr(f"learners.{module}.compiled_log_prob", instead)
    theta, x = linear_gaussian.draw(200, seed=1)
    TemperedPosterior.fit(theta, x, linear_gaussian.prior, (0.2, 2.0), replace(tiny, compiled=True))
    assert asked == ["training", "distillation"]
