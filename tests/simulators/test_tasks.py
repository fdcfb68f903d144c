"""The built-in tasks: one contract for all of them, then the identities that tie sampler to likelihood."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

from simulators.errors import ConfigError, SimulatorError
from simulators.tasks import get_task, task_names
from simulators.tasks.lorenz96 import START
from simulators.tasks.lotka_volterra import log_populations
from simulators.tasks.runge_kutta import solve
from simulators.tasks.sir import infected

WITH_LIKELIHOOD = [name for name in task_names() if get_task(name).has_likelihood]


def prior_draws(name: str, n: int, seed: int = 0) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_task(name).prior.sample(torch.Size([n]))


@pytest.mark.parametrize("name", task_names())
class TestContract:
    def test_prior(self, name: str) -> None:
        task = get_task(name)
        theta = prior_draws(name, 50)
        assert task.name == name
        assert task.dim_theta == len(task.parameters) == len(set(task.parameters))
        assert task.prior.event_shape == (task.dim_theta,)
        assert theta.shape == (50, task.dim_theta)
        assert theta.dtype == torch.float32
        assert task.prior.support.check(theta).all()  # type: ignore[union-attr]
        assert task.prior.log_prob(theta).isfinite().all()

    def test_simulate(self, name: str) -> None:
        task = get_task(name)
        theta = prior_draws(name, 7)
        x = task.simulate(theta, seed=1)
        assert x.shape == (7, task.dim_x)
        assert x.dtype == torch.float32
        assert x.isfinite().all()
        assert task.simulate(theta[:1], seed=1).shape == (1, task.dim_x)
        assert task.simulate(theta[:0], seed=1).shape == (0, task.dim_x)

    def test_seed_alone_decides(self, name: str) -> None:
        task = get_task(name)
        theta = prior_draws(name, 7)
        with torch.random.fork_rng():
            torch.manual_seed(11)
            state = torch.get_rng_state()
            first = task.simulate(theta, seed=1)
            assert torch.equal(torch.get_rng_state(), state)
            torch.manual_seed(12)
            assert torch.equal(task.simulate(theta, seed=1), first)
        assert not torch.equal(task.simulate(theta, seed=2), first)

    def test_without_seed_the_global_generator_decides(self, name: str) -> None:
        task = get_task(name)
        theta = prior_draws(name, 7)
        with torch.random.fork_rng():
            torch.manual_seed(11)
            first, second = task.simulate(theta), task.simulate(theta)
            torch.manual_seed(11)
            assert torch.equal(task.simulate(theta), first)
        assert not torch.equal(first, second)

    def test_pickles(self, name: str) -> None:
        theta = prior_draws(name, 3)
        copy = pickle.loads(pickle.dumps(get_task(name)))
        assert torch.equal(copy.simulate(theta, seed=1), get_task(name).simulate(theta, seed=1))

    def test_wrong_shape_is_named(self, name: str) -> None:
        task = get_task(name)
        for theta in (torch.ones(task.dim_theta), torch.ones(3, task.dim_theta + 1)):
            with pytest.raises(SimulatorError, match=f"{task.dim_theta}.*{task.parameters[0]}"):
                task.simulate(theta)


@pytest.mark.parametrize("name", WITH_LIKELIHOOD)
class TestLikelihoodContract:
    def test_finite_on_own_simulations(self, name: str) -> None:
        task = get_task(name)
        theta = prior_draws(name, 200)
        log_p = task.log_likelihood(theta, task.simulate(theta, seed=1))
        assert log_p.shape == (200,)
        assert log_p.dtype == torch.float32
        assert log_p.isfinite().all()

    def test_one_observation_for_all(self, name: str) -> None:
        task = get_task(name)
        theta = prior_draws(name, 5).double()
        x = task.simulate(theta, seed=1)[0]
        log_p = task.log_likelihood(theta, x)
        assert log_p.shape == (5,)
        assert log_p.dtype == torch.float64
        torch.testing.assert_close(log_p, task.log_likelihood(theta, x.repeat(5, 1)))
        torch.testing.assert_close(log_p[3:4], task.log_likelihood(theta[3:4], x))

    def test_wrong_shape_is_named(self, name: str) -> None:
        task = get_task(name)
        with pytest.raises(SimulatorError, match=f"{task.dim_x}"):
            task.log_likelihood(prior_draws(name, 5), torch.ones(4, task.dim_x))


@pytest.mark.parametrize(
    ("name", "theta", "shift"),
    [
        ("gaussian_linear", [0.1] * 10, [0.2] * 10),
        ("gaussian_linear_uniform", [0.5] * 10, [0.2] * 10),
        ("gaussian_mixture", [3.0, -4.0], [0.1, 0.1]),
        ("slcp", [0.7, -2.9, -1.0, -0.9, 0.6], [0.3, 0.3, 0.1, 0.1, 0.2]),
        ("sir", [0.4, 0.125], [0.003, 0.003]),
        ("lotka_volterra", [0.69, 0.06, 0.89, 0.06], [0.004, 0.0005, 0.004, 0.0003]),
    ],
)
def test_likelihood_ratio_has_mean_one(name: str, theta: list[float], shift: list[float]) -> None:
    # E[p(x | theta') / p(x | theta)] = 1 for x ~ p(x | theta): true only of the density that was sampled.
    task = get_task(name)
    here = torch.tensor([theta], dtype=torch.float64).repeat(4000, 1)
    x = task.simulate(here, seed=1)
    log_p = task.log_likelihood(here, x)
    for step in torch.diag(torch.tensor(shift)):
        ratio = (task.log_likelihood(here + step, x) - log_p).exp()
        error = ratio.std() / math.sqrt(len(ratio))
        assert 0.003 < error < 0.05, "the shift says too little, or its estimate too uncertain"
        assert (ratio.mean() - 1).abs() < 4 * error


@pytest.mark.parametrize(
    ("name", "theta", "low", "high"),
    [
        ("two_moons", [-0.3, 0.7], [-0.2, 0.55], [0.15, 0.9]),
        ("gaussian_mixture", [3.0, -4.0], [-3.0, -10.0], [9.0, 2.0]),
    ],
)
def test_density_in_the_plane(name: str, theta: list[float], low: list[float], high: list[float]) -> None:
    # On a grid over x the density sums to one, and its moments are those of the simulations.
    task = get_task(name)
    num = 1000
    axes = [a + (b - a) * (torch.arange(num) + 0.5) / num for a, b in zip(low, high, strict=True)]
    grid = torch.cartesian_prod(*axes)
    cell = math.prod((b - a) / num for a, b in zip(low, high, strict=True))
    here = torch.tensor([theta], dtype=torch.float64)
    weight = task.log_likelihood(here.expand(len(grid), -1), grid).exp() * cell
    assert weight.sum() == pytest.approx(1.0, abs=2e-3)

    def features(x: Tensor) -> Tensor:
        x = x.double() - x.new_tensor(low)
        return torch.cat([x, x.square(), x.prod(-1, keepdim=True)], dim=-1)

    drawn = features(task.simulate(here.expand(20_000, -1), seed=1))
    error = drawn.std(0) / math.sqrt(len(drawn))
    assert ((drawn.mean(0) - weight @ features(grid)).abs() < 4 * error + 2e-3).all()


def test_tempered_posterior_of_gaussian_linear() -> None:
    # log p(theta) + beta log p(x | theta) is the stated Gaussian, up to a constant.
    task = get_task("gaussian_linear")
    theta = prior_draws("gaussian_linear", 20).double()
    x, beta = torch.linspace(-1, 1, 10, dtype=torch.float64), 0.3
    log_p = task.prior.log_prob(theta) + beta * task.log_likelihood(theta, x)
    exact = torch.distributions.Normal(x * beta / (1 + beta), (0.1 / (1 + beta)) ** 0.5)
    constant = log_p - exact.log_prob(theta).sum(-1)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(constant, constant[:1].expand(20), rtol=0, atol=1e-5)


def test_slcp_cannot_tell_signs() -> None:
    task = get_task("slcp")
    theta = prior_draws("slcp", 10)
    x = task.simulate(theta, seed=1)
    mirrored = theta * torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0])
    torch.testing.assert_close(task.log_likelihood(theta, x), task.log_likelihood(mirrored, x))


def test_noise_is_not_the_prior_draw_again() -> None:
    task = get_task("gaussian_linear")
    theta = prior_draws("gaussian_linear", 1000, seed=1)
    noise = task.simulate(theta, seed=1) - theta
    correlation = np.corrcoef(theta.flatten().numpy(), noise.flatten().numpy())[0, 1]
    assert abs(correlation) < 0.05


def test_runge_kutta_is_of_order_four() -> None:
    coarse, fine = (
        float(solve(lambda y: -y, torch.ones(1, dtype=torch.float64), 1.0, n, 2)[1]) - math.exp(-1) for n in (8, 16)
    )
    assert coarse / fine == pytest.approx(16, rel=0.1)


def test_lotka_volterra_against_scipy() -> None:
    theta = prior_draws("lotka_volterra", 20).double()

    def rate(_t: float, y: np.ndarray, a: float, b: float, c: float, d: float) -> list[float]:
        return [a - b * math.exp(y[1]), d * math.exp(y[0]) - c]

    times = 2.1 * np.arange(10)
    for row, log_y in zip(theta.tolist(), log_populations(theta), strict=True):
        exact = solve_ivp(rate, (0, 20), [math.log(30), 0.0], "DOP853", times, args=row, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(log_y.reshape(2, 10), np.clip(exact.y, math.log(1e-10), None), atol=1e-3)


def test_lotka_volterra_rows_do_not_depend_on_their_batch() -> None:
    theta = prior_draws("lotka_volterra", 20).double()
    torch.testing.assert_close(log_populations(theta)[7:9], log_populations(theta[7:9]))


def test_lotka_volterra_beyond_its_finest_step_is_a_failure() -> None:
    task = get_task("lotka_volterra")
    theta = torch.tensor([[0.9, 0.05, 0.9, 0.05], [1.0, 3.0, 1.0, 40.0]])
    x = task.simulate(theta, seed=1)
    assert x.isfinite().all(-1).tolist() == [True, False]
    assert task.log_likelihood(theta, x[0]).isfinite().tolist() == [True, False]


def test_sir_against_scipy() -> None:
    theta = prior_draws("sir", 20).double()

    def rate(_t: float, y: np.ndarray, b: float, c: float) -> list[float]:
        return [-b * y[0] * y[1], b * y[0] * y[1] - c * y[1], c * y[1]]

    times, start = 17.0 * np.arange(10), [1 - 1e-6, 1e-6, 0.0]
    for row, share in zip(theta.tolist(), infected(theta), strict=True):
        exact = solve_ivp(rate, (0, 160), start, "DOP853", times, args=row, rtol=1e-10, atol=1e-15)
        np.testing.assert_allclose(share, exact.y[1], rtol=1e-5, atol=1e-12)


def test_lorenz96_without_noise_against_scipy() -> None:
    theta = torch.tensor([[1.6, 0.2, 0.0, 0.5], [2.0, 0.8, 0.0, 0.5]])
    x = get_task("lorenz96").simulate(theta, seed=1)

    def rate(_t: float, y: np.ndarray, b_0: float, b_1: float) -> list[float]:
        # Negative indices are cyclic by themselves.
        return [-y[k - 1] * (y[k - 2] - y[(k + 1) % 8]) - y[k] + 10.0 - (b_0 + b_1 * y[k]) for k in range(8)]

    for row, states in zip(theta.tolist(), x, strict=True):
        exact = solve_ivp(rate, (0, 1.5), START, "DOP853", 0.3 * np.arange(1, 6), args=row[:2], rtol=1e-9)
        # Wilks's step of 1/30 is part of the model, and the system is chaotic: no tighter agreement is due.
        np.testing.assert_allclose(states.reshape(5, 8), exact.y.T, atol=0.02)


def test_lorenz96_spread_grows_with_persistence() -> None:
    # Noise that keeps its sign pushes further: the variance of its sum grows with phi.
    task = get_task("lorenz96")
    spread = [
        task.simulate(torch.tensor([[2.0, 0.5, 2.0, phi]]).repeat(2000, 1), seed=1)[:, :8].var(0).mean()
        for phi in (0.0, 0.5, 0.9)
    ]
    assert spread[0] < spread[1] < spread[2]


def test_intractable_likelihood_says_so() -> None:
    task = get_task("lorenz96")
    assert not task.has_likelihood
    with pytest.raises(SimulatorError, match="intractable"):
        task.log_likelihood(prior_draws("lorenz96", 2), torch.zeros(task.dim_x))


def test_unknown_name_gets_a_hint() -> None:
    with pytest.raises(ConfigError, match=r"two_moon'.*'two_moons'"):
        get_task("two_moon")
    assert list(task_names()) == sorted(task_names())


def test_listing_names_does_not_import_torch() -> None:
    code = "import sys, simulators.tasks as t; t.task_names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
