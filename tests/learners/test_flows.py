"""One contract for all flows: shapes, inverse, densities, gradients, gate."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from zuko.flows import Flow

from learners.flows import affine_flow, gaussian_flow, spline_flow

CONTEXT = 3
FLOWS: dict[str, Callable[..., Flow]] = {
    "gaussian": gaussian_flow,
    "full": partial(gaussian_flow, full=True),
    "affine": affine_flow,
    "spline": spline_flow,
    "tailed": partial(spline_flow, full=True, tailed=True),
    "constant": partial(spline_flow, tailed=True, constant=True),
}


def gate(c: Tensor) -> Tensor:
    """Closed where the first number of the context is zero."""
    return c[..., :1].abs().clamp(max=1.0)


def build(kind: str, dim: int, gated: bool = False) -> Flow:
    """A flow far from the identity, in double precision."""
    torch.manual_seed(dim)
    options = {"gate": gate} if gated else {}
    flow = FLOWS[kind](dim, CONTEXT, (16, 16), **options)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return flow.double()


@pytest.fixture(params=FLOWS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[1, 2, 5])
def dim(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def flow(kind: str, dim: int) -> Flow:
    return build(kind, dim)


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_shapes(flow: Flow, dim: int) -> None:
    c = double(7, CONTEXT)
    assert flow(c).sample().shape == (7, dim)
    assert flow(c).sample((4, 2)).shape == (4, 2, 7, dim)
    assert flow(c).log_prob(double(7, dim)).shape == (7,)
    assert flow(c).log_prob(double(4, 1, dim)).shape == (4, 7)
    assert flow(c[0]).log_prob(double(4, dim)).shape == (4,)


def test_rows_are_independent_of_each_other(flow: Flow, dim: int) -> None:
    v, c = double(7, dim), double(7, CONTEXT)
    together = flow(c).log_prob(v)
    alone = torch.stack([flow(c[i]).log_prob(v[i]) for i in range(7)])
    torch.testing.assert_close(together, alone)


def test_inverse_undoes_the_transform(flow: Flow, dim: int) -> None:
    v, c = 3 * double(50, dim), double(50, CONTEXT)
    transform = flow(c).transform
    torch.testing.assert_close(transform.inv(transform(v)), v, rtol=1e-6, atol=1e-7)


def test_log_det_equals_autograd(flow: Flow, dim: int) -> None:
    for scale in (1.0, 6.0):  # Beyond a spline's bins, too.
        v, c = scale * double(dim), double(CONTEXT)
        transform = flow(c).transform
        jacobian = torch.autograd.functional.jacobian(transform, v)
        expected = torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(transform.call_and_ladj(v)[1], expected)


def test_sampling_from_the_density(flow: Flow, dim: int) -> None:
    """E_q[h / q] = 1 for a density h with lighter tails than q."""
    c = double(CONTEXT)
    torch.manual_seed(0)
    q = flow(c)
    v = q.sample((20_000,))
    center, spread = v.mean(dim=0), 0.6 * v.std(dim=0)
    narrow = torch.distributions.Independent(torch.distributions.Normal(center, spread), 1)
    ratio = torch.exp(narrow.log_prob(v) - q.log_prob(v)).detach()
    assert float(ratio.mean()) == pytest.approx(1.0, abs=5 * float(ratio.std()) / len(v) ** 0.5)


@pytest.mark.parametrize("kind", FLOWS)
def test_density_of_one_variable_integrates_to_one(kind: str) -> None:
    flow = build(kind, 1)
    grid = torch.linspace(-60, 60, 200_001, dtype=torch.float64)[:, None]
    with torch.no_grad():
        density = flow(double(CONTEXT)).log_prob(grid).exp()
    assert float(torch.trapezoid(density, grid[:, 0])) == pytest.approx(1.0, abs=1e-5)


def test_gradients_reach_all_parameters(flow: Flow, dim: int) -> None:
    flow(double(200, CONTEXT)).log_prob(double(200, dim)).mean().backward()
    for name, parameter in flow.named_parameters():
        if dim == 1 and name.endswith("lower"):
            continue  # One variable has no correlations.
        if dim == 1 and "inner" in name and name.endswith("hyper.0.weight"):
            continue  # Told nothing, one variable has only biases.
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_context_matters(flow: Flow, dim: int) -> None:
    v = double(dim)
    assert not torch.isclose(flow(double(CONTEXT)).log_prob(v), flow(double(CONTEXT)).log_prob(v))


def test_an_untrained_flow_is_almost_the_base(kind: str, dim: int) -> None:
    flow = FLOWS[kind](dim, CONTEXT, (16, 16)).double()
    v = double(100, dim)
    base = -0.5 * (v.square() + torch.log(torch.tensor(2 * torch.pi))).sum(-1)
    torch.testing.assert_close(flow(double(100, CONTEXT)).log_prob(v), base, rtol=0, atol=0.3 * dim)


@pytest.mark.parametrize("kind", ["affine", "spline", "tailed"])
def test_closed_gate_is_the_identity(kind: str, dim: int) -> None:
    flow = build(kind, dim, gated=True)
    v, c = 4 * double(50, dim), double(50, CONTEXT)
    moved, _ = flow(c).transform.call_and_ladj(v)
    assert (moved - v).abs().max() > 0.1
    c[:, 0] = 0
    same, log_det = flow(c).transform.call_and_ladj(v)
    torch.testing.assert_close(same, v)
    torch.testing.assert_close(log_det, torch.zeros(50, dtype=torch.float64))
    torch.testing.assert_close(flow(c).transform.inv(v), v)


@pytest.mark.parametrize("kind", ["affine", "spline", "tailed"])
def test_gated_flow_keeps_the_contract(kind: str, dim: int) -> None:
    flow = build(kind, dim, gated=True)
    v, c = double(dim), double(CONTEXT)
    transform = flow(c).transform
    torch.testing.assert_close(transform.inv(transform(v)), v)
    jacobian = torch.autograd.functional.jacobian(transform, v)
    torch.testing.assert_close(transform.call_and_ladj(v)[1], torch.linalg.slogdet(jacobian).logabsdet)
    assert flow(double(7, CONTEXT)).sample((4,)).shape == (4, 7, dim)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("features", [1, 2, 5])
@pytest.mark.parametrize("context_shape", [(3,), (1, 3), (4, 3)])
def test_drawing_step_by_step_is_the_inverse(gated: bool, features: int, context_shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    gate = (lambda c: c[..., :1].sigmoid()) if gated else None
    flow = spline_flow(features, 3, (16, 12), 2, 4, gate).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    c = torch.randn(context_shape, dtype=torch.float64)
    noise = torch.randn(7, *c.shape[:-1], features, dtype=torch.float64)
    transform = flow(c).transform
    with torch.no_grad():
        fast = transform.inv(noise)
    slow = transform.inv(noise)
    assert fast.shape == noise.shape
    torch.testing.assert_close(fast, slow.detach())
    torch.testing.assert_close(transform(fast).detach(), noise)


def test_weights_that_change_are_seen_by_the_next_draw() -> None:
    flow = build("spline", 3).eval()
    c, z = double(4, CONTEXT), double(4, 3)
    for change in (lambda: None, lambda: perturb(flow), lambda: flow.load_state_dict(build("spline", 3).state_dict())):
        change()
        with torch.no_grad():
            transform = flow(c).transform
            torch.testing.assert_close(transform(transform.inv(z)), z, rtol=0, atol=1e-5)


def test_what_is_kept_for_drawing_is_not_pickled() -> None:
    flow = build("spline", 3).eval()
    before = len(pickle.dumps(flow))
    with torch.no_grad():
        flow(double(4, CONTEXT)).sample()
    assert len(pickle.dumps(flow)) == before


def perturb(flow: Flow) -> None:
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.05)
