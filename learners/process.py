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

__all__ = ["ProcessMean"]

import torch
from torch import Tensor, nn

_CENTERS = 1000
_CHUNK = 8192
_STEPS = 100
_RATE = 0.1
_JITTER = 1e-6


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
        mean = _with_ones(flat) @ self.linear
        mean = mean + _kernel(flat, self.centers, self.log_length) @ self.coefficients
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
        log_length, log_noise = self.log_length.double().clone(), self.log_noise.double().clone()
        steps = _STEPS if not len(self.centers) else _STEPS // 4
        best, chosen = torch.inf, (log_length.clone(), log_noise.clone())
        parameters = [log_length.requires_grad_(), log_noise.requires_grad_()]
        optimizer = torch.optim.Adam(parameters, _RATE)
        with torch.enable_grad():
            for _ in range(steps):
                covariance = _kernel(u, u, log_length) + (log_noise.exp() + _JITTER) * _eye(u @ u.mT)
                factor, info = torch.linalg.cholesky_ex(covariance)
                if info.any():
                    break
                weighted = torch.cholesky_solve(rest, factor)
                fit = (rest * weighted).mean(dim=0).clamp(min=1e-12)
                loss = 0.5 * fit.log().mean() + factor.diagonal().log().mean()
                if not loss.isfinite():
                    break
                if loss.item() < best:
                    best, chosen = loss.item(), (log_length.detach().clone(), log_noise.detach().clone())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return chosen


def _kernel(a: Tensor, b: Tensor, log_length: Tensor) -> Tensor:
    """Matern-5/2 between `a` `(n, d)` and `b` `(m, d)`, `(n, m)`."""
    length = log_length.exp()
    a, b = a / length, b / length
    squared = a.square().sum(-1)[:, None] + b.square().sum(-1) - 2 * a @ b.mT
    r = (5 * squared).clamp(min=1e-12).sqrt()
    return (1 + r + r.square() / 3) * torch.exp(-r)


def _with_ones(u: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(u[:, :1]), u], dim=-1)


def _eye(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
