"""Marginals and their product: the identities of a distribution, and errors that name the remedy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate  # type: ignore[import-untyped, unused-ignore]
from torch import Size, Tensor, distributions

from simulators.errors import PriorError
from simulators.prior import Marginal, ProductPrior, check_prior, prior_draws

MARGINALS = {
    "normal": Marginal("Normal", {"loc": 1.0, "scale": 0.5}),
    "normal_above": Marginal("Normal", {"loc": 1.0, "scale": 0.5}, low=0.8),
    "normal_between": Marginal("Normal", {"loc": 1.0, "scale": 0.5}, low=-0.1, high=1.2),
    "normal_far_tail": Marginal("Normal", {"loc": 0.0, "scale": 1.0}, low=5.0),
    "uniform": Marginal("Uniform", {"low": -2.0, "high": 3.0}),
    "log_normal": Marginal("LogNormal", {"loc": 0.2, "scale": 0.7}),
    "log_normal_below": Marginal("LogNormal", {"loc": 0.2, "scale": 0.7}, low=0.0, high=2.0),
    "exponential": Marginal("Exponential", {"rate": 2.0}),
    "half_normal": Marginal("HalfNormal", {"scale": 1.5}),
    "cauchy_between": Marginal("Cauchy", {"loc": 0.0, "scale": 1.0}, low=-4.0, high=9.0),
    "laplace": Marginal("Laplace", {"loc": 0.3, "scale": 0.5}),
    "gumbel": Marginal("Gumbel", {"loc": 0.3, "scale": 0.5}),
    "weibull": Marginal("Weibull", {"scale": 1.0, "concentration": 2.0}),
    "pareto_below": Marginal("Pareto", {"scale": 1.0, "alpha": 3.0}, low=0.5, high=6.0),
    "kumaraswamy": Marginal("Kumaraswamy", {"concentration1": 2.0, "concentration0": 1.5}),
    "gamma": Marginal("Gamma", {"concentration": 2.5, "rate": 1.5}),
    "gamma_above": Marginal("Gamma", {"concentration": 2.5, "rate": 1.5}, low=1.0),
    "chi2": Marginal("Chi2", {"df": 4.0}),
    "beta": Marginal("Beta", {"concentration1": 2.0, "concentration0": 3.5}),
    "beta_between": Marginal("Beta", {"concentration1": 2.0, "concentration0": 3.5}, low=0.2, high=0.9),
    "student": Marginal("StudentT", {"df": 4.0, "loc": 0.5, "scale": 0.7}),
    "student_below": Marginal("StudentT", {"df": 4.0}, high=0.0),
    "inverse_gamma": Marginal("InverseGamma", {"concentration": 3.0, "rate": 2.0}),
    "inverse_gamma_below": Marginal("InverseGamma", {"concentration": 3.0, "rate": 2.0}, high=1.5),
}


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def support(marginal: Marginal) -> tuple[float, float]:
    box = marginal.untruncated().support
    low, high = getattr(box, "lower_bound", -math.inf), getattr(box, "upper_bound", math.inf)
    return max(marginal.low, float(low)), min(marginal.high, float(high))


@pytest.mark.parametrize("marginal", MARGINALS.values(), ids=MARGINALS)
class TestMarginal:
    quantiles = double(1e-4, 0.03, 0.2, 0.5, 0.77, 0.99, 0.9999)

    def test_icdf_inverts_cdf(self, marginal: Marginal) -> None:
        torch.testing.assert_close(marginal.cdf(marginal.icdf(self.quantiles)), self.quantiles, rtol=1e-8, atol=1e-9)

    def test_density_is_the_derivative_of_cdf(self, marginal: Marginal) -> None:
        theta = marginal.icdf(self.quantiles[1:-1])
        step = 1e-4 * (marginal.icdf(double(0.75)) - marginal.icdf(double(0.25)))
        slope = (marginal.cdf(theta + step) - marginal.cdf(theta - step)) / (2 * step)
        torch.testing.assert_close(marginal.log_prob(theta).exp(), slope, rtol=1e-4, atol=0.0)

    def test_density_integrates_to_one(self, marginal: Marginal) -> None:
        def density(theta: np.ndarray) -> np.ndarray:
            return marginal.log_prob(torch.as_tensor(theta)).exp().numpy()

        low, high = support(marginal)
        middle = float(marginal.median())
        mass = integrate.tanhsinh(density, [low, middle], [middle, high]).integral.sum()
        assert mass == pytest.approx(1.0, abs=1e-6)

    def test_samples_follow_the_cdf_inside_the_bounds(self, marginal: Marginal) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            theta = marginal.sample(Size([4000]))
        low, high = support(marginal)
        assert ((theta >= low) & (theta <= high)).all()
        assert marginal.log_prob(theta.double()).isfinite().all()
        level = marginal.cdf(theta).sort().values
        distance = (level - torch.arange(1, 4001) / 4000).abs().max()
        assert distance < 1.95 / math.sqrt(4000)  # Kolmogorov's bound at a level of 1e-3

    def test_nothing_outside_the_support(self, marginal: Marginal) -> None:
        low, high = support(marginal)
        outside = double(*(b for b in (low - 0.1, high + 0.1) if math.isfinite(b)))
        assert (marginal.log_prob(outside) == -math.inf).all()
        assert torch.equal(marginal.cdf(outside), (outside > high).double())
        assert marginal.cdf(double(-math.inf, math.inf)).tolist() == [0.0, 1.0]

    def test_round_trips_through_a_dictionary(self, marginal: Marginal) -> None:
        assert Marginal.from_dict(marginal.as_dict()) == marginal

    def test_only_sampling_consumes_random_numbers(self, marginal: Marginal) -> None:
        state = torch.get_rng_state()
        copy = Marginal(marginal.distribution, marginal.arguments, marginal.low, marginal.high)
        copy.log_prob(double(-1.0, 0.5, 2.0))
        assert torch.equal(torch.get_rng_state(), state)


def test_truncation_divides_by_the_mass_inside() -> None:
    free, bounded = MARGINALS["normal"], MARGINALS["normal_between"]
    theta = double(0.0, 0.5, 1.1)
    mass = free.cdf(double(1.2)) - free.cdf(double(-0.1))
    torch.testing.assert_close(bounded.log_prob(theta), free.log_prob(theta) - mass.log())


def test_uniform_takes_low_and_high_as_arguments_all_others_as_bounds() -> None:
    uniform = Marginal.from_dict({"distribution": "Uniform", "low": 1, "high": 3})
    normal = Marginal.from_dict({"distribution": "Normal", "loc": 0, "scale": 1, "low": 1, "high": 3})
    assert uniform.arguments == {"low": 1, "high": 3}
    assert not uniform.truncated
    assert (normal.low, normal.high) == (1.0, 3.0)
    assert normal.arguments == {"loc": 0, "scale": 1}
    assert uniform.as_dict() == {"distribution": "Uniform", "low": 1, "high": 3}


def test_numbers_that_yaml_reads_as_text_are_numbers() -> None:
    marginal = Marginal.from_dict({"distribution": "Gamma", "concentration": "2e0", "rate": "1e-3", "low": "1e1"})
    assert marginal.low == 10.0
    assert float(marginal.median()) > 1000.0


def test_rounding_to_single_precision_stays_inside_narrow_bounds() -> None:
    prior = ProductPrior(
        {
            "uniform": Marginal("Uniform", {"low": 1000.00001, "high": 1000.01}),
            "normal": Marginal("Normal", {"loc": 0.0, "scale": 1.0}, low=0.1, high=0.1 + 1e-7),
            "spike": Marginal("Beta", {"concentration1": 0.01, "concentration0": 0.01}),
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theta = prior.sample((5000,))
    assert prior.log_prob(theta).isfinite().all()


@pytest.mark.parametrize(
    "marginal",
    [
        Marginal("Normal", {"loc": 0.0, "scale": 1.0}, low=5.9),
        Marginal("Normal", {"loc": 0.0, "scale": 1.0}, high=-5.9),
        Marginal("LogNormal", {"loc": 0.0, "scale": 1.0}, low=math.exp(5.9)),
        Marginal("Exponential", {"rate": 1.0}, low=20.0),
        Marginal("Gamma", {"concentration": 1.0, "rate": 1.0}, low=20.0),
    ],
    ids=lambda marginal: f"{marginal.distribution} {marginal.low:g} {marginal.high:g}",
)
def test_draws_far_in_a_tail_are_numbers_of_that_tail(marginal: Marginal) -> None:
    quantiles = double(2.0**-53, 1e-9, 0.1, 0.5, 0.9, 1 - 1e-9, 1 - 2.0**-53)
    theta = marginal.icdf(quantiles)
    torch.testing.assert_close(marginal.cdf(theta), quantiles, rtol=0.0, atol=2e-7)
    # Where the base's level rounds to 0 or 1 is less than twice as far out as the bound.
    bound = marginal.low if math.isfinite(marginal.low) else marginal.high
    assert (theta.abs().log() <= math.log(abs(bound)) * 2).all()
    assert marginal.log_prob(theta).isfinite().all()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "misspelt": ({"distribution": "Norml", "loc": 0, "scale": 1}, "did you mean 'Normal'"),
    "a transform": ({"distribution": "ExpTransform"}, "no class of torch.distributions"),
    "no distribution": ({"low": 0, "high": 1}, "needs a `distribution`"),
    "misspelt argument": (
        {"distribution": "Normal", "mean": 0, "scale": 1},
        "unexpected keyword argument 'mean'",
    ),
    "missing argument": ({"distribution": "Gamma", "rate": 1}, "concentration"),
    "negative scale": ({"distribution": "Normal", "loc": 0, "scale": -1}, "parameter scale"),
    "no number": (
        {"distribution": "Normal", "loc": "left", "scale": 1},
        "one number for `loc`, but came 'left'",
    ),
    "no number as a bound": (
        {"distribution": "Normal", "loc": 0, "scale": 1, "low": None},
        "number for `low`",
    ),
    "list of numbers": (
        {"distribution": "Normal", "loc": [0, 1], "scale": 1},
        "one univariate distribution per",
    ),
    "empty interval": ({"distribution": "Normal", "loc": 0, "scale": 1, "low": 2, "high": 2}, "low < high"),
    "empty uniform": ({"distribution": "Uniform", "low": 2, "high": 1}, "cannot be built"),
    "no mass": ({"distribution": "Normal", "loc": 0, "scale": 1, "low": 40}, "widen the bounds"),
    "hardly any mass": ({"distribution": "Normal", "loc": 0, "scale": 1, "low": 6.9}, "less than 1e-09 of its mass"),
    "no mass below": (
        {"distribution": "Gamma", "concentration": 1, "rate": 1, "high": -1},
        "widen the bounds",
    ),
    "multivariate": ({"distribution": "LogisticNormal", "loc": 0, "scale": 1}, "must be univariate"),
    "needs vectors": ({"distribution": "Dirichlet", "concentration": 1}, "at least one-dimensional"),
    "needs matrices": ({"distribution": "Wishart", "df": 3}, "cannot be built"),
    "discrete": ({"distribution": "Poisson", "rate": 3}, "no quantile function"),
    "discrete and truncated": ({"distribution": "Poisson", "rate": 3, "low": 1}, "no quantile function"),
    "no quantile function": (
        {"distribution": "VonMises", "loc": 0, "concentration": 1},
        "`prior: file.py:name`",
    ),
}


@pytest.fixture(params=[True, False], ids=["torch checks", "torch does not check"])
def torch_checks(request: pytest.FixtureRequest) -> Iterator[None]:
    """torch's own validation, which other libraries may switch off."""
    before = distributions.Distribution._validate_args
    distributions.Distribution.set_default_validate_args(request.param)
    yield
    distributions.Distribution.set_default_validate_args(before)


