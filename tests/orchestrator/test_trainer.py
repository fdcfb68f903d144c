"""What the trainer may use of its node, and what it says of itself."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from campaigns import QUICK

from orchestrator.config_learner import LearnerConfig
from orchestrator.display import Progress
from orchestrator.tracked_training import TrackedTraining
from orchestrator.tracking import Tracker
from orchestrator.tracking_journal import Journal, records_after
from orchestrator.tracking_records import Metrics
from orchestrator.trainer import Trainer


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    """A cluster that believes in a GPU, as torch does in its workers."""

    # In here, for a worker cannot import this file.
    def pretend_to_have_cuda() -> None:
        import torch

        torch.cuda.is_available = lambda: True

    hook = {"worker_process_setup_hook": pretend_to_have_cuda}
    ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, runtime_env=hook)
    yield
    ray.shutdown()


def trainer(gpus: float, **config: Any) -> Any:
    prior = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), 1.0), 1)
    options = Trainer.options(num_cpus=1, num_gpus=gpus)  # type: ignore[attr-defined]
    return options.remote(prior, (0.1, 2.0), None, LearnerConfig(**config), 0, ("a", "b"))


@pytest.mark.parametrize(("gpus", "device"), [(0.0, "cpu"), (0.5, "cuda")])
def test_it_computes_on_a_gpu_only_if_it_was_given_one(gpus: float, device: str) -> None:
    actor = trainer(gpus)
    assert ray.get(actor.__ray_call__.remote(lambda self: torch.cuda.is_available()))
    assert ray.get(actor.__ray_call__.remote(lambda self: self.learner.options.device)) == device
    ray.kill(actor)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no processes to CPUs")
def test_alone_it_takes_the_cpus_that_its_process_may_use() -> None:
    def threads_of_a_bound_process(self: Any) -> int:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        self._use_threads(None)
        return int(self.learner.options.threads)

    actor = trainer(0.0)
    assert ray.get(actor.__ray_call__.remote(threads_of_a_bound_process)) == 1
    ray.kill(actor)


def test_while_it_waits_there_is_no_loss(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    theta = rng.normal(size=(200, 2))
    rows = np.arange(200), theta, theta + 0.5 * rng.normal(size=(200, 2)), np.zeros(200), np.ones(200)
    actor = trainer(0.0, **QUICK)
    waiting = ray.get(actor.progress.remote())
    ray.get(actor.add.remote(*rows))
    losses = ray.get(actor.update.remote(200)).metrics
    after = ray.get(actor.progress.remote())
    ray.kill(actor)
    assert math.isfinite(losses["posterior_loss"])
    told = Tracker(tmp_path, "sqlite:///nowhere.db", "tests", "waiting", enabled=False)
    told._journal = Journal(tmp_path / "tracking")
    training = TrackedTraining(told)
    for progress in (waiting, after, ("surrogate", 1.5), after):
        training.look(1, False, 200, progress, 200)
        line = Progress("simulating", 300, 200, 0, 1, 1.0, *progress, None).line()
        assert ("loss" in line) == (progress[0] == "surrogate")
    written = [record for record, _ in records_after(tmp_path / "tracking", 0) if isinstance(record, Metrics)]
    assert [record.values for record in written] == [{"surrogate_loss": 1.5}]
