"""The state of a learner between two trainings, as bytes: safetensors, no pickle.

Simulations are not in it: they are in the store.
"""

from __future__ import annotations

__all__ = ["dump_learner", "restore_learner"]

import json

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from simulators.errors import SavedModelError

from .learner import Learner
from .network import PosteriorNetwork
from .scaling import DataScaling
from .surrogate import Surrogate

_FORMAT = 1
_STATE = "state.json"
_DAMAGE = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, SafetensorError)


def dump_learner(learner: Learner) -> bytes:
    """Weights of the ensemble and of the network, and what they need to be used, after a training."""
    assert learner.surrogate is not None and learner.scaling is not None and learner.network is not None
    state = {
        "format": _FORMAT,
        "members": [bool(member.fitted) for member in learner.surrogate.members],
        "kinds": list(learner.options.surrogate.kinds(learner.scaling.dim)),
        "scaling": learner.scaling.as_dict(),
        "network": learner.network.as_dict(),
    }
    tensors = {f"surrogate.{k}": v.contiguous().cpu() for k, v in learner.surrogate.state_dict().items()}
    tensors |= {f"network.{k}": v.contiguous().cpu() for k, v in learner.network.state_dict().items()}
    # Tensors that share memory cannot be told apart in the file.
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    tensors[_STATE] = torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)
    return save(tensors)


def restore_learner(learner: Learner, raw: bytes) -> None:
    """Puts a new learner where another one was; its next training continues from there.

    Raises:
        SavedModelError: Damaged, or of a learner with other options.
    """
    try:
        tensors = load(raw)
        state = json.loads(bytes(tensors.pop(_STATE).tolist()))
        scaling = DataScaling.from_dict(state["scaling"])
        kinds = list(learner.options.surrogate.kinds(scaling.dim))
        if state["format"] != _FORMAT or state["kinds"] != kinds:
            raise SavedModelError(f"expected a learner with the members {kinds}, got {state['kinds']}")
        surrogate = Surrogate(learner.whitening.dim, scaling.dim, learner.options.surrogate, learner.seed)
        surrogate.load_state_dict(_part(tensors, "surrogate."))
        surrogate.fitted = True
        for member, fitted in zip(surrogate.members, state["members"], strict=True):
            member.fitted = fitted
        network = PosteriorNetwork.from_dict(state["network"])
        network.load_state_dict(_part(tensors, "network."))
    except _DAMAGE as error:
        raise SavedModelError(f"the learner's checkpoint cannot be used: {error}") from error
    learner.scaling = scaling
    learner.surrogate, learner.network = surrogate.to(learner.device), network.to(learner.device)


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