@pytest.mark.usefixtures("torch_checks")
@pytest.mark.parametrize(("spec", "message"), WRONG.values(), ids=WRONG)
def test_unusable_marginals_are_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(PriorError) as error:
        Marginal.from_dict(spec)
    assert message in str(error.value)


def test_bounds_of_a_uniform_are_given_once() -> None:
    with pytest.raises(PriorError, match="`low` and `high`"):
        Marginal("Uniform", {"low": 0.0, "high": 1.0}, high=2.0)


class TestProductPrior:
    marginals = {name: MARGINALS[name] for name in ("gamma_above", "uniform", "normal_between")}  # noqa: RUF012

    def test_columns_are_the_marginals_in_order(self) -> None:
        prior = ProductPrior(self.marginals)
        assert prior.names == tuple(self.marginals)
        theta = torch.tensor([[1.5, -1.0, 0.3], [2.0, 2.0, 1.0]])
        expected = sum(m.log_prob(theta[:, i].double()) for i, m in enumerate(self.marginals.values()))
        torch.testing.assert_close(prior.log_prob(theta).double(), expected)

    @pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
    def test_shapes(self, shape: tuple[int, ...]) -> None:
        prior = ProductPrior(self.marginals)
        theta = prior.sample(shape)
        assert prior.event_shape == (3,)
        assert prior.batch_shape == ()
        assert theta.shape == (*shape, 3)
        assert theta.dtype == torch.float32
        assert prior.log_prob(theta).shape == shape
        assert prior.support.check(theta).shape == shape

    def test_log_prob_keeps_the_precision_that_it_is_given(self) -> None:
        prior = ProductPrior(self.marginals)
        theta = torch.tensor([2, 1, 1])
        assert prior.log_prob(theta.float()).dtype == torch.float32
        assert prior.log_prob(theta.double()).dtype == torch.float64
        assert torch.equal(prior.log_prob(theta), prior.log_prob(theta.float()))

    def test_support_needs_every_column_inside(self) -> None:
        prior = ProductPrior(self.marginals)
        theta = torch.tensor([[1.5, 0.0, 0.0], [0.9, 0.0, 0.0], [1.5, 3.5, 0.0], [1.5, 0.0, 1.3]])
        assert prior.support.check(theta).tolist() == [True, False, False, False]
        assert prior.log_prob(theta).isfinite().tolist() == [True, False, False, False]

    def test_the_global_seed_decides(self) -> None:
        prior = ProductPrior(self.marginals)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            first = prior.sample((5,))
            torch.manual_seed(3)
            assert torch.equal(prior.sample((5,)), first)
        assert len(set(first.flatten().tolist())) == 15

    def test_needs_a_parameter(self) -> None:
        with pytest.raises(PriorError, match="at least one parameter"):
            ProductPrior({})


