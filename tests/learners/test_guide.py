"""The guide: exact where the emulator is, the same with and without torch, and of use to the network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import LinearGaussian
from torch.distributions import Independent, MultivariateNormal, Normal

from learners import Learner, LearnerOptions, TemperedPosterior
from learners.checkpoint import dump_learner, restore_learner
from learners.distillation import DistillationOptions
from learners.drawing import DrawingPosterior
from learners.guide import Guide, GuideOptions, fit_guide
from learners.laplace import tempered
from learners.network import PosteriorNetwork
from learners.scoring import Layers, hints
from learners.surrogate import SurrogateOptions

SMALL = GuideOptions(hidden=(48, 48), guess=(32, 32), scales=(16,))
NORMAL = torch.full((3,), 1e6)


def linear(weight: torch.Tensor, bias: torch.Tensor) -> Layers:
    return [(weight, bias)]


def test_of_a_linear_emulator_the_hints_are_the_exact_posterior() -> None:
    torch.manual_seed(0)
    a, offset, scale = torch.randn(3, 2), torch.randn(3), torch.tensor([0.3, 0.5, 1.5])
    z = torch.randn(50, 2) @ a.T + offset + scale * torch.randn(50, 3)
    nothing = linear(torch.zeros(2, 3), torch.zeros(2))
    told = hints(torch, z, nothing, linear(a, offset), linear(torch.zeros(3, 2), scale.log()), NORMAL, 3)[:, :4]
    covariance = torch.linalg.inv(torch.eye(2) + a.T @ (a / scale.square()[:, None]))
    mean = ((z - offset) / scale.square()) @ a @ covariance
    torch.testing.assert_close(told[:, :2], mean, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(told[:, 2:], covariance.diagonal().sqrt().log().expand(50, 2), atol=1e-3, rtol=1e-3)


def test_scales_tell_of_parameters_too() -> None:
    # z ~ N(0, e^u) in 30 columns, u ~ N(0, 1): the gradient of the logarithm of the posterior vanishes at the mode.
    torch.manual_seed(0)
    z = (0.2 * torch.randn(20, 1)).exp() * torch.randn(20, 30)
    guess, still = linear(torch.zeros(1, 30), torch.zeros(1)), linear(torch.zeros(30, 1), torch.zeros(30))
    told = hints(torch, z, guess, still, linear(torch.ones(30, 1), torch.zeros(30)), torch.full((30,), 1e6), 3)[:, :2]
    u, sd = told[:, :1], told[:, 1:].exp()
    gradient = z.square().sum(dim=1, keepdim=True) * torch.exp(-2 * u) - 30 - u
    assert (gradient * sd).abs().max() < 0.2
    torch.testing.assert_close(sd, torch.full_like(sd, (1 + 2 * 30) ** -0.5), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("scales_alone", "few"), [(False, True), (True, False)])
def test_it_takes_as_many_steps_as_it_needs(scales_alone: bool, few: bool) -> None:
    """A step finds the mode of a linear emulator; where only the scale tells of u, each covers half of the way down."""
    guide = Guide(1, 30, GuideOptions(hidden=(), guess=(), scales=()))
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.zero_()
        guide.log_degrees.fill_(6.0)
        (guide.log_scale if scales_alone else guide.middle)[0].weight.fill_(1.0)
    torch.manual_seed(0)
    z = (-3.0 + 0.1 * torch.randn(200, 1)).exp() * torch.randn(200, 30)
    guide.settle(z)
    assert (guide.steps == 3) == few


def test_what_is_far_from_everything_gets_finite_hints() -> None:
    guide = Guide(2, 3, SMALL)
    z = torch.tensor([[1e8, -1e8, 0.0], [0.0, 1e30, 1.0], [0.0, 0.0, 0.0]])
    assert guide(z).isfinite().all()


def test_with_and_without_torch_the_hints_are_the_same() -> None:
    guide = Guide(2, 3, SMALL)
    z = torch.randn(100, 3)
    networks = [
        [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in network if hasattr(layer, "weight")]
        for network in (guide.guess, guide.middle, guide.log_scale)
    ]
    found = hints(np, z.numpy(), *networks, degrees=guide.degrees.detach().numpy(), steps=guide.steps)
    told = guide(z)
    np.testing.assert_allclose(found[:, :4], told[:, :4].numpy(), atol=1e-3)
    # Eigenvectors may point either way; what is made of them may not.
    with_torch, without = (tempered(of[:, :2], of[:, 4:], 0.5) for of in (told, found))
    np.testing.assert_allclose(without.root(0.5), with_torch.root(0.5).numpy(), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(without.mean, with_torch.mean.numpy(), atol=1e-3)
    assert found.dtype == np.float32
    torch.testing.assert_close(guide(z.reshape(2, 50, 3)), told.reshape(2, 50, 10))


def test_it_finds_the_parameters_of_a_curved_simulator() -> None:
    def middle(u: torch.Tensor) -> torch.Tensor:
        return torch.stack([u[:, 0], (u[:, 0] + u[:, 1]).exp(), torch.sin(u[:, 1])], dim=-1)

    generator = torch.Generator().manual_seed(0)
    u = torch.randn(20_000, 2, generator=generator)
    z = middle(u) + 0.02 * torch.randn(20_000, 3, generator=generator)
    losses: list[float] = []
    guide = fit_guide(u, z, middle(u), SMALL, 1500, 512, generator, lambda _, loss: losses.append(loss))
    assert guide is not None
    told = guide(z[:2000])
    error = (told[:, :2] - u[:2000]) / told[:, 2:4].exp()
    assert told[:, 2:4].exp().median() < 0.03  # far narrower than the prior
    assert 0.5 < error.abs().median() < 0.9  # 0.67 where modes and deviations are exact
    assert len(losses) == 10
    assert losses[-1] < losses[0]


def test_its_steps_learn_to_lead_where_those_of_the_source_lead() -> None:
    def middle(u: torch.Tensor) -> torch.Tensor:
        return torch.stack(
            [torch.sin(2 * u[:, 0]) + u[:, 0], u[:, 1] + 0.3 * torch.cos(3 * u[:, 0]), u.sum(dim=1)], dim=-1
        )

    def slopes(u: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        at = u.detach().requires_grad_()
        (slope,) = torch.autograd.grad(-((z - middle(at)) / 0.2).square().sum() / 2, at)
        return slope

    def astray(slopes_are_learned: bool) -> float:
        generator = torch.Generator().manual_seed(0)
        u = torch.randn(20_000, 2, generator=generator)
        z = middle(u) + 0.2 * torch.randn(20_000, 3, generator=generator)
        learned = slopes if slopes_are_learned else None
        guide = fit_guide(u, z, middle(u), SMALL, 1000, 512, generator, slopes=learned)
        assert guide is not None
        return float(guide.astray(u, z, slopes(u, z)))

    assert astray(True) < 0.8 * astray(False)


@pytest.mark.parametrize(("steps", "told"), [(2000, 3), (400, 10)])
def test_where_posteriors_are_of_two_pieces_it_is_given_up_early_but_not_before_it_can_know(
    steps: int, told: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(20_000, 1, generator=generator)
    middle = u.square()
    z = middle + 0.05 * torch.randn(20_000, 1, generator=generator)
    tenths: list[int] = []
    guide = fit_guide(u, z, middle, SMALL, steps, 512, generator, lambda tenth, _: tenths.append(tenth))
    assert guide is None
    assert tenths == list(range(1, told + 1))


@pytest.mark.parametrize(("share", "framed"), [(0.0, True), (0.08, False)])
def test_it_has_frames_where_it_finds_nearly_all(share: float, framed: bool) -> None:
    """A share of the noise is fifty times as wide: hints are then far from the parameters, in their own widths."""
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(20_000, 1, generator=generator)
    wide = torch.rand(20_000, 1, generator=generator) < share
    z = u + torch.where(wide, 1.0, 0.02) * torch.randn(20_000, 1, generator=generator)
    guide = fit_guide(u, z, u, SMALL, 800, 512, generator)
    assert guide is not None
    assert guide.framed == framed


@pytest.mark.parametrize(
    ("guide", "embedding", "trunk", "version"),
    [(False, None, False, 2), (False, "mlp", False, 3), (True, None, True, 6), (False, None, True, 5)],
)
def test_older_versions_read_what_they_know(
    guide: bool,
    embedding: str | None,
    trunk: bool,
    version: int,
    linear_gaussian: LinearGaussian,
    tiny: LearnerOptions,
    tmp_path: Path,
) -> None:
    options = tiny if guide else replace(tiny, guide=None)
    options = options if trunk else replace(options, network=replace(options.network, trunk=()))
    posterior = TemperedPosterior.fit(
        *linear_gaussian.draw(300, seed=1), linear_gaussian.prior, (0.2, 2.0), options, embedding=embedding
    )
    assert (posterior.network.guide is not None) == guide
    assert json.loads((posterior.save(tmp_path) / "posterior.json").read_text())["format"] == version


@pytest.fixture(scope="module")
def guided(tiny: LearnerOptions) -> LearnerOptions:
    return replace(tiny, guide=SMALL)


def learner(problem: LinearGaussian, options: LearnerOptions) -> Learner:
    made = Learner(problem.prior, (0.2, 2.0), options=options)
    made.add_prior_draws(*problem.draw(300, seed=1))
    made.fit_surrogate()
    return made


def test_final_trainings_have_a_guide(linear_gaussian: LinearGaussian, guided: LearnerOptions) -> None:
    made = learner(linear_gaussian, guided)
    made.fit_posterior(final=False)
    assert made.network is not None and made.network.guide is None
    made.fit_posterior()
    guide = made.network.guide
    assert guide is not None
    made.fit_posterior(final=False)
    assert made.network.guide is guide, "an update goes on with the network that is there"
    twin = Learner(linear_gaussian.prior, (0.2, 2.0), options=guided)
    twin.add_prior_draws(*linear_gaussian.draw(300, seed=1))
    restore_learner(twin, dump_learner(made))
    theta, x = linear_gaussian.draw(5, seed=2)
    torch.testing.assert_close(twin.posterior().log_prob(theta, x), made.posterior().log_prob(theta, x))


def test_without_a_density_of_x_there_is_none(linear_gaussian: LinearGaussian, guided: LearnerOptions) -> None:
    theta, x = linear_gaussian.draw(300, seed=1)
    posterior = TemperedPosterior.fit(theta, x, linear_gaussian.prior, (0.2, 2.0), guided, source="ratio")
    assert posterior.network.guide is None


@pytest.mark.parametrize(("trusted", "steps", "version"), [(0.0, 3, 4), (1.0, 3, 6), (0.0, 4, 7), (1.0, 6, 7)])
def test_a_saved_guide_guides(
    trusted: float,
    steps: int,
    version: int,
    linear_gaussian: LinearGaussian,
    guided: LearnerOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("learners.guide._TRUSTED", trusted)
    monkeypatch.setattr("learners.guide._STEPS", (steps,))
    theta, x = linear_gaussian.draw(300, seed=1)
    posterior = TemperedPosterior.fit(theta, x, linear_gaussian.prior, (0.2, 2.0), guided)
    loaded = TemperedPosterior.load(posterior.save(tmp_path))
    assert json.loads((tmp_path / "posterior.json").read_text())["format"] == version
    assert loaded.network.guide is not None
    assert loaded.network.guide.framed == (trusted > 0)
    assert loaded.network.guide.steps == steps
    torch.testing.assert_close(loaded.log_prob(theta, x), posterior.log_prob(theta, x))
    drawing = DrawingPosterior.load(tmp_path)
    assert drawing is not None
    expected = posterior.sample_batched((500,), x[:3], 0.7, seed=3)
    np.testing.assert_allclose(drawing.sample_batched(500, x[:3].numpy(), 0.7, seed=3), expected, rtol=2e-3, atol=2e-3)
    assert 0.5 < posterior.efficiency(x[0]) <= 1


def test_where_posteriors_are_of_two_pieces_there_is_none_but_twice_as_many_passes(
    linear_gaussian: LinearGaussian, small: LearnerOptions
) -> None:
    def fitted(x: torch.Tensor) -> tuple[PosteriorNetwork, int]:
        made = Learner(linear_gaussian.prior, (0.2, 2.0), options=replace(small, guide=SMALL))
        made.add_prior_draws(theta, x)
        made.fit_surrogate()
        losses: list[str] = []
        made.fit_posterior(on_progress=lambda name, *_: losses.append(name))
        assert made.network is not None
        return made.network, losses.count("posterior")

    theta, x = linear_gaussian.draw(2000, seed=1)
    (one, passes_of_one), (two, passes_of_two) = fitted(x), fitted(theta.abs() + 0.1 * torch.randn(2000, 2))
    assert one.guide is not None and two.guide is None
    assert passes_of_two == 2 * passes_of_one == 2 * small.distillation.epochs


def test_of_counts_there_is_none(tiny: LearnerOptions) -> None:
    prior = Independent(Normal(torch.zeros(1), torch.ones(1)), 1)
    options = replace(tiny, surrogate=replace(tiny.surrogate, members=("rounded",)))
    theta = prior.sample((300,))
    posterior = TemperedPosterior.fit(theta, torch.poisson(theta.exp()), prior, (0.2, 2.0), options)
    assert posterior.network.guide is None


def test_what_the_network_learns_from_is_walked_to_where_the_guide_says() -> None:
    """Eight parameters known to a twentieth of the prior's width: at beta = 1 the log-likelihood of draws is on average
    half a nat a parameter below its maximum."""
    d = 8
    prior = MultivariateNormal(torch.zeros(d), torch.eye(d))
    generator = torch.Generator().manual_seed(0)
    matrix, theta = torch.randn(d, d, generator=generator) / d**0.5, torch.randn(1000, d, generator=generator)
    x = theta @ matrix.T + 0.05 * torch.randn(1000, d, generator=generator)
    options = LearnerOptions(
        surrogate=SurrogateOptions(members=("linear",)),
        bank=64,
        guide=GuideOptions((32, 32), (32,), (16,)),
        distillation=DistillationOptions(pairs=20_000, epochs=8),
    )
    made = Learner(prior, (0.2, 2.0), options=options)
    made.add_prior_draws(theta, x)
    made.fit_surrogate()
    teaching = made._teaching()
    guide = teaching.guide()
    assert guide is not None
    u = torch.zeros(1, d)
    most = teaching.source.log_prob(u[:, None], teaching.source.middle(u)[:, None]).detach()

    def short(guide: Guide | None) -> float:
        (bank,) = teaching.banks(True, guide)
        return float(most - bank.particles.log_likelihood[(bank.particles.beta - 1).abs() < 1e-9].mean())

    assert abs(short(guide) - d / 2) < 0.7
    assert short(None) > d / 2 + 1
