"""What tests share: a cluster, and the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest
import ray

from orchestrator.cli import main

Temperflow = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A real Ray cluster."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def temperflow(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Temperflow:
    """Calls the command; returns exit code and everything it wrote."""

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["temperflow", *map(str, arguments)])
        with pytest.raises(SystemExit) as leaving:
            main()
        captured = capsys.readouterr()
        code = leaving.value.code
        return int(code or 0), captured.out + captured.err

    return call
