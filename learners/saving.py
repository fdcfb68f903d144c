"""The saved form of a posterior: `posterior.safetensors` (numbers) and `posterior.json` (the rest).

No pickle: loading runs no code that came with the file.
"""

from __future__ import annotations

__all__ = ["load_posterior", "save_posterior", "saved_digest"]

import hashlib
import json
import os
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from simulators.errors import SavedModelError

from .constants import FIRST_SCORING_STEPS
from .embedding import Embedding
from .familiarity import Familiarity
from .network import PosteriorNetwork
from .packed import copies
from .posterior import TemperedPosterior
from .saved_check import check_parts
from .saved_files import DAMAGE, FORMAT_VERSION, SPEC, TENSORS, damaged, read_spec
from .saved_source import read_source, save_source
from .scaling import DataScaling
from .whitening import whitening_from_dict

if TYPE_CHECKING:
    from torch import nn

#: What readers of formats 2 to 6 understand too: all without an embedding, a guide, a trunk, frames, more steps.
_WITHOUT_EMBEDDING, _WITHOUT_GUIDE, _WITHOUT_TRUNK, _WITHOUT_FRAMES, _OF_FIRST_STEPS = 2, 3, 4, 5, 6


def save_posterior(posterior: TemperedPosterior, directory: Path) -> Path:
    """Writes both files, each complete or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = copies({f"network.{k}": v for k, v in posterior.network.state_dict().items()})
    familiarity = posterior.familiarity
    tensors["familiarity.mean"] = familiarity.mean.contiguous()
    tensors["familiarity.precision"] = familiarity.precision.contiguous()
    tensors["familiarity.distances"] = familiarity.distances.contiguous()
    embedding = posterior.embedding
    if embedding is not None:
        tensors |= copies({f"embedding.{k}": v for k, v in embedding.state_dict().items()})
    spec: dict[str, Any] = {
        "format": _format(posterior),
        "names": list(posterior.names),
        "network": posterior.network.as_dict(),
        "whitening": posterior.whitening.as_dict(),
        "scaling": posterior.scaling.as_dict(),
        "default_x": None if posterior.default_x is None else posterior.default_x.tolist(),
        "metadata": posterior.metadata,
    }
    if embedding is not None:
        spec["embedding"] = embedding.as_dict()
    json.dumps(spec)  # first, so that metadata that JSON does not know leaves an old save alone
    spec["source"] = save_source(posterior.source, posterior.whitening, directory)
    text = json.dumps(spec, indent=1)
    temporary = directory / f".{TENSORS}.{os.getpid()}"
    save_file(tensors, temporary)
    os.replace(temporary, directory / TENSORS)
    temporary = directory / f".{SPEC}.{os.getpid()}"
    temporary.write_text(text)
    os.replace(temporary, directory / SPEC)
    return directory


def load_posterior(source: str | Path, embedding: nn.Module | None = None) -> TemperedPosterior:
    """Reads a posterior; a run directory's is in its folder `posterior`, a registered model's comes from MLflow.

    `embedding` is the user's module, of a posterior that was trained with one.
    """
    if isinstance(source, str) and source.startswith("models:/"):
        with tempfile.TemporaryDirectory() as temporary:
            return load_posterior(_downloaded(source, temporary), embedding)
    directory, spec = read_spec(source)
    try:
        tensors = load_file(directory / TENSORS)
        _check_size(spec["network"], sum(tensor.numel() for tensor in tensors.values()))
        check_parts(spec, {name: tensor.numpy() for name, tensor in tensors.items()})
        network = PosteriorNetwork.from_dict(spec["network"])
        network.load_state_dict(_part(tensors, "network."))
        return TemperedPosterior(
            network,
            whitening_from_dict(spec["whitening"]),
            DataScaling.from_dict(spec["scaling"]),
            Familiarity(*(tensors[f"familiarity.{k}"] for k in ("mean", "precision", "distances"))),
            spec["names"],
            None if spec["default_x"] is None else torch.tensor(spec["default_x"], dtype=torch.float64),
            spec["metadata"],
            _restored(spec.get("embedding"), _part(tensors, "embedding."), embedding),
            read_source(directory, spec.get("source")),
        )
    except SavedModelError:
        raise  # the embedding: what to do is said
    except DAMAGE as error:
        raise damaged(directory, error) from error


def _check_size(network: dict[str, Any], numbers: int) -> None:
    """Raises `ValueError` if so few numbers cannot be the network's: before it is made, for it may be huge.

    Not all weights are counted: how the network is made may change, what it has at least will not.
    """
    dim_u, dim_z, options = network["dim_u"], network["dim_z"], network["options"]
    flow = _weights([dim_u + dim_z, *options["hidden"], dim_u * options["bins"]])
    least = dim_u**2 + max(1, abs(options["transforms"])) * flow
    if "guide" in network:
        guide = network["guide"]
        least += _weights([dim_z, *guide["guess"], dim_u])
        least += _weights([dim_u, *guide["hidden"], dim_z]) + _weights([dim_u, *guide["scales"], dim_z])
    if least > numbers:
        raise ValueError(f"a network of its sizes has more than {least} numbers, but there are {numbers}")


def _weights(widths: list[int]) -> int:
    return sum(abs(a * b) for a, b in pairwise(widths))


def _format(posterior: TemperedPosterior) -> int:
    """The lowest that says all: older versions read what they can."""
    guide = posterior.network.guide
    if guide is not None and guide.steps != FIRST_SCORING_STEPS:
        return FORMAT_VERSION
    if guide is not None and guide.framed:
        return _OF_FIRST_STEPS
    if posterior.network.has_trunk:
        return _WITHOUT_FRAMES
    if guide is not None:
        return _WITHOUT_TRUNK
    return _WITHOUT_EMBEDDING if posterior.embedding is None else _WITHOUT_GUIDE


def _restored(
    spec: dict[str, Any] | None, tensors: dict[str, torch.Tensor], module: nn.Module | None
) -> Embedding | None:
    if spec is not None and (module is None or spec["kind"] == "module"):
        return Embedding.restore(spec, tensors, module)
    if module is not None:
        raise SavedModelError(
            "an embedding was given, but the posterior was trained without a module of your own; leave it out"
        )
    return None


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def saved_digest(directory: Path) -> str:
    """SHA-256 of what `save_posterior` wrote, empty if there is nothing."""
    try:
        parts = [(directory / name).read_bytes() for name in (SPEC, TENSORS)]
    except OSError:
        return ""
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _downloaded(uri: str, folder: str) -> Path:
    """Where a model of MLflow's registry lies after it was fetched into `folder`."""
    try:
        import mlflow
    except ImportError as error:
        raise SavedModelError(f"{uri} is in MLflow's registry; install mlflow to load it") from error
    try:
        model = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SavedModelError(
            f"{uri} cannot be fetched from MLflow ({reason}); check the name, and MLFLOW_TRACKING_URI"
        ) from error
    found = next(iter(model.rglob(SPEC)), None)
    if found is None:
        raise SavedModelError(f"{uri} is not a posterior of temperflow: it has no {SPEC}")
    return found.parent
