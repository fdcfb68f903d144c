"""Acquisition: the fast criterion is BoTorch's, and what is in flight is not chosen again."""

from __future__ import annotations

import dataclasses
import math
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from botorch.acquisition.active_learning import qNegIntegratedPosteriorVariance
from botorch.exceptions.errors import ModelFittingError
from botorch.models import SingleTaskGP
from botorch.optim.optimize import optimize_acqf_discrete
from botorch.sampling.normal import SobolQMCNormalSampler

from learners import whiten
from learners.distillation import DistillationOptions
from learners.learner import MIN_SIMULATIONS, Learner
from learners.options import LearnerOptions
from learners.prior_density import PriorDensity
from learners.surrogate import SurrogateOptions
from learners.tempered_density import TemperedDensity
from learners.training import TrainOptions
from orchestrator.acquisition import (
    Candidates,
    IntegratedVariance,
    LargestVariance,
    RemovedVariance,
    _disagreement_model,
)
from orchestrator.acquisition_methods import resolve_acquisition
from orchestrator.choice import ChoiceAhead
from orchestrator.config_learner import AcquisitionConfig
from orchestrator.proposal import KINDS, ProposalKind, Proposals
from orchestrator.proposer import Proposer
from orchestrator.trainer import Trainer
from simulators.errors import ConfigError, TemperflowError


def candidates(n: int = 400, d: int = 2, seed: int = 0) -> Candidates:
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(n, d, generator=generator)
    slopes = torch.randn(3, d, generator=generator)
    beta = torch.rand(n, generator=generator) + 0.1
    return Candidates(u, beta, torch.sin(2 * u @ slopes.mT).mT, torch.ones(n), torch.ones(n))


def chosen(pool: Candidates, n: int, pending: torch.Tensor) -> torch.Tensor:
    return IntegratedVariance().choose(pool, n, pending, torch.Generator().manual_seed(0))


def with_worth(points: torch.Tensor, log_worth: float = 0.0) -> torch.Tensor:
    return torch.cat([points, points.new_full((*points.shape[:-1], 1), log_worth)], dim=-1)


