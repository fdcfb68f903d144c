"""Whitening: a bijection under which any prior becomes standard normal."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributions as D
from problems import Triangle
from scipy import stats
from torch import Tensor

from learners.whitening import AffineWhitening, MarginalWhitening, Whitening, log_normal, whitening_from_dict
from learners.whitening_choice import whiten
from simulators.errors import PriorError
from simulators.prior import Marginal, ProductPrior

COVARIANCE = torch.tensor([[2.0, 0.9, -0.3], [0.9, 1.0, 0.1], [-0.3, 0.1, 0.5]])

EXACT = {
    "product": ProductPrior(
        {
            "truncated": Marginal("Normal", {"loc": 1.0, "scale": 0.5}, low=0.8, high=3.0),
            "rate": Marginal("LogNormal", {"loc": -3.0, "scale": 1.5}),
            "share": Marginal("Beta", {"concentration1": 2.0, "concentration0": 0.7}),
            "free": Marginal("Normal", {"loc": 100.0, "scale": 1e-3}),
            "heavy": Marginal("StudentT", {"df": 3.0}),
        }
    ),
    "uniform": D.Independent(D.Uniform(torch.tensor([-1.0, 2.0]), torch.tensor([1.0, 200.0])), 1),
    "log_normal": D.Independent(D.LogNormal(torch.tensor([0.0, 5.0]), torch.tensor([1.0, 0.1])), 1),
    "gamma": D.Independent(D.Gamma(torch.tensor([2.0, 0.5]), torch.tensor([1.0, 30.0])), 1),
    "normal": D.MultivariateNormal(torch.tensor([5.0, -1.0, 0.0]), COVARIANCE),
    "normal_double": D.MultivariateNormal(torch.zeros(3).double(), COVARIANCE.double()),
    "one_uniform": D.Independent(D.Uniform(torch.tensor([0.0]), torch.tensor([3.0])), 1),
    "one_normal": D.MultivariateNormal(torch.tensor([2.0]), torch.tensor([[9.0]])),
}

_CORRELATED = D.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.8], [0.8, 1.0]]))
APPROXIMATE = {
    "positive": D.TransformedDistribution(_CORRELATED, [D.ExpTransform()]),
    "small": D.TransformedDistribution(_CORRELATED, [D.AffineTransform(0.0, 1e-7)]),
    "mixture": D.MixtureSameFamily(
        D.Categorical(torch.tensor([0.7, 0.3])),
        D.MultivariateNormal(torch.tensor([[-2.0, 0.0], [2.0, 1.0]]), 0.3 * torch.eye(2)),
    ),
    "one": D.Independent(D.VonMises(torch.tensor([0.0]), torch.tensor([4.0])), 1),
}

PRIORS = EXACT | APPROXIMATE


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module", params=PRIORS)
def case(request: pytest.FixtureRequest) -> tuple[D.Distribution, Whitening]:
    torch.manual_seed(0)
    prior = PRIORS[request.param]
    return prior, whiten(prior)


Case = tuple[D.Distribution, Whitening]


def test_round_trip_from_theta(case: Case) -> None:
    prior, whitening = case
    theta = prior.sample((500,)).double()
    torch.testing.assert_close(whitening.to_theta(whitening.to_u(theta)), theta, rtol=1e-7, atol=1e-9)


def test_round_trip_from_u(case: Case) -> None:
    _, whitening = case
    u = 1.5 * torch.randn(500, whitening.dim, dtype=torch.float64)
    torch.testing.assert_close(whitening.to_u(whitening.to_theta(u)), u, rtol=1e-5, atol=1e-5)


def test_log_det_equals_finite_differences(case: Case) -> None:
    _, whitening = case
    u = torch.randn(20, whitening.dim, dtype=torch.float64)
    step, eye = 1e-4, torch.eye(whitening.dim, dtype=torch.float64)
    # Rows of the Jacobian d theta / d u, by central differences in u, whose scale is one.
    ahead, behind = (whitening.to_theta(u[:, None] + sign * step * eye) for sign in (1, -1))
    expected = -torch.linalg.slogdet((ahead - behind) / (2 * step)).logabsdet
    torch.testing.assert_close(whitening.log_abs_det(whitening.to_theta(u)), expected, rtol=1e-4, atol=1e-4)


def test_log_prior_equals_the_prior(case: Case) -> None:
    prior, whitening = case
    theta = prior.sample((200,))
    expected = prior.log_prob(theta).double()
    torch.testing.assert_close(whitening.log_prior(theta), expected, rtol=1e-4, atol=1e-4)


def test_draws_lie_in_the_support(case: Case) -> None:
    prior, whitening = case
    assert whitening.in_support(prior.sample((2000,))).all()


def test_dictionary_gives_the_same_map(case: Case) -> None:
    prior, whitening = case
    again = whitening_from_dict(whitening.as_dict())
    theta = prior.sample((100,))
    u = whitening.to_u(theta)
    assert torch.equal(again.to_u(theta), u)
    assert torch.equal(again.to_theta(u), whitening.to_theta(u))
    assert torch.equal(again.log_abs_det(theta), whitening.log_abs_det(theta))
    assert torch.equal(again.in_support(theta), whitening.in_support(theta))


@pytest.mark.parametrize("name", EXACT)
def test_whitened_draws_are_standard_normal(name: str) -> None:
    prior = EXACT[name]
    whitening = whiten(prior)
    u = whitening.to_u(prior.sample((4000,)))
    for column in u.unbind(-1):
        assert stats.kstest(column.numpy(), "norm").pvalue > 1e-3
    torch.testing.assert_close(torch.atleast_2d(torch.cov(u.T)), torch.eye(whitening.dim).double(), rtol=0, atol=0.1)
    assert not whitening.log_prior_ratio(u).any()


@pytest.mark.parametrize("name", APPROXIMATE)
def test_generic_prior_has_unit_moments_and_its_ratio_integrates_to_one(name: str) -> None:
    prior = APPROXIMATE[name]
    whitening = whiten(prior)
    u = whitening.to_u(prior.sample((20_000,)))
    torch.testing.assert_close(u.mean(dim=0), torch.zeros(whitening.dim).double(), rtol=0, atol=0.05)
    torch.testing.assert_close(torch.atleast_2d(torch.cov(u.T)), torch.eye(whitening.dim).double(), rtol=0, atol=0.1)
    # E[p(u) / h(u)] = 1 under any h that covers the whitened prior.
    wide = 1.7 * torch.randn(50_000, whitening.dim, dtype=torch.float64)
    log_h = log_normal(wide / 1.7) - whitening.dim * math.log(1.7)
    weight = torch.exp(log_normal(wide) + whitening.log_prior_ratio(wide) - log_h)
    assert float(weight.mean()) == pytest.approx(1.0, abs=5 * float(weight.std()) / len(weight) ** 0.5)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("product", MarginalWhitening), ("gamma", MarginalWhitening), ("normal", AffineWhitening)],
)
def test_known_priors_are_whitened_exactly(name: str, kind: type[Whitening]) -> None:
    assert type(whiten(EXACT[name])) is kind


def test_every_u_lands_in_a_bounded_support() -> None:
    whitening = whiten(EXACT["product"])
    u = torch.tensor([[-40.0], [-9.0], [0.0], [9.0], [40.0]]).expand(5, 5)
    theta = whitening.to_theta(u)
    assert (theta[:, 0] >= 0.8).all() and (theta[:, 0] <= 3.0).all()
    assert (theta[:, 2] >= 0).all() and (theta[:, 2] <= 1).all()


@pytest.mark.parametrize("theta", [[0.7, 1.0, 0.5, 100.0, 0.0], [1.0, -1.0, 0.5, 100.0, 0.0], [math.nan] * 5])
def test_outside_the_support_is_recognized(theta: list[float]) -> None:
    assert not whiten(EXACT["product"]).in_support(torch.tensor([theta])).any()


def test_batch_shapes_are_kept() -> None:
    whitening = whiten(EXACT["normal"])
    theta = torch.randn(4, 1, 6, 3)
    assert whitening.to_u(theta).shape == whitening.to_theta(theta).shape == (4, 1, 6, 3)
    assert whitening.log_abs_det(theta).shape == whitening.log_prior(theta).shape == (4, 1, 6)


def test_custom_prior_without_support_is_taken_as_unbounded() -> None:
    whitening = whiten(_Custom())
    assert whitening.in_support(torch.full((1, 2), -50.0)).all()
    torch.testing.assert_close(
        whitening.log_prior(torch.zeros(1, 2)), _Custom().log_prob(torch.zeros(1, 2)).double(), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        (D.Dirichlet(torch.ones(3)), "sum to one"),
        (D.TransformedDistribution(_CORRELATED, [D.AffineTransform(0.0, torch.tensor([1.0, 0.0]))]), r"columns \[1\]"),
        (D.Independent(D.Poisson(torch.tensor([3.0, 4.0])), 1), "discrete"),
        (D.Normal(0.0, 1.0), "Independent"),
        ("normal", "torch.distributions"),
        (D.Independent(D.Normal(*torch.ones(2, 1, device="meta"), validate_args=False), 1), "on the CPU"),
        (ProductPrior({"day": Marginal("Uniform", {"low": 2459000, "high": 2459001})}), "day .* subtract an offset"),
        (D.MultivariateNormal(torch.tensor([0.0, 1e6]), torch.eye(2)), "parameter 1 .* subtract an offset"),
        (D.TransformedDistribution(_CORRELATED, [D.AffineTransform(2459000.0, 1.0)]), "subtract an offset"),
        (
            ProductPrior({"tau": Marginal("Gamma", {"concentration": 0.01, "rate": 0.01})}),
            r"39% of the prior's draws of parameter tau are nearer to zero .* take the logarithm",
        ),
    ],
    ids=["simplex", "constant", "discrete", "scalar", "no_distribution", "device", "day", "narrow", "moved", "vague"],
)
def test_unusable_prior_is_refused_with_the_reason(prior: D.Distribution, words: str) -> None:
    with pytest.raises(PriorError, match=words):
        whiten(prior)


class _Custom(D.Distribution):
    """A user's own distribution that defines no more than needed."""

    def __init__(self, unit: float = 1.0) -> None:
        self.unit = unit
        super().__init__(event_shape=torch.Size([2]), validate_args=False)

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        return self.unit * (2 * torch.randn(*sample_shape, 2) + 1)

    def log_prob(self, value: Tensor) -> Tensor:
        return D.Normal(self.unit, 2 * self.unit).log_prob(value).sum(-1)


