r"""Learning an embedding: jointly with a small flow `q(u | s(z))`, by weighted maximum likelihood (`embedding.py`)."""

from __future__ import annotations

__all__ = ["learn_embedding"]

import torch
from torch import Tensor, nn
from zuko.distributions import NormalizingFlow

from .embedding import Embedding, EmbeddingOptions
from .flows import spline_flow
from .source import OnEpoch
from .training import fit_module, told_apart

_HIDDEN, _TRANSFORMS = (64, 64), 2
#: Nats that one held-out simulation may cost.
_WORST = 1e3


def learn_embedding(
    kind: str | nn.Module,
    u: Tensor,
    z: Tensor,
    log_weight: Tensor,
    held_out: Tensor,
    options: EmbeddingOptions,
    generator: torch.Generator,
    on_epoch: OnEpoch | None = None,
) -> Embedding:
    """The embedding that says most of `u`, frozen and standardized.

    Arguments:
        kind: One of `learners.embedding.KINDS`, or the user's module, which stays as it is: a copy learns.
        u: Whitened parameters of valid simulations, `(n, d)`.
        z: Their scaled data, `(n, k)`.
        log_weight: `log p(theta) - log g(theta)` for the density g of each proposal, `(n,)`; not finite where there is
            none, which counts as weight one: any weights lead to a sufficient statistic, if there is one.
        held_out: Which simulations stop the training, boolean `(n,)`.
        options: See `EmbeddingOptions`.
        generator: Source of randomness on the CPU.
        on_epoch: See `OnEpoch`.

    Raises:
        DataError: The kind does not fit the data.
    """
    dim_u, dim_z = u.shape[1], z.shape[1]
    with torch.random.fork_rng(devices=[u.device] if u.is_cuda else []):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        if isinstance(kind, str):
            embedding = Embedding.build(kind, dim_z, options.dim or max(4, 2 * dim_u), options)
        else:
            embedding = Embedding.of_module(kind, z)
        # Before anything is learned too, the flow gets numbers of order one.
        embedding.to(u.device).standardize(z)
        joint = _Estimator(embedding, dim_u).to(u.device)
        lesson = _Weighted(u, z, _weights(log_weight).to(u), held_out)
        fit_module(joint, lesson, u.device, options.training, generator, on_epoch)
    embedding.standardize(z)
    return embedding.eval().requires_grad_(False)


class _Estimator(nn.Module):
    """`q(u | s(z))`."""

    def __init__(self, embedding: Embedding, dim_u: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.flow = spline_flow(dim_u, embedding.dim, _HIDDEN, _TRANSFORMS)

    def forward(self, z: Tensor) -> NormalizingFlow:
        return self.flow(self.embedding(z))


class _Weighted:
    """Simulations and how much each counts."""

    def __init__(self, u: Tensor, z: Tensor, weight: Tensor, held_out: Tensor) -> None:
        self.u, self.z, self.weight = u, z, weight
        self.learned, scored = told_apart(held_out)
        self.scored = u[scored], z[scored], weight[scored]

    def __len__(self) -> int:
        return len(self.learned)

    def loss(self, module: nn.Module, rows: Tensor, generator: torch.Generator) -> Tensor:
        rows = self.learned[rows]
        log_q, weight = module(self.z[rows]).log_prob(self.u[rows]), self.weight[rows]
        finite = log_q.isfinite()
        return -(weight * log_q)[finite].mean()

    def score(self, module: nn.Module) -> float:
        parts = zip(*(column.split(4096) for column in self.scored), strict=True)
        logs = [(w, module(z).log_prob(u).nan_to_num(-_WORST).clamp(min=-_WORST)) for u, z, w in parts]
        total = sum(float(w.sum()) for w, _ in logs)
        return -sum(float((w * log_q).sum()) for w, log_q in logs) / total


def _weights(log_weight: Tensor) -> Tensor:
    """Truncated importance weights (Ionides 2008) of mean one, one where they are not known."""
    weight, known = torch.ones_like(log_weight), log_weight.isfinite()
    if known.any():
        raw = log_weight[known].exp()
        raw = raw.clamp(max=float(raw.mean() * len(raw) ** 0.5))
        weight[known] = raw / raw.mean()
    return weight.float()
