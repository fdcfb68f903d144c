"""Problems with known answers, and posteriors trained on them once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from problems import LinearGaussian
from torch.distributions import MultivariateNormal

from learners import LearnerOptions, TemperedPosterior, whiten
from learners.distillation import DistillationOptions
from learners.familiarity import Familiarity
from learners.guide import GuideOptions
from learners.network import NetworkOptions, PosteriorNetwork
from learners.scaling import DataScaling
from learners.surrogate import SurrogateOptions
from learners.tempering import TemperingOptions
from learners.training import TrainOptions
from simulators.prior import Marginal, ProductPrior


def train(epochs: int, batch_size: int) -> TrainOptions:
    return TrainOptions(max_epochs=epochs, patience=epochs, batch_size=batch_size, learning_rate=3e-3)


@pytest.fixture(scope="session")
def linear_gaussian() -> LinearGaussian:
    return LinearGaussian(torch.tensor([[1.0, 0.3], [0.2, 0.8]]), torch.tensor([0.5, 0.7]))


@pytest.fixture(scope="session")
def small() -> LearnerOptions:
    """Trains in seconds, and well on a linear-Gaussian problem."""
    return LearnerOptions(
        surrogate=SurrogateOptions(members=("gaussian",), hidden=(32,), training=train(30, 128), update=train(5, 128)),
        tempering=TemperingOptions(particles=64, moves=6),
        bank=128,
        network=NetworkOptions(hidden=(64,), transforms=1, trunk=(64,)),
        guide=GuideOptions(hidden=(32, 32), guess=(32,), scales=(16,)),
        distillation=DistillationOptions(pairs=40_000, epochs=8),
    )


@pytest.fixture(scope="session")
def paired(small: LearnerOptions) -> LearnerOptions:
    """As `small`, for sources that are networks of pairs."""
    surrogate = SurrogateOptions(hidden=(48, 48), training=train(25, 128), update=train(3, 128), refine=train(5, 128))
    return replace(small, surrogate=surrogate)


@pytest.fixture(scope="session")
def tiny() -> LearnerOptions:
    """Trains at once, where accuracy does not matter."""
    once = train(1, 256)
    return LearnerOptions(
        surrogate=SurrogateOptions(members=("gaussian",), hidden=(8,), training=once, refine=once, update=once),
        tempering=TemperingOptions(particles=16, moves=2),
        focus=TemperingOptions(particles=16, moves=2),
        bank=16,
        network=NetworkOptions(hidden=(8,), transforms=1, bins=4, trunk=(8,)),
        guide=GuideOptions(hidden=(8,), guess=(8,), scales=(8,)),
        distillation=DistillationOptions(pairs=1000, epochs=1, batch_size=256),
        distillation_update=DistillationOptions(pairs=500, epochs=1, batch_size=256),
    )


@pytest.fixture(scope="session")
def gaussian_posterior(linear_gaussian: LinearGaussian, small: LearnerOptions) -> TemperedPosterior:
    """Fitted to 2,000 simulations of the linear-Gaussian problem, beta in [0.2, 2]."""
    theta, x = linear_gaussian.draw(2000, seed=1)
    return TemperedPosterior.fit(theta, x, linear_gaussian.prior, (0.2, 2.0), small)


@pytest.fixture(scope="session")
def bounded_posterior(tiny: LearnerOptions) -> TemperedPosterior:
    """One parameter in [1, 4], two data, barely trained, beta in [0.2, 2]."""
    prior = ProductPrior({"rate": Marginal("Uniform", {"low": 1.0, "high": 4.0})})
    theta = prior.sample((300,))
    x = theta + torch.randn(300, 2)
    return TemperedPosterior.fit(theta, x, prior, (0.2, 2.0), tiny)


@pytest.fixture(scope="session")
def exact_posterior() -> Callable[[float, float], TemperedPosterior]:
    """A network that *is* the posterior of `theta ~ N(0, I)`, `x ~ N(theta, sigma^2 I)` at beta = 1.

    Called with `sigma` and a factor on its standard deviation: below one is over-confident. An infinite sigma makes x
    carry no information: the posterior is the prior.
    """

    def build(sigma: float, factor: float = 1.0) -> TemperedPosterior:
        network = PosteriorNetwork(2, 2, (0.1, 2.0), NetworkOptions(hidden=(8,), transforms=1, bins=4, trunk=()))
        gain = 1 / (1 + sigma**2)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
            regression = network.flow.transform.transforms[0].linear  # shift and log scale, from (z, t, t^2)
            regression.weight[:2, :2] = gain * torch.eye(2)
            regression.bias[2:] = torch.tensor(factor * (1 - gain) ** 0.5).log()
        prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
        identity = DataScaling(torch.zeros(2), torch.zeros(2), torch.ones(2))
        return TemperedPosterior(network, whiten(prior), identity, Familiarity.fit(3 * torch.randn(1000, 2)))

    return build