@pytest.mark.parametrize("num_pending", [0, 3])
def test_the_criterion_equals_botorchs(num_pending: int) -> None:
    generator = torch.Generator().manual_seed(1)

    def points(n: int) -> torch.Tensor:
        return torch.rand(n, 2, generator=generator, dtype=torch.float64)

    noise, pending, mc_points, x = 0.05, points(num_pending), points(40), points(7)
    kernel_owner = SingleTaskGP(points(5), points(5)[:, :1], outcome_transform=None)
    ours = RemovedVariance(kernel_owner.eval(), mc_points, noise, with_worth(pending) if num_pending else None)
    # BoTorch's needs at least one observation: one too far away to matter.
    blank = SingleTaskGP(
        torch.full((1, 2), 1e4, dtype=torch.float64),
        torch.zeros(1, 1, dtype=torch.float64),
        train_Yvar=torch.full((1, 1), noise, dtype=torch.float64),
        covar_module=kernel_owner.covar_module,
        outcome_transform=None,
    )
    theirs = qNegIntegratedPosteriorVariance(
        blank,
        mc_points=mc_points,
        sampler=SobolQMCNormalSampler(torch.Size([1]), seed=0),
        X_pending=pending if num_pending else None,
    )
    with torch.no_grad():
        value, botorchs = ours(with_worth(x.unsqueeze(1))), theirs(x.unsqueeze(1))
        torch.testing.assert_close(value - value[0], botorchs - botorchs[0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(ours(with_worth(x.unsqueeze(1), 0.7)), value * 2.718281828459045**0.7)


def test_chosen_rows_are_distinct() -> None:
    rows = chosen(candidates(), 16, torch.zeros(0, 2))
    assert rows.shape == (16,)
    assert len(set(rows.tolist())) == 16


def test_the_choice_is_that_of_botorchs_optimizer() -> None:
    pool, pending, generator = candidates(n=100), candidates(n=5, seed=1).u, torch.Generator().manual_seed(0)
    weight = pool.information.double() + 1e-12
    mc_points = pool.u[torch.multinomial(weight, 256, replacement=True, generator=generator)].double()
    order = torch.multinomial(weight, 100, generator=generator)  # of all that there are
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model, fitted = _disagreement_model(pool, generator)
        assert fitted
        acquisition = RemovedVariance(model, mc_points, 1e-2, with_worth(pending.double()))
        best, _ = optimize_acqf_discrete(acquisition, q=8, choices=with_worth(pool.u[order].double()), unique=True)
    assert torch.equal(pool.u[chosen(pool, 8, pending)].double(), best[:, :-1])


@pytest.mark.parametrize("width", [1e-4, 0.0])
def test_where_the_posterior_is_so_narrow_that_candidates_coincide_their_rows_still_differ(width: float) -> None:
    pool = candidates(n=1000, d=1)
    pool = dataclasses.replace(pool, u=2.0 + width * pool.u)
    assert len(pool.u.unique()) < 1000
    proposals = proposer_of(lambda n, pending: chosen(pool, n, pending), dim=1).chosen(
        128,
        SimpleNamespace(candidates=pool),
        Proposals.none(1),  # type: ignore[arg-type]
    )
    assert len(proposals) == 128


def test_of_many_points_each_is_the_best_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    # With barely more candidates than are asked for, what they are worth would decide which are looked at, and no more.
    looked_at: list[int] = []
    forward = RemovedVariance.forward

    def counting(self: RemovedVariance, X: torch.Tensor) -> torch.Tensor:
        looked_at.append(len(X))
        value: torch.Tensor = forward(self, X)  # type: ignore[misc]
        return value

    monkeypatch.setattr(RemovedVariance, "forward", counting)
    assert len(chosen(candidates(n=1000), 128, torch.zeros(0, 2)).unique()) == 128
    assert min(looked_at) >= 4 * 128


def test_of_many_that_are_pending_the_last_count() -> None:
    pool, pending = candidates(), candidates(n=600, seed=1).u
    assert torch.equal(chosen(pool, 8, pending), chosen(pool, 8, pending[-512:]))
    assert not torch.equal(chosen(pool, 8, pending), chosen(pool, 8, pending[:512]))


def test_points_in_flight_repel_the_choice() -> None:
    pool = candidates()
    first = pool.u[chosen(pool, 8, torch.zeros(0, 2))]
    again = pool.u[chosen(pool, 8, first)]
    unaware = pool.u[chosen(pool, 8, torch.zeros(0, 2))]
    assert torch.cdist(again, first).min() > torch.cdist(unaware, first).min()


@pytest.mark.parametrize("acquisition", [IntegratedVariance(), LargestVariance()])
def test_points_go_where_the_members_disagree(acquisition: IntegratedVariance | LargestVariance) -> None:
    pool = candidates()
    one_sided = torch.where(pool.u[:, 0] > 0.5, pool.log_likelihood, torch.zeros_like(pool.log_likelihood))
    pool = dataclasses.replace(pool, log_likelihood=one_sided)
    rows = acquisition.choose(pool, 8, torch.zeros(0, 2), torch.Generator().manual_seed(0))
    assert (pool.u[rows, 0] > 0.4).float().mean() > 0.9


@pytest.mark.parametrize("acquisition", [IntegratedVariance(), LargestVariance()])
@pytest.mark.parametrize("what", ["seconds", "success"])
def test_points_go_where_simulations_are_cheap_and_succeed(
    acquisition: IntegratedVariance | LargestVariance, what: str
) -> None:
    pool = candidates()
    left = pool.u[:, 0] < 0
    worse = torch.where(left, 1.0, 20.0) if what == "seconds" else torch.where(left, 1.0, 0.05)
    pool = dataclasses.replace(pool, **{what: worse})
    rows = acquisition.choose(pool, 16, torch.zeros(0, 2), torch.Generator().manual_seed(0))
    assert left[rows].float().mean() > 0.8


def test_a_constant_cost_changes_nothing() -> None:
    pool = candidates()
    slow = dataclasses.replace(pool, seconds=torch.full((len(pool.u),), 3600.0))
    assert chosen(pool, 8, torch.zeros(0, 2)).tolist() == chosen(slow, 8, torch.zeros(0, 2)).tolist()


def length_scale(members: torch.Tensor, u: torch.Tensor) -> float:
    ones = torch.ones(len(u))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, fitted = _disagreement_model(Candidates(u, ones, members, ones, ones), torch.Generator().manual_seed(0))
    assert fitted
    return float(model.covar_module.lengthscale.detach())  # type: ignore[union-attr, operator]


def test_the_length_scales_are_those_of_all_members_in_any_order() -> None:
    u = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0))
    slow, fast = 0.05 * u[:, 0], torch.sin(6 * u[:, 0])
    found = [length_scale(torch.stack(members), u) for members in ((slow, fast, -fast), (fast, slow, -fast))]
    assert found[0] == pytest.approx(found[1], rel=0.01)


