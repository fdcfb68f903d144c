r"""The probability `p(valid | u)` that a simulation succeeds.

Dropping failed simulations silently biases the posterior towards regions that fail; the likelihood of having
seen a valid observation belongs to the likelihood, `p(x, valid | u) = p(valid | u) p(x | valid, u)`.

Few failures teach little: what a classifier makes of those that come by chance would tilt every posterior. So it begins
with one probability for all `u`, and learns for as many steps as halves of the data say of each other that it pays.
"""

from __future__ import annotations

__all__ = ["Validity"]

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

_STEPS = 300
#: Steps between two looks at the other half, and looks without a gain after which it is given up.
_LOOK, _PATIENCE = 10, 8
#: Standard errors by which learning must beat one probability for all.
_CERTAIN = 1.0


class Validity(nn.Module):
    """A small classifier of `u` `(*, d)`; constant until a failure has been seen."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(dim, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1))
        self.register_buffer("active", torch.tensor(False))
        self.active: Tensor
        # Every fit begins with the same weights: those of the last fit have seen what is held out now.
        self._first = {name: value.clone() for name, value in self.network.state_dict().items()}

    def fit(self, u: Tensor, valid: Tensor, generator: torch.Generator) -> None:
        """Fits to parameters `(n, d)` and whether they were valid `(n,)`, by cross-entropy."""
        failures = int((~valid).sum())
        if failures == 0 or failures == len(valid):
            self.active.fill_(False)
            return
        self.active.fill_(True)
        steps = self._worthwhile(u, valid, generator)
        self._begin(valid)
        for step, _ in enumerate(self._learn(u, valid, generator)):
            if step == steps:
                break

    def _worthwhile(self, u: Tensor, valid: Tensor, generator: torch.Generator) -> int:
        """How many steps on one half of the data serve the other half best; none if that may well be chance."""
        order = torch.randperm(len(u), generator=generator).to(u.device)
        halves = order[::2], order[1::2]
        curves = []
        for shown, kept in (halves, halves[::-1]):
            self._begin(valid[shown])
            losses: list[Tensor] = []
            for step, _ in enumerate(self._learn(u[shown], valid[shown], generator)):
                if step % _LOOK == 0:
                    with torch.no_grad():
                        losses.append(self._loss(u[kept], valid[kept]))
                    means = torch.stack(losses).mean(dim=1)
                    if len(losses) - int(means.argmin()) > _PATIENCE:
                        break
            curves.append(torch.stack(losses))
        looks = min(len(curve) for curve in curves)
        gain = torch.cat([curve[0] - curve[:looks] for curve in curves], dim=1)
        mean = gain.mean(dim=1)
        best = int(mean.argmax())
        error = gain[best].std() / len(u) ** 0.5
        return best * _LOOK if float(mean[best]) > _CERTAIN * float(error) else 0

    def _begin(self, valid: Tensor) -> None:
        """One probability for all: a half more of each kind than there is, so that none is certain."""
        self.network.load_state_dict(self._first)
        good, bad = int(valid.sum()) + 0.5, int((~valid).sum()) + 0.5
        with torch.no_grad():
            last = self.network[-1]
            last.weight.zero_()  # type: ignore[operator]
            last.bias.fill_(math.log(good / bad))  # type: ignore[operator]

    def _learn(self, u: Tensor, valid: Tensor, generator: torch.Generator) -> Iterator[None]:
        """Comes back before the first step, and after each."""
        yield
        optimizer = torch.optim.AdamW(self.network.parameters(), 5e-3, weight_decay=1e-2, fused=True)
        for _ in range(_STEPS):
            index = torch.randint(len(u), (min(512, len(u)),), generator=generator).to(u.device)
            optimizer.zero_grad(set_to_none=True)
            self._loss(u[index], valid[index]).mean().backward()
            optimizer.step()
            yield

    def _loss(self, u: Tensor, valid: Tensor) -> Tensor:
        logits = self.network(u).squeeze(-1)
        return functional.binary_cross_entropy_with_logits(logits, valid.float(), reduction="none")

    def log_prob(self, u: Tensor) -> Tensor:
        """`log p(valid | u)`, shape `(*,)`."""
        if not bool(self.active):
            return u.new_zeros(u.shape[:-1])
        return functional.logsigmoid(self.network(u).squeeze(-1))
