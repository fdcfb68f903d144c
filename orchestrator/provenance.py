"""Where a campaign comes from: versions, the commit of the simulator's repository, and the cluster that it runs on."""

from __future__ import annotations

__all__ = ["describe"]

import json
import subprocess

import ray
import yaml

from .config import CampaignConfig
from .problem import Problem
from .ray_cluster import living_nodes
from .tracking import Tracker
from .versions import versions


def describe(tracker: Tracker, config: CampaignConfig, problem: Problem) -> None:
    """Tells what is asked, and in which surroundings it is done; the cluster is connected."""
    values = config.model_dump(mode="json")
    targeted = problem.observation is not None
    tracker.params({**values, "names": list(problem.names)})
    tracker.text(yaml.safe_dump(values, sort_keys=False), "config.yaml")
    found, cluster, commit = versions(), _cluster(), _git(problem.spec.folder or ".")
    tracker.text(json.dumps({"versions": found, "cluster": cluster, **commit}, indent=1), "environment.json")
    tracker.tags(
        {
            "mlflow.note.content": _note(config, problem, targeted),
            "simulator": problem.spec.function or problem.spec.task or "callable",
            "targeted": str(targeted).lower(),
            "method": config.acquisition.method,
            "parameters": ", ".join(problem.names),
            "seed": config.seed,
            **{f"version.{name}": number for name, number in found.items()},
            **{f"cluster.{name}": amount for name, amount in cluster.items()},
            **commit,
        }
    )


def _note(config: CampaignConfig, problem: Problem, targeted: bool) -> str:
    """What a person reads first on the run's page."""
    low, high = config.temperature.low, config.temperature.high
    model = f"models:/{config.tracking.model or config.name}@champion"
    question = f"{'One observation' if targeted else 'Any observation'}, parameters {', '.join(problem.names)}"
    return "\n\n".join(
        [
            f"{question}, every beta from {low:g} to {high:g}.",
            "To repeat it: `temperflow run config.yaml` with that artifact, the simulator at the tags' commit.",
            f'To use the best posterior of that name: `TemperedPosterior.load("{model}")`; with MLflow alone, '
            f'`mlflow.pyfunc.load_model("{model}").predict(x, params={{"beta": {low:g}}})`.',
        ]
    )


def _cluster() -> dict[str, float]:
    total = ray.cluster_resources()
    amounts = {"nodes": len(living_nodes()), "cpus": total.get("CPU", 0.0), "gpus": total.get("GPU", 0.0)}
    return {**amounts, "memory_gib": round(total.get("memory", 0.0) / 2**30, 1)}


def _git(folder: str) -> dict[str, str]:
    """Commit of the folder's repository, and whether anything has changed since; empty if it is in none."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", folder, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        changed = bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": commit, "git.changed": str(changed).lower()}