@pytest.mark.parametrize(("d", "members"), [(1, 3), (30, 3), (2, 1)])
def test_any_dimension_and_a_single_member_are_fine(d: int, members: int) -> None:
    pool = candidates(d=d)
    pool = dataclasses.replace(pool, log_likelihood=pool.log_likelihood[:members])
    assert chosen(pool, 4, torch.randn(5, d)).shape == (4,)


def test_absurd_members_do_not_break_it() -> None:
    pool = candidates()
    ell = pool.log_likelihood.clone()
    ell[0, :10] = float("-inf")
    ell[1, 10:20] = float("nan")
    pool = dataclasses.replace(pool, log_likelihood=ell)
    assert pool.u[chosen(pool, 4, torch.zeros(0, 2))].isfinite().all()
    assert 0 < pool.epistemic < float("inf")


def test_a_single_member_does_not_know_how_far_it_is_off() -> None:
    pool = candidates()
    assert math.isnan(dataclasses.replace(pool, log_likelihood=pool.log_likelihood[:1]).epistemic)


def test_a_gaussian_process_that_does_not_fit_is_replaced_by_its_defaults(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise ModelFittingError("did not converge")

    monkeypatch.setattr("orchestrator.acquisition.fit_gpytorch_mll", fail)
    acquisition = IntegratedVariance()
    rows = acquisition.choose(candidates(), 8, torch.zeros(0, 2), torch.Generator().manual_seed(0))
    assert len(set(rows.tolist())) == 8
    assert "did not converge" in caplog.text
    proposer = proposer_of(lambda n, _: torch.arange(n))
    proposer.acquisition = acquisition
    ahead = ChoiceAhead(proposer, AcquisitionConfig())
    assert ahead.metrics == {"acquisition_failed": 0.0, "acquisition_unfitted": 1.0}
    ahead.close()


def test_what_a_configuration_names(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "class First:\n    def choose(self, candidates, n, pending, generator):\n        return list(range(n))\n"
        "class Wrong:\n    pass\n"
        "class Needy:\n    def __init__(self, a):\n        pass\n"
    )
    mine = resolve_acquisition("mine.py:First", tmp_path)
    assert mine.choose(candidates(), 3, torch.zeros(0, 2), torch.Generator()) == [0, 1, 2]
    assert isinstance(resolve_acquisition("variance", tmp_path), LargestVariance)
    for name, message in {
        "mine.py:Wrong": "no method `choose",
        "mine.py:Needy": "TypeError",
        "mine.py:Fisrt": "First",
        "nowhere.py:First": "there is none",
    }.items():
        with pytest.raises(TemperflowError, match=message):
            resolve_acquisition(name, tmp_path)


def proposer_of(choose: Callable[[int, torch.Tensor], torch.Tensor], dim: int = 2) -> Proposer:
    """One with a user's acquisition: `choose(n, pending)` gives rows of the candidates."""

    class Mine:
        def choose(
            self, candidates: Candidates, n: int, pending: torch.Tensor, generator: torch.Generator
        ) -> torch.Tensor:
            return choose(n, pending)

    prior = torch.distributions.MultivariateNormal(torch.zeros(dim), torch.eye(dim))
    return Proposer(prior, whiten(prior), AcquisitionConfig(), 0, 0, Mine(), targeted=True)


SNAPSHOT: Any = SimpleNamespace(candidates=candidates(), rows=100_000)


@pytest.mark.parametrize(("targeted", "asked", "share"), [(True, None, 0.2), (False, None, 0.05), (False, 0.5, 0.5)])
def test_a_share_is_drawn_from_the_prior(targeted: bool, asked: float | None, share: float) -> None:
    prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    whitening, config = whiten(prior), AcquisitionConfig(prior_share=asked)
    proposer = Proposer(prior, whitening, config, 0, 0, IntegratedVariance(), targeted)
    snapshot: Any = SimpleNamespace(density=PriorDensity(prior, whitening, (0.1, 2.0)))
    kinds = proposer.batch(10_000, proposer.num_prior(10_000, snapshot), snapshot).kind
    drawn = (kinds == KINDS.index(ProposalKind.PRIOR)).mean()
    assert drawn == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("rows", [[0, 0, 1], [0, 1], [0.0, 1.0, 2.0]])
def test_a_users_choice_is_checked(rows: list[float]) -> None:
    with pytest.raises(ConfigError, match="expected 3 different rows"):
        proposer_of(lambda *_: torch.tensor(rows)).chosen(3, SNAPSHOT, Proposals.none(2))


class Ring(torch.distributions.Distribution):
    """Uniform between two circles, the outer one of radius 1: no box."""

    arg_constraints: ClassVar = {}
    support = torch.distributions.constraints.real_vector

    def __init__(self, inner: float) -> None:
        super().__init__(event_shape=torch.Size([2]), validate_args=False)
        self.inner = inner

    def sample(self, sample_shape: torch.Size = torch.Size()) -> torch.Tensor:
        radius = (self.inner**2 + (1 - self.inner**2) * torch.rand(sample_shape)).sqrt()
        angle = 2 * math.pi * torch.rand(sample_shape)
        return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        radius = value.norm(dim=-1)
        inside = (radius >= self.inner) & (radius <= 1)
        return torch.where(inside, -math.log(math.pi * (1 - self.inner**2)), -math.inf)


def looking_ahead(prior: torch.distributions.Distribution, theta: torch.Tensor, x: torch.Tensor) -> tuple[Learner, Any]:
    """A learner after a short training, targeted at the first x, and what the trainer's `_look_ahead` makes of it."""
    short, quick = TrainOptions(max_epochs=2), DistillationOptions(pairs=1000, epochs=1)
    surrogate = SurrogateOptions(members=("linear", "gaussian"), hidden=(8,), training=short)
    options = LearnerOptions(surrogate=surrogate, bank=16, threads=1, distillation_update=quick)
    learner = Learner(prior, (0.1, 2.0), x[:1], options)
    learner.add_prior_draws(theta, x)
    learner.fit_surrogate(final=False)
    learner.fit_posterior(final=False)
    trainer: Any = object.__new__(Trainer.__ray_metadata__.modified_class)  # type: ignore[attr-defined]
    timed = torch.cat([theta.double(), torch.ones(len(theta), 1)], dim=1)
    trainer.learner, trainer._timed = learner, timed
    return learner, trainer._look_ahead()


@pytest.mark.parametrize(("inner", "kind"), [(0.5, TemperedDensity), (0.995, PriorDensity)], ids=["wide", "thin"])
def test_candidates_and_proposals_lie_in_a_support_that_is_no_box(inner: float, kind: type) -> None:
    # Of a thin ring hardly a draw around a particle is on it: draws of the prior take their place.
    prior = Ring(inner)
    torch.manual_seed(0)
    theta = prior.sample(torch.Size([200]))
    learner, (density, found, _, _) = looking_ahead(prior, theta, theta + 2.0 * torch.randn(200, 2))
    to_theta, generator = learner.whitening.to_theta, torch.Generator().manual_seed(0)
    assert isinstance(density.density, kind)
    assert len(found.u) >= 50
    assert prior.log_prob(to_theta(found.u).float()).isfinite().all()
    assert prior.log_prob(to_theta(density.sample(1000, generator)[0]).float()).isfinite().all()


def test_fewer_simulations_than_parameters_are_enough_to_go_on() -> None:
    prior = torch.distributions.MultivariateNormal(torch.zeros(60), torch.eye(60))
    torch.manual_seed(0)
    theta = prior.sample(torch.Size([MIN_SIMULATIONS]))
    learner, (density, found, _, _) = looking_ahead(prior, theta, theta + 0.3 * torch.randn(MIN_SIMULATIONS, 60))
    draws = density.sample(100, torch.Generator().manual_seed(0))[0]
    assert draws.isfinite().all()
    assert density.log_prob(draws).isfinite().all()
    assert len(chosen(found, 8, draws).unique()) == 8
    posterior = learner.posterior()
    samples = posterior.sample((50,), beta=1.0, seed=0)
    assert samples.isfinite().all()
    assert posterior.log_prob(samples, beta=0.3).isfinite().all()


def taken(ahead: ChoiceAhead, n: int) -> Proposals:
    """What is taken as soon as the choice is there."""
    while not len(proposals := ahead.take(n)):
        pass
    return proposals


def test_nobody_waits_for_a_choice_and_its_ids_are_given_when_it_starts() -> None:
    wanted = threading.Event()

    def choose(n: int, _: torch.Tensor) -> torch.Tensor:
        assert wanted.wait(60)
        return torch.arange(n).flip(0)

    proposer = proposer_of(choose)
    ahead = ChoiceAhead(proposer, AcquisitionConfig())
    ahead.begin(SNAPSHOT, Proposals.none(2), 0)
    assert not len(ahead.take(10))
    assert proposer.from_prior(2).id.tolist() == [0, 1]
    wanted.set()
    first = taken(ahead, 4)
    assert first.id.tolist() == [2, 3, 4, 5]
    assert proposer.from_prior(1).id.tolist() == [6]
    rest = ahead.take(1000)
    assert rest.id.tolist() == list(range(7, 7 + len(rest)))
    assert len(first) + len(rest) == 128
    both = Proposals.concatenate([first, rest])
    assert np.array_equal(both.theta, proposer.chosen(128, SNAPSHOT, Proposals.none(2)).theta)
    assert len(set(both.seed.tolist())) == 128
    assert not len(ahead.take(10))
    ahead.close()


def test_a_choice_that_fails_is_told_and_the_next_one_comes(caplog: pytest.LogCaptureFixture) -> None:
    failures = [ValueError("no such thing")]

    def choose(n: int, _: torch.Tensor) -> torch.Tensor:
        if failures:
            raise failures.pop()
        return torch.arange(n)

    ahead = ChoiceAhead(proposer_of(choose), AcquisitionConfig())
    ahead.begin(SNAPSHOT, Proposals.none(2), 0)
    while not caplog.messages:
        assert not len(ahead.take(10))
    assert "no such thing" in caplog.text
    assert ahead.metrics["acquisition_failed"] == 1.0
    ahead.begin(SNAPSHOT, Proposals.none(2), 0)
    assert len(taken(ahead, 10)) == 10
    ahead.close()


def test_a_choice_looks_at_what_is_in_flight_and_at_what_the_model_has_not_seen() -> None:
    looked_at: list[torch.Tensor] = []

    def choose(n: int, pending: torch.Tensor) -> torch.Tensor:
        looked_at.append(pending)
        return torch.arange(n)

    proposer = proposer_of(choose)
    ended, in_flight = proposer.from_prior(20), proposer.from_prior(5)
    ahead = ChoiceAhead(proposer, AcquisitionConfig())
    ok = np.ones(20, dtype=bool)
    ok[-2] = False  # which has taught nothing
    ahead.simulated(ended, ok)
    ahead.begin(SNAPSHOT, in_flight, 3)
    taken(ahead, 1)
    expected = torch.tensor(np.concatenate([ended.theta[[-3, -1]], in_flight.theta])).float()
    torch.testing.assert_close(looked_at[0], proposer.whitening.to_u(expected.double()).float())
    ahead.close()