def test_units_of_parameters_may_be_as_small_as_they_like() -> None:
    usual, minute = whiten(_Custom()), whiten(_Custom(1e-18))
    theta = _Custom().sample((100,))
    torch.testing.assert_close(minute.to_u(1e-18 * theta), usual.to_u(theta), rtol=1e-4, atol=1e-4)


def test_curved_are_the_parameters_that_no_line_in_u_gives() -> None:
    marginals = {
        "a": Marginal("Normal", {"loc": 1, "scale": 2}),
        "b": Marginal("Uniform", {"low": 0, "high": 1}),
        "c": Marginal("LogNormal", {"loc": 0, "scale": 1}),
        "d": Marginal("Beta", {"concentration1": 2, "concentration0": 2}),
    }
    assert whiten(ProductPrior(marginals)).curved == (1, 3)
    assert whiten(D.MultivariateNormal(torch.zeros(2), torch.eye(2))).curved == ()


def test_a_prior_is_whitened_alike_everywhere() -> None:
    first = whiten(APPROXIMATE["mixture"])
    torch.manual_seed(99)
    again = whiten(APPROXIMATE["mixture"])
    assert first.as_dict() == again.as_dict()


class _Parts(D.Distribution):
    """An exponential beside a uniform parameter, that takes rows only."""

    def __init__(self) -> None:
        self.parts = (D.Exponential(torch.tensor([1.0])), D.Uniform(torch.tensor([2.0]), torch.tensor([5.0])))
        super().__init__(event_shape=torch.Size([2]), validate_args=False)

    @property
    def support(self) -> D.constraints.Constraint:
        return D.constraints.cat([part.support for part in self.parts], dim=-1, lengths=[1, 1])

    def sample(self, shape: torch.Size = torch.Size()) -> Tensor:
        return torch.cat([part.sample(shape) for part in self.parts], dim=-1)

    def log_prob(self, theta: Tensor) -> Tensor:
        assert theta.ndim == 2
        pairs = zip(self.parts, theta.split(1, dim=-1), strict=True)
        return torch.cat([part.log_prob(value) for part, value in pairs], dim=-1).sum(dim=-1)


