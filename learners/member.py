r"""One member of the surrogate ensemble: a conditional density `p(z | u)` of one kind.

.. math:: p(z \mid u) = p_\text{flow}\!\left(\frac{z - m(u)}{s} \,\middle|\, \phi(u)\right) \Big/ \prod_j s_j

with the mean `m` of a Gaussian process or a committee (zero where the kind has none) and features `phi`: `u`; the
prior's quantile `t = 2 Phi(u) - 1` of parameters that are not normal, for a simulator that is simple in `theta` is
simple in it where the prior is uniform; and for some kinds waves `sin(k pi t / 2)`, `cos(k pi t / 2)`, in which
symmetric and oscillating simulators are simple.

No kind is best: of few simulations a stiff one learns more, of many a flexible one, and a mixture of different ones is
better than any. Which of them count is decided by held-out simulations (`surrogate.py`).
"""

from __future__ import annotations

__all__ = ["KINDS", "Kind", "Member"]

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from zuko.flows import Flow

from .committee import CommitteeMean
from .flows import LocationScale, affine_flow, gaussian_flow, spline_flow
from .lattice import Lattice
from .process import ProcessMean
from .rounded import Rounded
from .rows import evenly
from .threads import Threads
from .training import TrainOptions, fit_flow

#: Above this dimension a member does not model correlations that vary with u, and affine flows are shallow.
_WIDE = 16
#: Simulations that least squares start from, and that committees learn from: more would say the same.
_REGRESSED = 100_000


@dataclass(frozen=True)
class Kind:
    """What a member is made of.

    Arguments:
        flow: "linear", "gaussian", "affine", "spline" or "rounded", which is for data on a lattice only.
        full: Whether the regression below the flow has a full covariance that depends on u.
        transforms: Autoregressive transforms above it.
        tailed: Whether splines have affine tails.
        process: Whether a Gaussian process is the mean.
        committee: Networks of the committee that is the mean; none if zero.
        deeper: Whether its networks have half as many layers again as others.
        graded: Whether correlations are graded, see `LocationScale`.
        waves: Number of frequencies among the features.
        constant: Whether the shape of what the regression leaves is the same for all u.
        linear_start: Whether the regression starts from least squares: better where the simulator is smooth, worse
            where it is not, for the networks then learn less.
    """

    flow: str
    full: bool = False
    transforms: int = 0
    tailed: bool = False
    process: bool = False
    committee: int = 0
    deeper: bool = False
    graded: bool = False
    waves: int = 0
    constant: bool = False
    linear_start: bool = False


KINDS = {
    "linear": Kind("linear", linear_start=True),
    "gaussian": Kind("gaussian"),
    "affine": Kind("affine", transforms=3, linear_start=True),
    "spline": Kind("spline", transforms=3),
    "tailed": Kind("spline", transforms=2, tailed=True, linear_start=True),
    "full": Kind("spline", full=True, transforms=1, tailed=True, linear_start=True),
    "waves": Kind("spline", full=True, transforms=1, tailed=True, waves=2),
    "process": Kind("spline", full=True, transforms=1, tailed=True, process=True),
    "location": Kind("spline", transforms=2, tailed=True, constant=True, linear_start=True),
    "rounded": Kind("rounded"),
    "committee": Kind("gaussian", committee=8, deeper=True, graded=True),
    # Earlier ones, which saved surrogates are made of.
    "committee-gaussian": Kind("gaussian", committee=4),
    "committee-graded": Kind("gaussian", committee=4, graded=True),
}


