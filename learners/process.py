r"""A Gaussian process regression of data on parameters: the mean of smooth simulators from few simulations.

.. math:: z_j = a_j + b_j^\top u + f_j(u) + \epsilon_j, \qquad
    f_j \sim \mathcal{GP}(0, s_j^2 k), \quad \epsilon_j \sim \mathcal N(0, s_j^2 \nu),

with the Matern-5/2 kernel `k`, one length scale a parameter and one noise ratio `nu`, shared by all columns and chosen
by the marginal likelihood; each `s_j` has its best value (Rasmussen & Williams 2006, chapters 2 and 5). With more than
1,000 simulations the kernel is spanned by a subset of them (their section 8.3.1).

What is left of each simulation by a process that has *not* seen it has a closed form, `r_i / (1 - h_ii)` with the hat
matrix `h`. A density fitted to these residuals is honest about the error of the mean.
"""

from __future__ import annotations

__all__ = ["ProcessMean", "evidence_loss"]

import numpy as np
import torch
from torch import Tensor, nn

_CENTERS = 1000
_CHUNK = 8192
#: Kernel values at once on a CPU: more leave its cache, and take eight times as long.
_CACHED = 1 << 19
_JITTER = 1e-6
#: Distance at which a kernel is as good as zero: exp(-50) = 2e-22.
_FAR = 50.0
#: Evaluations of the marginal likelihood; the last of them gain nothing that counts.
_MOST_EVALUATIONS = 40
#: Of a covariance that cannot be factorized: finite, for a line search computes with it.
_IMPOSSIBLE = 1e10
#: Beyond these a parameter has no influence, or the process is noise.
_LOG_LENGTHS, _LOG_NOISES = (-4.0, 8.0), (-14.0, 6.0)