class TestCheckPrior:
    @pytest.mark.parametrize(
        "prior",
        [
            distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)),
            distributions.Independent(distributions.Uniform(torch.zeros(3), torch.ones(3)), 1),
            ProductPrior({"theta": MARGINALS["beta"]}),
        ],
        ids=lambda prior: type(prior).__name__,
    )
    def test_accepts_distributions_over_vectors(self, prior: distributions.Distribution) -> None:
        assert check_prior(prior) is prior

    @pytest.mark.parametrize(
        ("prior", "remedy"),
        [
            (distributions.Normal(0.0, 1.0), r"Independent\(prior, 1\)"),
            (distributions.Normal(torch.zeros(3), 1.0), r"batch_shape \(3,\).*Independent\(prior, 1\)"),
            (distributions.Wishart(torch.tensor(3.0), torch.eye(2)), r"event_shape \(2, 2\)"),
            ({"distribution": "Normal"}, r"got dict.*ProductPrior"),
            (None, r"got NoneType.*ProductPrior"),
        ],
    )
    def test_names_the_remedy(self, prior: object, remedy: str) -> None:
        with pytest.raises(PriorError, match=remedy):
            check_prior(prior)


@pytest.mark.parametrize(
    "prior",
    [
        distributions.Independent(distributions.Uniform(torch.tensor([1000.0]), torch.tensor([1000.001])), 1),
        ProductPrior({"year": Marginal("Uniform", {"low": 1000.0, "high": 1000.001})}),
    ],
)
def test_draws_that_rounding_puts_on_a_bound_are_inside(prior: distributions.Distribution) -> None:
    theta = prior_draws(prior, 10_000, torch.Generator().manual_seed(0))
    assert len(theta.unique()) > 5
    assert prior.log_prob(theta).isfinite().all()


def test_the_upper_bound_of_a_uniform_belongs_to_it() -> None:
    marginal = Marginal("Uniform", {"low": 1990.0, "high": 2000.0})
    density = marginal.log_prob(torch.tensor([1989.0, 1990.0, 1995.0, 2000.0, 2001.0]).double())
    torch.testing.assert_close(density, torch.tensor([-math.inf, *[-math.log(10)] * 3, -math.inf]).double())