def test_a_support_in_parts_is_a_box_and_rows_are_all_that_a_prior_must_take() -> None:
    whitening = whiten(_Parts())
    theta = whitening.to_theta(10 * torch.randn(50, 4, 2))
    assert (theta[..., 0] >= 0).all()
    assert ((theta[..., 1] >= 2) & (theta[..., 1] <= 5)).all()
    assert whitening.log_prior_ratio(torch.randn(50, 4, 2)).shape == (50, 4)


def test_outside_a_support_that_is_no_box_there_is_no_prior_even_if_it_raises_there() -> None:
    whitening = whiten(Triangle(strict=True))
    theta = torch.tensor([[0.1, 0.2], [0.9, 0.3], [0.5, 0.6]])
    assert whitening.log_prior(theta).exp().tolist() == pytest.approx([2.0, 0.0, 2.0], rel=1e-5)
    assert whitening.log_prior(theta[1:2]).isneginf().all()


@pytest.mark.parametrize("strict", [False, True])
def test_a_support_may_be_less_than_its_box(strict: bool) -> None:
    prior = Triangle(strict)
    whitening = whiten(prior)
    theta = torch.tensor([[[0.2, 0.7], [0.7, 0.2]], [[-0.1, 0.5], [0.1, math.nan]]], dtype=torch.float64)
    assert whitening.in_support(theta).tolist() == [[True, False], [False, False]]
    # What single precision cannot tell from the bound is not outside.
    assert whitening.in_support(torch.tensor([[0.5, 0.5 + 1e-12]], dtype=torch.float64)).all()
    assert whitening.in_support(prior.sample(torch.Size([1000]))).all()


def test_a_saved_whitening_that_is_not_exact_has_lost_the_prior() -> None:
    for prior in PRIORS.values():
        whitening = whiten(prior)
        loaded = whitening_from_dict(whitening.as_dict())
        assert whitening.knows_prior
        assert loaded.exact == loaded.knows_prior == whitening.exact