class ProcessMean(nn.Module):
    """The posterior mean of the process, `u` `(*, d)` to `z` `(*, k)`; see the module.

    Arguments:
        context: Dimension d of `u`.
        features: Dimension k of `z`.
    """

    def __init__(self, context: int, features: int) -> None:
        super().__init__()
        self.register_buffer("linear", torch.zeros(context + 1, features))
        self.register_buffer("centers", torch.zeros(0, context))
        self.register_buffer("coefficients", torch.zeros(0, features))
        self.register_buffer("log_length", torch.zeros(context))
        self.register_buffer("log_noise", torch.tensor(-3.0))
        self.linear: Tensor
        self.centers: Tensor
        self.coefficients: Tensor
        self.log_length: Tensor
        self.log_noise: Tensor

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *arguments: object) -> None:
        # How many centers there are depends on the simulations.
        for name in ("centers", "coefficients"):
            setattr(self, name, torch.zeros_like(state_dict[prefix + name]))
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def forward(self, u: Tensor) -> Tensor:
        """The mean of `z` at `u`."""
        flat = u.reshape(-1, u.shape[-1])
        parts = flat.split(max(1, _CACHED // max(1, len(self.centers)))) if flat.device.type == "cpu" else (flat,)
        curved = [_kernel(part, self.centers, self.log_length) @ self.coefficients for part in parts]
        mean = _with_ones(flat) @ self.linear + torch.cat(curved)
        return mean.reshape(*u.shape[:-1], mean.shape[-1])

    def fit(self, u: Tensor, z: Tensor, held_out: Tensor, generator: torch.Generator) -> Tensor:
        """Fits to the rows of `u` `(n, d)` and `z` `(n, k)` that are not `held_out` `(n,)`, continuing.

        Returns:
            What a process that has not seen a simulation leaves of it, `(n, k)`.
        """
        left = torch.empty_like(z)
        left[~held_out] = self._fit(u[~held_out], z[~held_out], generator)
        left[held_out] = z[held_out] - self(u[held_out])
        return left

    def _fit(self, u: Tensor, z: Tensor, generator: torch.Generator) -> Tensor:
        u64, z64 = u.double(), z.double()
        design = _with_ones(u64)
        gram = design.mT @ design
        linear = torch.linalg.solve(gram + _JITTER * gram.diagonal().mean() * _eye(gram), design.mT @ z64)
        rest = z64 - design @ linear
        scale = rest.std(dim=0).clamp(min=1e-12)
        rest = rest / scale
        chosen = torch.randperm(len(u), generator=generator)[:_CENTERS].to(u.device)
        log_length, log_noise = self._choose(u64[chosen], rest[chosen])
        centers, noise = u64[chosen], log_noise.exp() + _JITTER
        # Ridge regression on the kernel's columns; with all simulations as centers it is the process itself.
        inner = _kernel(centers, centers, log_length)
        system, target = noise * (inner + _JITTER * _eye(inner)), torch.zeros_like(rest[: len(centers)])
        for part, values in zip(u64.split(_CHUNK), rest.split(_CHUNK), strict=True):
            spanned = _kernel(part, centers, log_length)
            system, target = system + spanned.mT @ spanned, target + spanned.mT @ values
        factor = torch.linalg.cholesky(system + _JITTER * _JITTER * system.diagonal().mean() * _eye(system))
        coefficients = torch.cholesky_solve(target, factor)
        left = torch.empty_like(rest)
        for part, values, out in zip(u64.split(_CHUNK), rest.split(_CHUNK), left.split(_CHUNK), strict=True):
            spanned = _kernel(part, centers, log_length)
            leverage = torch.linalg.solve_triangular(factor, spanned.mT, upper=False).square().sum(dim=0)
            out.copy_((values - spanned @ coefficients) / (1 - leverage).clamp(min=1e-3)[:, None] * scale)
        # In rows, as they are after loading: products of another layout round differently.
        self.linear, self.centers = linear.float().contiguous(), centers.float()
        self.coefficients = (coefficients * scale).float().contiguous()
        self.log_length, self.log_noise = log_length.float(), log_noise.float()
        return left.float()

    def _choose(self, u: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """Length scales and noise of the highest marginal likelihood, continued from where they stand."""
        from scipy.optimize import minimize  # slow to import

        start = torch.cat([self.log_length, self.log_noise[None]]).double().cpu()

        def value(parameters: np.ndarray) -> tuple[float, np.ndarray]:
            loss, gradient = evidence_loss(u, rest, torch.from_numpy(parameters).to(u))
            return loss, gradient.cpu().numpy()

        bounds = [_LOG_LENGTHS] * u.shape[1] + [_LOG_NOISES]
        found = minimize(
            value, start.numpy(), jac=True, method="L-BFGS-B", bounds=bounds, options={"maxfun": _MOST_EVALUATIONS}
        )
        chosen = torch.from_numpy(found.x).to(u)
        return chosen[:-1], chosen[-1]


@torch.no_grad()
def evidence_loss(u: Tensor, rest: Tensor, parameters: Tensor) -> tuple[float, Tensor]:
    r"""Negative logarithm of the marginal likelihood, a row and column, up to a constant, and its gradient.

    .. math:: L = \frac1{2k} \sum_j \log \frac{r_j^\top K^{-1} r_j}{n} + \frac1{2n} \log |K|, \qquad
        \frac{\partial L}{\partial K} = \frac1{2n} \Big(K^{-1}
        - \frac1k \sum_j n \frac{K^{-1} r_j r_j^\top K^{-1}}{r_j^\top K^{-1} r_j}\Big)

    Written out, for autograd takes three times as long for what a factorization does to `K`.

    Arguments:
        u: Parameters, `(n, d)`.
        rest: Columns of unknown scale, `(n, k)`.
        parameters: Logarithms of the length scales and of the noise ratio, `(d + 1,)`.
    """
    with torch.enable_grad():
        parameters = parameters.detach().requires_grad_()
        covariance = _kernel(u, u, parameters[:-1]) + (parameters[-1].exp() + _JITTER) * _eye(u @ u.mT)
    factor, info = torch.linalg.cholesky_ex(covariance.detach())
    if info.any():
        return _IMPOSSIBLE, torch.zeros_like(parameters)
    weighted = torch.cholesky_solve(rest, factor)
    fit = (rest * weighted).mean(dim=0).clamp(min=1e-12)
    loss = 0.5 * fit.log().mean() + factor.diagonal().log().mean()
    outer = (weighted / fit) @ weighted.mT / rest.shape[1]
    covariance.backward((torch.cholesky_inverse(factor) - outer) / (2 * len(u)))
    assert parameters.grad is not None
    return float(loss), parameters.grad


def _kernel(a: Tensor, b: Tensor, log_length: Tensor) -> Tensor:
    """Matern-5/2 between `a` `(n, d)` and `b` `(m, d)`, `(n, m)`."""
    length = log_length.exp()
    a, b = a / length, b / length
    squared = a.square().sum(-1)[:, None] + b.square().sum(-1) - 2 * a @ b.mT
    # Farther away there is nothing, and exponentials without it are denormal numbers, which are slow.
    r = (5 * squared).clamp(1e-12, _FAR**2).sqrt()
    return (1 + r + r.square() / 3) * torch.exp(-r)


def _with_ones(u: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(u[:, :1]), u], dim=-1)


def _eye(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
