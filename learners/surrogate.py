r"""The surrogate: an ensemble of conditional flows `p_e(x | u)` fitted to the stored simulations.

It is indifferent to where acquisition chose to simulate: a likelihood is learned, so no correction for the
proposal is needed. Members differ in kind; their log densities are pooled with weights from held-out pairs,

.. math:: \ell(u, x) = \sum_e w_e \log p_e(x \mid u) + \log p(\mathrm{valid} \mid u),

the logarithmic pool (Genest & Zidek 1986) with the weights of the mixture of highest held-out score (stacking, Yao et
al. 2018, arXiv 1704.02030). Their disagreement is the epistemic uncertainty.

Why not the mixture itself: temperatures below 1 visit theta for which x is an event of many sigma, and there a mixture
has the tail of its heaviest member. Flows that never saw a tail make it far too heavy; averaged logarithms
leave it to the members whose tails fall (`benchmarks/TRIED.md`). In the bulk both agree where the members do.
"""

from __future__ import annotations

__all__ = ["STEPS_A_PASS", "Surrogate", "SurrogateOptions"]

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from simulators.errors import DataError

from .member import Member
from .memory import Parts
from .packed import copies
from .rounded import Rounded
from .source import OnEpoch, Source, TrainingRows
from .threads import Threads
from .training import TrainOptions, told_apart
from .validity import Validity

#: Above this dimension of x, autoregressive splines cost more than they bring.
_SPLINE_DIM = 16
#: Members with a smaller weight are left out: they cost time, and their tails would be all that they bring. Tails are
#: worst where x is wide; elsewhere the average gains from small weights.
_MIN_WEIGHT, _MIN_WEIGHT_WIDE = 0.01, 0.1
#: Steps of a pass over a thousand simulations.
STEPS_A_PASS = 14
#: A member without weight learns again of so many times as many simulations.
_GROWN = 1.5
#: Pairs evaluated at once; on a CPU fewer, for more leave its cache, and take up to twice as long.
_CHUNK, _CHUNK_CPU = 65536, 2048
#: Log density of what a member cannot evaluate.
_IMPOSSIBLE = -1e6


@dataclass(frozen=True)
class SurrogateOptions:
    """What the ensemble is made of.

    Arguments:
        members: Kinds of member (`learners.member.KINDS`); empty chooses by the dimension of x.
        hidden: Widths of the hidden layers.
        held_out: Share of the simulations that only score.
        training: Options of a fit from scratch.
        update: Options of a fit that continues from the previous one while simulations still come.
        refine: Options of a last fit that continues from previous ones.
    """

    members: tuple[str, ...] = ()
    hidden: tuple[int, ...] = (128, 128, 128, 128)
    held_out: float = 0.1
    training: TrainOptions = field(default_factory=lambda: TrainOptions(max_epochs=200, patience=25))
    update: TrainOptions = field(
        default_factory=lambda: TrainOptions(max_epochs=40, patience=15, planned_steps=40 * STEPS_A_PASS)
    )
    refine: TrainOptions = field(default_factory=lambda: TrainOptions(max_epochs=80, patience=30, learning_rate=1.5e-3))

    def kinds(self, dim_x: int) -> tuple[str, ...]:
        """The members for data of dimension `dim_x`."""
        if self.members:
            return self.members
        if dim_x > _SPLINE_DIM:
            return ("gaussian", "affine", "rounded", "committee")
        flows = ("linear", "gaussian", "affine", "tailed", "spline", "full", "waves", "waves")
        return (*flows, "process", "location", "rounded")


