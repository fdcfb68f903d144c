"""Weights and a record about them in the bytes of one safetensors file: no pickle."""

from __future__ import annotations

__all__ = ["copies", "pack", "unpack"]

import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor


def copies(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, none of which shares memory: in a file those that do could not be told apart."""
    return {name: v.detach().contiguous().cpu().clone() for name, v in weights.items()}


def pack(name: str, record: Mapping[str, Any], weights: Mapping[str, Tensor]) -> bytes:
    """The file; `record`, which is JSON, is the tensor of that name."""
    packed = copies(weights)
    packed[name] = torch.frombuffer(bytearray(json.dumps(record).encode()), dtype=torch.uint8)
    return save(packed)


def unpack(name: str, raw: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The record of that name, and the weights; of damaged bytes any of `saved_files.DAMAGE` is raised."""
    weights = load(raw)
    record: dict[str, Any] = json.loads(bytes(weights.pop(name).tolist()))
    return record, weights
