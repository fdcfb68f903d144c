"""The state of a learner between two trainings, as bytes: safetensors, no pickle.

Simulations are not in it: they are in the store.
"""

from __future__ import annotations

__all__ = ["dump_learner", "restore_learner"]

import torch

from simulators.errors import SavedModelError

from .learner import Learner
from .network import PosteriorNetwork
from .packed import pack, unpack
from .saved_files import DAMAGE
from .scaling import DataScaling
from .surroundings import as_usual

_FORMAT = 2
_STATE = "state.json"


def dump_learner(learner: Learner) -> bytes:
    """Weights of source, embedding and network, and what they need to be used, after a training."""
    features, source, network = learner.features, learner.source, learner.network
    assert source is not None and network is not None
    embedding = features.embedding
    state = {
        "format": _FORMAT,
        "source": source.as_dict(),
        "begun": learner.begun,
        "scaling": features.known_scaling.as_dict(),
        "embedding": None if embedding is None else embedding.as_dict(),
        "network": network.as_dict(),
    }
    parts = {"source.": source, "network.": network, **({} if embedding is None else {"embedding.": embedding})}
    weights = {f"{prefix}{k}": v for prefix, part in parts.items() for k, v in part.state_dict().items()}
    return pack(_STATE, state, weights)


@as_usual()
def restore_learner(learner: Learner, raw: bytes) -> None:
    """Puts a new learner where another one was; its next training continues from there.

    Raises:
        SavedModelError: Damaged, or of a learner with other options.
    """
    features = learner.features
    try:
        state, tensors = unpack(_STATE, raw)
        if state["format"] != _FORMAT or (state["embedding"] is None) != (features.kind is None):
            raise SavedModelError("expected the state of a learner with the same embedding, written by this version")
        features.scaling = DataScaling.from_dict(state["scaling"])
        if state["embedding"] is not None:
            features.embedding = features.restore(state["embedding"], _part(tensors, "embedding."))
        source = learner.new_source()
        if state["source"] != source.as_dict():
            raise SavedModelError(f"expected a learner with {source.as_dict()}, got {state['source']}")
        source.resume(_part(tensors, "source."))
        network = PosteriorNetwork.from_dict(state["network"])
        network.load_state_dict(_part(tensors, "network."))
        begun = int(state.get("begun", 0))  # Earlier states do not know it.
    except DAMAGE as error:
        features.scaling = features.embedding = None
        raise SavedModelError(f"the learner's checkpoint cannot be used: {error}") from error
    learner.source, learner.network, learner.begun = source, network.to(learner.device), begun


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
