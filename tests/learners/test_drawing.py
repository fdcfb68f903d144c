"""Draws without torch: those of `TemperedPosterior`, the same questions refused, the same warning."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl
import torch
import torch.distributions as D
from safetensors.numpy import load_file, save_file

from learners import TemperedPosterior, whiten
from learners.drawing import DrawingPosterior
from learners.familiarity import Familiarity
from learners.network import NetworkOptions, PosteriorNetwork
from learners.saved_files import SPEC, TENSORS
from learners.scaling import DataScaling
from learners.unwhitening import unwhitening_from_dict
from simulators.errors import ObservationError, SavedModelError, TemperatureError
from simulators.prior import Marginal, ProductPrior

PRIORS = {
    "normal": ProductPrior({f"{i}": Marginal("Normal", {"loc": 2.0, "scale": 3.0}) for i in range(3)}),
    "mixed": ProductPrior(
        {
            "a": Marginal("Normal", {"loc": 1.0, "scale": 0.5}, low=0.0),
            "b": Marginal("Normal", {"loc": 1.0, "scale": 0.5}, low=0.5, high=1.2),
            "c": Marginal("LogNormal", {"loc": 0.5, "scale": 1.0}),
            "d": Marginal("LogNormal", {"loc": 0.5, "scale": 1.0}, low=-1.0, high=4.0),
            "e": Marginal("Uniform", {"low": -2.0, "high": 5.0}),
        }
    ),
    "single": ProductPrior({"a": Marginal("Uniform", {"low": -2.0, "high": 5.0})}),
    "correlated": D.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.8], [0.8, 2.0]])),
    "box": D.Independent(D.Uniform(torch.zeros(2), torch.ones(2)), 1),
    "joint": D.TransformedDistribution(
        D.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.8], [0.8, 2.0]])), [D.ExpTransform()]
    ),
}


def posterior(
    prior: D.Distribution, beta_range: tuple[float, float] = (0.1, 2.0), trunk: tuple[int, ...] = (16, 8)
) -> TemperedPosterior:
    """Its network is random, and not small; x has counts, positive numbers over orders of magnitude, and others."""
    torch.manual_seed(0)
    x = torch.stack(
        [torch.randn(500), torch.randn(500).mul(3).exp(), torch.poisson(4 * torch.ones(500)), torch.randn(500)], dim=-1
    ).double()
    whitening, scaling = whiten(prior), DataScaling.fit(x)
    assert scaling.logarithmic.any() and scaling.root.any()
    network = PosteriorNetwork(whitening.dim, 4, beta_range, NetworkOptions((16, 16), transforms=3, trunk=trunk))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return TemperedPosterior(network, whitening, scaling, Familiarity.fit(scaling(x)), default_x=x[0])


#: Priors whose bounds single precision lacks, or at which draws end up.
EDGES = {
    "uniform": ProductPrior({"a": Marginal("Uniform", {"low": 1e5, "high": 100010.1})}),
    "truncated": ProductPrior({"a": Marginal("Normal", {"loc": 0.0, "scale": 1.0}, low=-0.1, high=0.7)}),
    "log_normal": ProductPrior({"a": Marginal("LogNormal", {"loc": 0.0, "scale": 15.0})}),
    "cut_log_normal": ProductPrior({"a": Marginal("LogNormal", {"loc": 0.0, "scale": 1.0}, low=0.1, high=0.7)}),
    "joint": D.MixtureSameFamily(
        D.Categorical(torch.ones(2)),
        D.Independent(D.Beta(torch.tensor([[2.0], [0.5]]), torch.tensor([[2.0], [0.5]])), 1),
    ),
}


def loaded(posterior: TemperedPosterior, folder: Path) -> DrawingPosterior:
    drawing = DrawingPosterior.load(posterior.save(folder))
    assert drawing is not None
    return drawing


X = np.array([[0.1, 2.0, 3.0, -1.0], [1.5, 40.0, 0.0, 0.5], [-0.7, 0.01, 9.0, 1.1]])


@pytest.mark.parametrize("prior", EDGES)
def test_no_draw_is_rounded_out_of_the_prior(prior: str) -> None:
    whitening = whiten(EDGES[prior])
    to_theta = unwhitening_from_dict(whitening.as_dict())
    assert to_theta is not None
    for u in (-40.0, -6.0, 0.3, 6.0, 40.0):
        theta = to_theta(np.full((1, 1), u, dtype=np.float32))
        assert theta.dtype == np.float32
        assert EDGES[prior].log_prob(torch.from_numpy(theta)).isfinite().all()
        np.testing.assert_allclose(theta, whitening.to_single(torch.full((1, 1), u)).numpy(), rtol=1e-6)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("rows", [1, 3])
def test_the_draws_are_those_of_the_whole_posterior(prior: str, rows: int, tmp_path: Path) -> None:
    whole = posterior(PRIORS[prior])
    drawing = loaded(whole, tmp_path)
    for beta in 0.1, 0.7, 2.0:
        expected = whole.sample_batched((9000,), X[:rows], beta, seed=7)
        found = drawing.sample_batched(9000, X[:rows], beta, seed=7)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)
        assert np.median(np.abs(found - expected.numpy())) < 1e-6 * expected.abs().max()
    assert drawing.names == whole.names


def test_a_single_temperature(tmp_path: Path) -> None:
    whole = posterior(PRIORS["normal"], beta_range=(1.0, 1.0))
    expected = whole.sample_batched((100,), X, 1.0, seed=1)
    np.testing.assert_allclose(loaded(whole, tmp_path).sample_batched(100, X, 1.0, 1), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("version", [1, 2, 4, 5])
def test_old_saves(version: int) -> None:
    folder = Path(__file__).with_name("saved") / f"format_{version}"
    whole, drawing = TemperedPosterior.load(folder), DrawingPosterior.load(folder)
    assert drawing is not None and whole.default_x is not None
    expected = whole.sample_batched((500,), whole.default_x, 0.5, seed=3)
    found = drawing.sample_batched(500, np.atleast_2d(whole.default_x.numpy()), 0.5, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_the_floor_of_logarithms_is_that_of_the_save(tmp_path: Path) -> None:
    folder = posterior(PRIORS["normal"]).save(tmp_path)
    spec = json.loads((folder / SPEC).read_text())
    x = X[[0, 0, 0]]
    x[:, 1] = 1e-40, 1e-200, 0.0
    for values in (3, 1):  # saves of earlier versions do not say, and tell none of these apart
        whole, drawing = TemperedPosterior.load(folder), DrawingPosterior.load(folder)
        assert drawing is not None
        z = drawing._scaled(x)
        np.testing.assert_allclose(z, whole.scaling(torch.tensor(x)).numpy(), rtol=1e-6)
        assert len(set(z[:, 1])) == values
        spec["scaling"].pop("floor", None)
        (folder / SPEC).write_text(json.dumps(spec))


def test_seeds(tmp_path: Path) -> None:
    drawing = loaded(posterior(PRIORS["mixed"]), tmp_path)
    first, again, other = (drawing.sample_batched(50, X, 1.0, seed) for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()
    assert (drawing.sample_batched(50, X, 1.0) != drawing.sample_batched(50, X, 1.0)).any()


def test_what_takes_torch_is_left_to_it(tmp_path: Path) -> None:
    gamma = ProductPrior({"a": Marginal("Gamma", {"concentration": 2.0, "rate": 1.0})})
    assert DrawingPosterior.load(posterior(gamma).save(tmp_path / "gamma")) is None
    assert DrawingPosterior.load(Path(__file__).with_name("saved") / "format_3") is None  # has an embedding


def test_the_same_questions_are_refused(tmp_path: Path) -> None:
    whole = posterior(PRIORS["normal"])
    drawing = loaded(whole, tmp_path)
    for x, beta, error in (
        (X, 3.0, TemperatureError),
        (X[:, :2], 1.0, ObservationError),
        (np.full((1, 4), np.nan), 1.0, ObservationError),
    ):
        with pytest.raises(error) as expected:
            whole.sample_batched((5,), x, beta)
        with pytest.raises(error) as found:
            drawing.sample_batched(5, x, beta)
        assert str(found.value) == str(expected.value)


def test_the_same_warning(tmp_path: Path) -> None:
    whole = posterior(PRIORS["normal"])
    drawing = loaded(whole, tmp_path)
    for x in X[:1] + 1e6, np.concatenate([X, X + 1e6]):
        with pytest.warns(UserWarning, match="unlike the simulated data") as expected:
            whole.sample_batched((5,), x, 1.0)
        with pytest.warns(UserWarning, match="unlike the simulated data") as found:
            drawing.sample_batched(5, x, 1.0)
        assert str(found[0].message) == str(expected[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawing.sample_batched(5, X, 1.0)


def test_damage_is_told(tmp_path: Path) -> None:
    with pytest.raises(SavedModelError, match="has the campaign finished training"):
        DrawingPosterior.load(tmp_path)
    posterior(PRIORS["normal"]).save(tmp_path)
    whole = (tmp_path / TENSORS).read_bytes()
    (tmp_path / TENSORS).write_bytes(whole[:100])
    with pytest.raises(SavedModelError, match="is damaged"):
        DrawingPosterior.load(tmp_path)
    (tmp_path / TENSORS).write_bytes(whole)
    (tmp_path / SPEC).write_text((tmp_path / SPEC).read_text().replace('"dim_u"', '"dim_v"'))
    with pytest.raises(SavedModelError, match="is damaged"):
        DrawingPosterior.load(tmp_path)


#: Where in `posterior.json`, and what is there after the damage.
_PARTS: dict[str, tuple[tuple[str | int, ...], object]] = {
    "a name less": (("names",), ["a"]),
    "names that are no texts": (("names",), [1, 2, 3]),
    "no names": (("names",), None),
    "a marginal less": (("whitening", "marginals"), []),
    "a marginal with NaN": (("whitening", "marginals", 0, "loc"), float("nan")),
    "a marginal without width": (("whitening", "marginals", 0, "scale"), 0.0),
    "another whitening": (("whitening", "kind"), "other"),
    "a column less": (("scaling", "center"), [0.0]),
    "a scale of zero": (("scaling", "scale", 0), 0.0),
    "no scaling": (("scaling",), []),
    "flags as words": (("scaling", "root", 0), "x"),
    "a temperature of zero": (("network", "beta_range", 0), 0.0),
    "one temperature": (("network", "beta_range"), [1.0]),
    "infinite temperatures": (("network", "beta_range", 1), float("inf")),
    "an observation that is too long": (("default_x",), [0.0] * 5),
    "an observation with NaN": (("default_x",), [0.0, 0.0, 0.0, float("nan")]),
    "no facts": (("metadata",), 3),
    "an infinite format": (("format",), float("inf")),
    "a format below one": (("format",), -3),
}


@pytest.mark.parametrize("load", [TemperedPosterior.load, DrawingPosterior.load])
@pytest.mark.parametrize("case", [*_PARTS, "deep", "NaN", "half", "order", "distances"])
def test_parts_that_do_not_fit_are_told_when_loading(case: str, load: Callable[[Path], object], tmp_path: Path) -> None:
    posterior(PRIORS["normal"]).save(tmp_path)
    spec, tensors = json.loads((tmp_path / SPEC).read_text()), load_file(tmp_path / TENSORS)
    if case in _PARTS:
        *way, last = _PARTS[case][0]
        part = spec
        for key in way:
            part = part[key]
        part[last] = _PARTS[case][1]
        (tmp_path / SPEC).write_text(json.dumps(spec))
    elif case == "deep":
        (tmp_path / SPEC).write_text("[" * 100_000)
    else:
        ending = {"NaN": "0.weight", "half": "0.weight", "order": ".order", "distances": "familiarity.distances"}[case]
        name = next(name for name in tensors if name.endswith(ending))
        changed = {"NaN": np.nan, "half": 1.0, "order": 0, "distances": -1.0}[case] * tensors[name]
        changed = np.concatenate([tensors[name][:1], changed[1:]]) if case == "distances" else changed
        kind = np.float16 if case == "half" else tensors[name].dtype
        save_file({**tensors, name: np.ascontiguousarray(changed, dtype=kind)}, tmp_path / TENSORS)
    with pytest.raises(SavedModelError, match="is damaged"):
        load(tmp_path)


def test_other_products_keep_their_threads(tmp_path: Path) -> None:
    def threads() -> set[int]:
        return {info["num_threads"] for info in threadpoolctl.threadpool_info() if info["user_api"] == "blas"}

    during = set()

    def to_theta(u: np.ndarray) -> np.ndarray:
        during.update(threads())
        return u

    drawing = loaded(posterior(PRIORS["normal"]), tmp_path)
    drawing._to_theta = to_theta
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        drawing.sample_batched(100, X, 1.0)
        assert threads() == {2}
    assert during == {1}


def test_torch_is_not_imported(tmp_path: Path) -> None:
    posterior(PRIORS["mixed"]).save(tmp_path)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from learners.drawing import DrawingPosterior\n"
        f"print(DrawingPosterior.load({str(tmp_path)!r}).sample_batched(10, [[0.1, 2.0, 3.0, -1.0]]).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(10, 1, 5)"
