r"""The probability `p(valid | u)` that a simulation succeeds.

Dropping failed simulations silently biases the posterior towards regions that fail; the likelihood of having
seen a valid observation belongs to the likelihood, `p(x, valid | u) = p(valid | u) p(x | valid, u)`.
"""

from __future__ import annotations

__all__ = ["Validity"]

import torch
from torch import Tensor, nn
from torch.nn import functional

_STEPS = 300


class Validity(nn.Module):
    """A small classifier of `u` `(*, d)`; constant until a failure has been seen."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(dim, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1))
        self.register_buffer("active", torch.tensor(False))
        self.active: Tensor

    def fit(self, u: Tensor, valid: Tensor, generator: torch.Generator) -> None:
        """Fits to parameters `(n, d)` and whether they were valid `(n,)`, by cross-entropy."""
        failures = int((~valid).sum())
        if failures == 0 or failures == len(valid):
            self.active.fill_(False)
            return
        self.active.fill_(True)
        optimizer = torch.optim.AdamW(self.parameters(), 5e-3, weight_decay=1e-2, fused=True)
        for _ in range(_STEPS):
            index = torch.randint(len(u), (min(512, len(u)),), generator=generator).to(u.device)
            optimizer.zero_grad(set_to_none=True)
            logits = self.network(u[index]).squeeze(-1)
            functional.binary_cross_entropy_with_logits(logits, valid[index].float()).backward()
            optimizer.step()

    def log_prob(self, u: Tensor) -> Tensor:
        """`log p(valid | u)`, shape `(*,)`."""
        if not bool(self.active):
            return u.new_zeros(u.shape[:-1])
        return functional.logsigmoid(self.network(u).squeeze(-1))