class Member(nn.Module):
    """See the module.

    Arguments:
        kind: One of `KINDS`.
        features: Dimension k of `z`.
        context: Dimension d of `u`.
        hidden: Widths of the hidden layers.
        curved: Parameters that are not normal.
    """

    def __init__(
        self, kind: str, features: int, context: int, hidden: Sequence[int], curved: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.kind, self.features = KINDS[kind], features
        self.curved = list(curved)
        inputs = context * (1 + 2 * self.kind.waves) + len(self.curved)
        full = self.kind.full and features <= _WIDE
        self.flow: Flow | Rounded
        if self.kind.flow == "rounded":
            self.flow = Rounded(features, inputs, hidden)
        elif self.kind.flow == "linear":
            self.flow = gaussian_flow(features, inputs, ())
        elif self.kind.flow == "gaussian":
            self.flow = gaussian_flow(features, inputs, hidden, full, self.kind.graded)
        elif self.kind.flow == "affine":
            transforms = 1 if features > _WIDE else self.kind.transforms
            self.flow = affine_flow(features, inputs, hidden, transforms)
        else:
            transforms, tailed, constant = self.kind.transforms, self.kind.tailed, self.kind.constant
            self.flow = spline_flow(features, inputs, hidden, transforms, full=full, tailed=tailed, constant=constant)
        self.mean: ProcessMean | CommitteeMean | None = None
        if self.kind.process:
            self.mean = ProcessMean(context, features)
        elif self.kind.committee:
            layers = (*hidden, *hidden[len(hidden) // 2 :]) if self.kind.deeper else hidden
            self.mean = CommitteeMean(context, features, layers, self.kind.committee)
        self.fitted = False
        self.register_buffer("scale", torch.ones(features))
        self.scale: Tensor

    def fit(
        self,
        u: Tensor,
        z: Tensor,
        held_out: Tensor,
        options: TrainOptions,
        generator: torch.Generator,
        on_epoch: Callable[[int, float], None] | None = None,
        lattice: Lattice | None = None,
        worth: Tensor | None = None,
        left: Tensor | None = None,
    ) -> float:
        """Fits to pairs `u` `(n, d)`, `z` `(n, k)`, continuing; returns the held-out loss in nats.

        Infinite, without a fit, where the member is for data on a lattice and these are not. Held-out pairs count
        in proportion to `worth` `(n,)`. `left` is what `fit_mean` returned for these pairs, if it was called before.
        """
        if isinstance(self.flow, Rounded) and not self.fitted:
            if lattice is None:
                return math.inf
            self.flow.set_lattice(lattice, z[~held_out])
        if self.mean is None:
            v = z
        else:
            left = self.fit_mean(u, z, held_out, options, generator) if left is None else left
            number = _regressed(u)
            u, held_out, worth = u[number], held_out[number], None if worth is None else worth[number]
            if not self.fitted:
                # The residuals of a deterministic column are rounding; scale one keeps them finite.
                spread = torch.quantile(left[~held_out].abs(), 0.68, dim=0)
                self.scale.copy_(torch.where(spread > 1e-5, spread, torch.ones_like(spread)))
            v = left / self.scale
        c = self._features(u)
        if self.kind.linear_start and (not self.fitted or self.kind.flow == "linear"):
            assert not isinstance(self.flow, Rounded)
            regression = self.flow.transform.transforms[0]
            assert isinstance(regression, LocationScale)
            some = evenly((~held_out).nonzero().squeeze(-1), _REGRESSED)
            regression.set_least_squares(v[some], c[some])
        self.fitted = True
        # Least squares is the answer of the linear kind: no pass over the data improves it.
        options = TrainOptions(max_epochs=0) if self.kind.flow == "linear" else options
        loss = fit_flow(self.flow, v, c, held_out, options, generator, on_epoch, worth)
        return loss + float(self.scale.log().sum())

    def fit_mean(
        self,
        u: Tensor,
        z: Tensor,
        held_out: Tensor,
        options: TrainOptions,
        generator: torch.Generator,
        threads: Threads | None = None,
    ) -> Tensor:
        """Fits the mean to the pairs, or to 100,000 of them; returns what it leaves of these, as of fresh ones."""
        number = _regressed(u)
        pairs = u[number], z[number], held_out[number]
        if isinstance(self.mean, CommitteeMean):
            return self.mean.fit(*pairs, number, options, generator, threads)
        assert self.mean is not None
        return self.mean.fit(*pairs, generator)

    def resume(self) -> None:
        """Says that the weights are those of a fit, if they are: see `fit`."""
        self.fitted = not isinstance(self.flow, Rounded) or self.flow.has_lattice

    def log_prob(self, u: Tensor, z: Tensor) -> Tensor:
        """`log p(z | u)` of `u` `(n, d)` and `z` `(n, k)`, `(n,)`."""
        return self._log_prob(u, z if self.mean is None else z - self.mean(u))

    def voices(self, u: Tensor, z: Tensor) -> Tensor:
        """`log p(z | u)` by each who has a say, `(n, e)`: the networks of a committee, else the member itself."""
        if isinstance(self.mean, CommitteeMean):
            return torch.stack([self._log_prob(u, z - mean) for mean in self.mean.voices(u)], dim=1)
        return self.log_prob(u, z)[:, None]

    def sample(self, u: Tensor) -> Tensor:
        """One draw `z` `(n, k)` for each `u` `(n, d)`."""
        z: Tensor = self.flow(self._features(u)).sample() * self.scale
        return z if self.mean is None else z + self.mean(u)

    def middle(self, u: Tensor) -> Tensor:
        """The `z` `(n, k)` that noise of zero becomes, for each `u` `(n, d)`."""
        given = self.flow(self._features(u))
        z = given.mean if isinstance(self.flow, Rounded) else given.transform.inv(u.new_zeros(len(u), self.features))
        return z * self.scale if self.mean is None else z * self.scale + self.mean(u)

    def _log_prob(self, u: Tensor, left: Tensor) -> Tensor:
        log_p: Tensor = self.flow(self._features(u)).log_prob(left / self.scale)
        return log_p - self.scale.log().sum()

    def _features(self, u: Tensor) -> Tensor:
        if not self.kind.waves and not self.curved:
            return u
        t = 2 * torch.special.ndtr(u) - 1
        parts = [u, math.sqrt(3) * t[..., self.curved]]
        for k in range(1, self.kind.waves + 1):
            parts += [math.sqrt(2) * torch.sin(k * math.pi / 2 * t), math.sqrt(2) * torch.cos(k * math.pi / 2 * t)]
        return torch.cat(parts, dim=-1)


def _regressed(u: Tensor) -> Tensor:
    """Positions of the pairs that means learn from: what is subtracted is a copy, and may be large."""
    return evenly(torch.arange(len(u), device=u.device), _REGRESSED)
