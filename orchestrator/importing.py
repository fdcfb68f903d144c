"""Simulations from elsewhere, put into a campaign's store."""

from __future__ import annotations

__all__ = ["Imported", "import_simulations"]

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributions import Distribution

from learners.whitening_choice import whiten
from simulators.errors import ConfigError, DataError, RunDirectoryError
from simulators.outcome import Array, Outcomes, Status, not_finite

from .config import CampaignConfig
from .config_reading import load_config, validate_config
from .journal import ProposalJournal
from .problem import resolve, resolve_prior
from .proposal import Finished, ProposalKind, Proposals
from .run_directory import RunDirectory
from .simulation_file import read_simulations

Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Imported:
    """What became of a file.

    Attributes:
        rows: Simulations in it.
        failures: Those of them without a finite result.
        repeated: Whether they were in the store already; then nothing was added.
    """

    rows: int
    failures: int
    repeated: bool


def import_simulations(
    run: RunDirectory, file: Path, config: Path | None = None, from_prior: bool = False, own_code: bool = False
) -> Imported:
    """Adds the simulations of a file to a campaign, all or none; they do not count against its budget.

    The same numbers, in whatever format, are added once.

    Arguments:
        run: The campaign's folder.
        file: `.parquet`, `.npz`, `.csv`, `.h5` or `.hdf5`; see `read_simulations`.
        config: Configuration of the campaign; needed to begin one.
        from_prior: Whether theta was drawn from the prior: then the rows count as draws of `p(theta) p(x | theta)`.
        own_code: Whether the user wants the prior's module to be imported that the run directory names, which may come
            from elsewhere; one that `config` names is.

    Raises:
        DataError: The file cannot be used; nothing is written.
        TemperflowError: The campaign cannot.
    """
    if config is not None:
        settings = load_config(config)
        problem = resolve(settings, config.parent)
        prior, names, folder = problem.prior, problem.names, problem.spec.folder
        identity = problem.identity(settings)
    elif run.exists:
        settings = validate_config(run.entry("config"), str(run.path / "campaign.json"))
        folder, identity = run.records().get("folder"), run.entry("identity")
        prior, names = _recorded_prior(settings, folder, run, own_code)
    else:
        raise RunDirectoryError(f"there is no campaign in {run.path} yet; give --config campaign.yaml to begin one")
    theta, x = read_simulations(file, names)
    log_prior = _log_prior(prior, theta, names, file)
    observed = identity.get("observation")
    if observed is not None and len(observed) != x.shape[1]:
        raise DataError(f"expected x of {len(observed)} numbers as in the observation, got {x.shape[1]} in {file}")
    run.open(settings.model_dump(mode="json"), identity, names)
    try:
        run.update(folder=folder)
        return _add(run, theta, x, log_prior if from_prior else None, file)
    finally:
        run.close()


def _recorded_prior(
    config: CampaignConfig, folder: str | None, run: RunDirectory, own_code: bool
) -> tuple[Distribution, tuple[str, ...]]:
    if config.prior is None and config.simulator.task is None and not config.parameters:
        raise ConfigError(
            f"the campaign in {run.path} was started from Python with a prior that no file describes; simulations can "
            "be imported only into a campaign with a configuration file"
        )
    if config.prior is not None and not own_code:
        raise ConfigError(
            f"the campaign in {run.path} has a prior of somebody's own, {config.prior}; if you trust that code, give "
            "--own-code to run it, or give your own configuration with --config"
        )
    if config.prior is not None and folder is None:
        raise ConfigError(f"{run.path} does not say where {config.prior} is; give --config campaign.yaml")
    return resolve_prior(config, Path(folder or "."))


def _log_prior(prior: Distribution, theta: Array, names: Sequence[str], file: Path) -> Array:
    """`log p(theta)` `(n,)`, of parameters that must lie in the prior's support."""
    whitening = whiten(prior)
    values = torch.as_tensor(theta)
    inside = values.isfinite().all(dim=1)
    inside[inside.clone()] = whitening.in_support(values[inside])
    density = torch.full((len(theta),), -torch.inf, dtype=torch.float64)
    if inside.any():
        try:
            density[inside] = whitening.log_prior(values[inside])
        except ValueError as error:  # What torch raises for values outside a support that is no box.
            raise DataError(
                f"{file} has a theta outside the prior's support: {' '.join(str(error).split())}"
            ) from error
    outside = (density == -torch.inf).nonzero().flatten().tolist()
    if outside:
        row = outside[0]
        first = ", ".join(f"{name}={value:.6g}" for name, value in zip(names, theta[row], strict=True))
        raise DataError(
            f"expected each theta in {file} inside the prior's support, but {len(outside)} of {len(theta)} are not, "
            f"the first in row {row}: {first}; leave them out, or widen the prior"
        )
    return density.numpy()


def _add(run: RunDirectory, theta: Array, x: Array, log_density: Array | None, file: Path) -> Imported:
    store = run.store()
    summary = store.summary()
    if summary.width not in (None, x.shape[1]):
        raise DataError(f"expected x of {summary.width} numbers as in the store, got {x.shape[1]} in {file}")
    ok: Mask = np.asarray(np.isfinite(x).all(axis=1))
    failures = int((~ok).sum())
    key = _key(theta, x)
    if summary.by_kind[ProposalKind.IMPORTED]:
        workers = store.read(["worker"])["worker"].unique().to_pylist()
        if any(worker.endswith(key) for worker in workers):
            return Imported(len(theta), failures, True)
    # What was in flight when the campaign was interrupted keeps its ids.
    pending = ProposalJournal(run.journal).read()
    first = max([summary.highest_id, *pending.id.tolist()]) + 1
    proposals = Proposals.of_kind(first, theta, ProposalKind.IMPORTED, 0, log_density)
    proposals.seed[:] = -1
    worker = np.full(len(theta), f"import:{file.name}:{key}", dtype=object)
    store.append(Finished(proposals, _outcomes(x, ok), np.zeros(len(theta), dtype=np.int64), worker))
    return Imported(len(theta), failures, False)


def _outcomes(x: Array, ok: Mask) -> Outcomes:
    unknown = np.full(len(x), np.nan)
    bad = (~np.isfinite(x)).sum(axis=1)
    return Outcomes(
        np.where(ok, Status.OK.code, Status.NOT_FINITE.code).astype(np.uint8),
        np.where(ok, x.shape[1], -1),
        x[ok].ravel(),
        unknown,
        unknown,
        {row: not_finite(int(bad[row]), x.shape[1]) for row in np.flatnonzero(~ok).tolist()},
    )


def _key(theta: Array, x: Array) -> str:
    """What identifies the numbers of a file."""
    digest = hashlib.sha256(repr((theta.shape, x.shape)).encode())
    for values in (theta, x):
        digest.update(np.where(np.isnan(values), np.nan, values).tobytes())
    return digest.hexdigest()[:16]