class Surrogate(Source):
    """Ensemble of flows over scaled data `z` `(*, k)` given whitened parameters `u` `(*, d)`.

    Arguments:
        dim_u: Dimension d of `u`.
        dim_z: Dimension k of `z`.
        options: See `SurrogateOptions`.
        seed: Seed of the initial weights.
        curved: See `Whitening.curved`.
    """

    draws_x: ClassVar[bool] = True
    validity: Validity

    def __init__(
        self, dim_u: int, dim_z: int, options: SurrogateOptions, seed: int, curved: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.options, self.seed, self.dim_u, self.curved = options, seed, dim_u, tuple(curved)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            kinds = options.kinds(dim_z)
            self.members = nn.ModuleList([Member(kind, dim_z, dim_u, options.hidden, curved) for kind in kinds])
            self.validity = Validity(dim_u)
        self.register_buffer("weights", torch.full((len(kinds),), 1 / len(kinds)))
        self.weights: Tensor
        self._parts = Parts("evaluating the surrogate")
        #: Simulations that each member was fitted to last.
        self._seen = [0] * len(kinds)

    def fit(
        self,
        rows: TrainingRows,
        training: TrainOptions,
        generator: torch.Generator,
        on_epoch: OnEpoch | None = None,
        threads: int = 1,
    ) -> float:
        """Fits the members, then the weights and `p(valid | u)`.

        Members without weight are left as they are until there are half as many simulations again.

        Returns:
            Held-out loss of the pooled ensemble, `-mean log p(z | u)` in nats.

        Raises:
            DataError: No member is for such data.
        """
        u, z, valid = rows.u, rows.z, rows.valid
        context, held_out = u[valid], rows.held_out[valid]
        seeds = torch.randint(2**31, (len(self.members),), generator=generator).tolist()
        learning = [e for e, seen in enumerate(self._seen) if self.weights[e] > 0 or len(z) >= _GROWN * seen]
        pairs = context, z, held_out, training
        left: dict[int, Tensor] = {}

        def fit_member(e: int) -> None:
            own = torch.Generator().manual_seed(seeds[e])
            self.members[e].fit(*pairs, own, on_epoch, rows.lattice, rows.worth, left.get(e))  # type: ignore[operator]
            self._seen[e] = len(z)

        with Threads(threads) as sharing:
            # Networks of a committee share the threads, then all members do.
            for e in learning:
                if self.members[e].kind.committee:  # type: ignore[union-attr]
                    own = torch.Generator().manual_seed(seeds[e] + 1)
                    left[e] = self.members[e].fit_mean(*pairs, own, sharing)  # type: ignore[operator]
            sharing.map(fit_member, learning)
        if not any(bool(member.fitted) for member in self.members):
            raise DataError(
                "the surrogate's only members are for counts and other values that repeat, but no column of x is like "
                "that; choose other members, or leave the choice to temperflow"
            )
        _, scored = told_apart(held_out)
        with torch.no_grad():
            log_p = self._members(context[scored], z[scored]) if held_out.any() else None
        if log_p is not None:
            least = _MIN_WEIGHT_WIDE if self.dim_z > _SPLINE_DIM else _MIN_WEIGHT
            worth = torch.ones_like(log_p[0]) if rows.worth is None else rows.worth[scored]
            self.weights.copy_(_stack(log_p, self.options.kinds(self.dim_z), least, worth))
        else:
            fitted = self.weights.new_tensor([float(member.fitted) for member in self.members])  # type: ignore[arg-type]
            self.weights.copy_(fitted / fitted.sum())
        self.validity.fit(u, valid, generator)
        self.fitted = True
        if log_p is None:
            return float("nan")
        return -float(torch.logsumexp(log_p + self.weights.log()[:, None], dim=0) @ worth / worth.sum())

    def log_prob(self, u: Tensor, z: Tensor) -> Tensor:
        """`l(u, x)` for broadcastable `u` `(*, d)` and `z` `(*, k)`, shape `(*,)`."""
        batch = torch.broadcast_shapes(u.shape[:-1], z.shape[:-1])
        flat_u, flat_z = _flat(u, batch), _flat(z, batch)
        size = _CHUNK_CPU if flat_u.device.type == "cpu" else _CHUNK
        chunks = zip(flat_u.split(size), flat_z.split(size), strict=True)
        return torch.cat([self._parts.map(self._pooled, *chunk) for chunk in chunks]).reshape(batch)

    def member_log_prob(self, u: Tensor, z: Tensor) -> Tensor:
        """`log p_e(z | u)` of the members that count, and of committees their networks', shape `(e, *)`.

        Of all members, where one alone counts that is no committee.
        """
        batch = torch.broadcast_shapes(u.shape[:-1], z.shape[:-1])
        flat = _flat(u, batch), _flat(z, batch)
        used = self.weights.nonzero().squeeze(-1).tolist()
        voices = [self._parts.map(self.members[e].voices, *flat) for e in used]
        log_p = torch.cat(voices, dim=1).mT
        if len(log_p) == 1:
            log_p = self._members(*flat)[torch.tensor([bool(member.fitted) for member in self.members])]
        return log_p.reshape(-1, *batch)

    def sample(self, u: Tensor, generator: torch.Generator) -> Tensor:
        """One draw `z` `(n, k)` for each `u` `(n, d)`, from members in proportion to their weights."""
        chosen = torch.multinomial(self.weights.cpu(), len(u), replacement=True, generator=generator)
        seed = int(torch.randint(2**31, (), generator=generator))
        z = torch.empty(len(u), self.dim_z, device=u.device)
        with torch.random.fork_rng(devices=[u.device] if u.is_cuda else []), torch.no_grad():
            torch.manual_seed(seed)
            for e, member in enumerate(self.members):
                rows = (chosen == e).to(u.device)
                if rows.any():
                    z[rows] = self._parts.map(member.sample, u[rows])  # type: ignore[arg-type]
        return z

    def middle(self, u: Tensor) -> Tensor:
        """The members' middles, averaged by their weights."""
        middle = u.new_zeros(len(u), self.dim_z)
        for e in self.weights.nonzero().squeeze(-1).tolist():
            parts = [self._parts.map(self.members[e].middle, part) for part in u.split(_CHUNK // 8)]
            middle += self.weights[e] * torch.cat(parts)
        return middle

    def as_dict(self) -> dict[str, Any]:
        return {
            "source": "Surrogate",
            "members": list(self.options.kinds(self.dim_z)),
            "dim_u": self.dim_u,
            "dim_z": self.dim_z,
            "hidden": list(self.options.hidden),
            "curved": list(self.curved),
        }

    def frozen(self) -> Surrogate:
        """Without members that have no weight: as small as it can be."""
        used = self.weights.nonzero().squeeze(-1).tolist()
        kinds = self.options.kinds(self.dim_z)
        options = replace(self.options, members=tuple(kinds[e] for e in used))
        small = Surrogate(self.dim_u, self.dim_z, options, self.seed, self.curved)
        weights = {k: v for k, v in self.state_dict().items() if not k.startswith("members.")}
        weights["weights"] = self.weights[used]
        for place, e in enumerate(used):
            weights |= {f"members.{place}.{k}": v for k, v in self.members[e].state_dict().items()}
        small.resume(copies(weights))
        return small.eval().requires_grad_(False)

    @property
    def draws_cells(self) -> bool:
        cells = [isinstance(member.flow, Rounded) for member in self.members]
        return bool(self.weights[torch.tensor(cells)].sum() > 0.5)

    def resume(self, weights: dict[str, Tensor]) -> None:
        super().resume(weights)
        for member in self.members:
            member.resume()  # type: ignore[operator]

    @property
    def dim_z(self) -> int:
        return int(self.members[0].features)  # type: ignore[arg-type]

    def _pooled(self, u: Tensor, z: Tensor) -> Tensor:
        used = self.weights.nonzero().squeeze(-1).tolist()
        log_p = torch.stack([self.members[e].log_prob(u, z) for e in used])
        pooled = (self.weights[used][:, None] * log_p.nan_to_num(_IMPOSSIBLE, _IMPOSSIBLE, _IMPOSSIBLE)).sum(dim=0)
        return pooled + self.validity.log_prob(u)

    def _members(self, u: Tensor, z: Tensor) -> Tensor:
        never = torch.full_like(u[:, 0], -math.inf)  # those for other data
        scored = [self._parts.map(m.log_prob, u, z) if m.fitted else never for m in self.members]  # type: ignore[arg-type]
        return torch.stack(scored)


def _stack(log_p: Tensor, kinds: Sequence[str], least: float, worth: Tensor, iterations: int = 200) -> Tensor:
    r"""Weights `(e,)` of the mixture of highest held-out score of `log_p` `(e, n)`, by EM; zero below `least`.

    .. math:: w_e = \frac{n\, s_e + \pi_e}{n + 1}, \qquad
        s_e = \operatorname{mean}_i\, \frac{w_e p_{ei}}{\sum_k w_k p_{ki}}

    with one row's worth in favour of equal weights of the kinds, `pi` (a Dirichlet prior): the best mixture for five
    rows is a single member, by chance. Rows count in proportion to `worth` `(n,)`, their number n being the effective
    one. Members of one kind have the same weight: they differ by chance, which is not worth choosing among.
    """
    same = torch.tensor([[float(a == b) for b in kinds] for a in kinds], device=log_p.device)
    count = same.sum(dim=1, keepdim=True)
    same /= count
    equal = (1 / count / (1 / count).sum()).squeeze(1)
    weights = torch.full((len(log_p),), 1 / len(log_p), device=log_p.device)
    log_p = log_p.nan_to_num(-1e4, posinf=-1e4, neginf=-1e4)
    worth = worth / worth.sum()
    rows = 1 / worth.square().sum()
    share = weights
    for _ in range(iterations):
        share = same @ (torch.softmax(log_p + weights.log()[:, None], dim=0) @ worth)
        weights = (rows * share + equal) / (rows + 1)
    # By the data alone: in a mean of logarithms, a small weight of a member that is absurd does harm.
    weights = torch.where(share < min(least, float(share.max())), 0.0, weights)
    return weights / weights.sum()


def _flat(value: Tensor, batch: torch.Size) -> Tensor:
    return value.expand(*batch, value.shape[-1]).reshape(-1, value.shape[-1])
