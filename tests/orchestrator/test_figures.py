"""The figures: what they show, that degenerate input breaks none, and that the rank band covers what it says."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from orchestrator.corner import density, hpd_levels
from orchestrator.figure_style import beta_color, limits, plain
from orchestrator.figures import (
    corner,
    fit_by_temperature,
    predictive,
    progress,
    sbc_ranks,
    simulations_over_time,
    temperature_widths,
)
from orchestrator.observation import Observation
from orchestrator.rank_band import ecdf, rank_band
from orchestrator.recommendation import Recommendation
from simulators.errors import ObservationError
from simulators.outcome import Array

NAMES = ["alpha", "gamma", "a$b_$"]
BETAS = (0.1, 1.0, 2.0)


def draws(n: int = 300, d: int = 3) -> dict[float, Array]:
    rng = np.random.default_rng(0)
    return {beta: 2.0 + rng.normal(size=(n, d)) / beta**0.5 for beta in BETAS}


def rendered(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=40)
    return buffer.getvalue()


def legend_of(figure: Figure) -> list[str]:
    legend = figure.legends[0] if figure.legends else figure.axes[0].get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def texts_of(figure: Figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(lambda artist: hasattr(artist, "get_text")))  # type: ignore[attr-defined]


class TestStyle:
    def test_a_temperature_has_one_colour_and_its_own(self) -> None:
        colors = [to_rgb(beta_color(beta)) for beta in (0.1, 0.25, 0.5, 1.0, 2.0)]
        gaps = [np.abs(np.subtract(a, b)).sum() for i, a in enumerate(colors) for b in colors[:i]]
        assert min(gaps) > 0.3

    def test_names_are_not_mathematics(self) -> None:
        assert plain("$\\frac$") == r"\$\frac\$"
        assert plain("a\nb") == "a b"
        assert len(plain("x" * 100)) == 26

    @pytest.mark.parametrize("count", [2, 3, 10, 1000, 54_321])
    @pytest.mark.parametrize("tail", [0.0, 0.001, 0.06, 0.4])
    def test_limits_are_quantiles(self, count: int, tail: float) -> None:
        values = np.random.default_rng(0).standard_normal(count)
        np.testing.assert_allclose(limits(values, tail, pad=0.0), np.quantile(values, [tail, 1 - tail]), atol=1e-12)

    @pytest.mark.parametrize("values", [[], [np.nan], [3.0, 3.0], [0.0], [-1e12, -1e12]])
    def test_limits_have_a_width(self, values: list[float]) -> None:
        low, high = limits(np.array(values))
        assert low < high


class TestCorner:
    def test_panels_and_legend(self) -> None:
        figure = corner(draws(), NAMES)
        assert len(figure.axes) == 6
        assert legend_of(figure) == ["β = 0.1", "β = 1", "β = 2"]
        assert rendered(figure)

    def test_one_parameter(self) -> None:
        figure = corner(draws(d=1), ["alpha"])
        assert len(figure.axes) == 1
        assert len(figure.axes[0].lines) == len(BETAS)
        assert figure.axes[0].get_xlabel() == "alpha"

    def test_more_than_ten_parameters(self) -> None:
        figure = corner({1.0: draws(d=12)[1.0]}, [f"p{i}" for i in range(12)])
        assert len(figure.axes) == 55
        assert "first 10 of 12" in figure.get_suptitle()

    @pytest.mark.parametrize("case", ["constant", "nan", "few", "one", "none", "copies"])
    def test_degenerate_draws(self, case: str) -> None:
        values = draws()[1.0]
        cases = {
            "constant": np.where(np.arange(3) == 1, 5.0, values),
            "nan": np.where(np.arange(300)[:, None] < 50, np.nan, values),
            "few": values[:5],
            "one": values[:1],
            "none": values[:0],
            "copies": np.repeat(values[:2], 150, axis=0),
        }
        assert rendered(corner({0.5: cases[case], 1.0: values}, NAMES))
        assert rendered(corner({0.5: cases[case]}, NAMES))

    def test_density_is_one_and_keeps_modes_apart(self) -> None:
        rng = np.random.default_rng(1)
        values = rng.normal(size=4000) * 0.05 + rng.choice([-1.0, 1.0], 4000)
        grid, height = density(values)
        assert np.trapezoid(height, grid) == pytest.approx(1.0, abs=0.01)
        peak = np.exp(0) / (2 * 0.05 * (2 * np.pi) ** 0.5)
        assert height.max() == pytest.approx(peak, rel=0.15)
        assert height[np.abs(grid) < 0.5].max() < 1e-3 * height.max()

    def test_levels_hold_their_mass(self) -> None:
        x = np.linspace(-5, 5, 201)
        mass = np.exp(-0.5 * (x[:, None] ** 2 + x**2))
        for share, level in zip((0.9, 0.5), hpd_levels(mass, (0.9, 0.5)), strict=True):
            assert level == pytest.approx(1.0 - share, rel=0.05)  # of a 2-D normal: exp(-r^2 / 2) = 1 - share
            assert mass[mass >= level].sum() / mass.sum() == pytest.approx(share, abs=0.01)


class TestPredictive:
    def observation(self) -> tuple[Observation, dict[float, Array]]:
        years = np.arange(1900.0, 1921.0)
        x = np.exp(np.concatenate([2 * np.sin(years), np.cos(years)]) + 3)
        rng = np.random.default_rng(0)
        samples = {beta: x * np.exp(0.3 * rng.normal(size=(100, x.size)) / beta**0.5) for beta in BETAS}
        return Observation(x, ("hare", "lynx"), years, "year"), samples

    def test_rows_are_series_and_columns_temperatures(self) -> None:
        figure = predictive(*self.observation())
        assert len(figure.axes) == 2 * len(BETAS)
        assert [figure.axes[i].get_ylabel() for i in (0, 3)] == ["hare", "lynx"]
        assert figure.axes[-1].get_xlabel() == "year"
        assert figure.axes[0].get_yscale() == "log"  # the hares span more than a decade,
        assert figure.axes[3].get_yscale() == "linear"  # the lynx less
        assert {"observed", "median", "50 %", "90 %"} == set(legend_of(figure))
        observed = figure.axes[4].lines[1]
        np.testing.assert_allclose(np.asarray(observed.get_xdata()), np.arange(1900.0, 1921.0))

    def test_says_how_many_the_band_holds(self) -> None:
        observation, _ = self.observation()
        figure = predictive(observation, {1.0: np.broadcast_to(observation.x * 2, (30, 42))})
        assert figure.axes[0].get_title() == "90 % band holds 0 of 21"

    def test_wide_bands_do_not_squeeze_the_data(self) -> None:
        observation, samples = self.observation()
        samples[0.1] = samples[0.1] * np.exp(np.random.default_rng(0).normal(size=(100, 1)) * 20)
        low, high = predictive(observation, samples).axes[0].get_ylim()
        assert np.log10(high / low) < 2.7 * np.log10(observation.x[:21].max() / observation.x[:21].min())

    def test_a_vector_is_one_series(self) -> None:
        x = np.sin(np.arange(50))
        figure = predictive(Observation(x), {1.0: x + np.random.default_rng(0).normal(size=(80, 50))})
        assert len(figure.axes) == 1
        assert figure.axes[0].get_xlabel() == "component"

    @pytest.mark.parametrize(
        ("observation", "titles"),
        [
            (Observation(np.zeros(2)), ["x[0]", "x[1]"]),
            (Observation(np.zeros(1)), ["x[0]"]),
            (Observation(np.zeros(3), ("a", "b", "c")), ["a", "b", "c"]),
            (
                Observation(np.zeros(4), ("a", "b"), np.array([1900.0, 1901.0])),
                ["a 1900", "a 1901", "b 1900", "b 1901"],
            ),
        ],
    )
    def test_few_components_are_intervals(self, observation: Observation, titles: list[str]) -> None:
        rng = np.random.default_rng(0)
        figure = predictive(observation, {beta: rng.normal(size=(50, observation.x.size)) for beta in BETAS})
        assert [axes.get_title() for axes in figure.axes] == titles
        assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["0.1", "1", "2"]

    def test_invalid_simulations_are_left_out(self) -> None:
        observation, samples = self.observation()
        samples[1.0][::2] = np.nan
        samples[2.0] = np.full((5, 42), np.nan)
        figure = predictive(observation, samples)
        assert figure.axes[2].get_title() == "no valid draws"
        assert rendered(figure)

    def test_shapes_are_checked(self) -> None:
        observation, samples = self.observation()
        with pytest.raises(ObservationError, match=r"\(n, 42\), got \(100, 41\)"):
            predictive(observation, {1.0: samples[1.0][:, :41]})
        with pytest.raises(ObservationError, match="2 series of equal length"):
            predictive(Observation(np.zeros(41), ("a", "b")), {1.0: np.zeros((5, 41))})


class TestRanks:
    @pytest.mark.parametrize("n", [20, 200])
    def test_the_band_holds_whole_curves(self, n: int) -> None:
        z, low, high = rank_band(n, 0.95)
        rng = np.random.default_rng(99)
        curves = np.array([ecdf(rng.uniform(size=n), z) for _ in range(3000)])
        held = ((low <= curves) & (curves <= high)).all(axis=1).mean()
        # Not less than stated (three standard errors), and not much more (a discrete statistic cannot be exact).
        assert 0.95 - 3 * (0.05 * 0.95 / 3000) ** 0.5 < held < 0.975

    @pytest.mark.parametrize("n", [1, 2, 3])
    def test_tiny_samples_have_a_band(self, n: int) -> None:
        z, low, high = rank_band(n)
        assert (low <= z).all()
        assert (z <= high).all()

    def test_says_in_words_which_parameter_leaves(self) -> None:
        ranks = np.random.default_rng(0).uniform(size=(200, 3))
        ranks[:, 1] **= 2
        figure = sbc_ranks(ranks, NAMES, "the prior")
        verdicts = ["leaves the band" in "".join(t.get_text() for t in axes.texts) for axes in figure.axes]
        assert verdicts == [False, True, False]
        assert figure.get_suptitle() == "The prior (200 simulations)"

    @pytest.mark.parametrize("shape", [(0, 2), (1, 1), (40, 21)])
    def test_any_size(self, shape: tuple[int, int]) -> None:
        figure = sbc_ranks(np.full(shape, 0.5), [f"p{i}" for i in range(shape[1])], "the prior")
        assert len(figure.axes) == min(20, shape[1])
        assert ("the first 20 of 21" in figure.get_suptitle().replace("\n", " ")) == (shape[1] == 21)
        assert rendered(figure)


class TestSimulations:
    def test_panels_colours_and_thinning(self) -> None:
        rng = np.random.default_rng(0)
        theta, beta = rng.normal(size=(6000, 3)), np.full(6000, np.nan)
        beta[3000:] = rng.uniform(0.1, 2, 3000)
        kinds = ["prior"] * 3000 + ["tempered"] * 3000
        figure = simulations_over_time(theta, beta, kinds, NAMES)
        assert [axes.get_title() for axes in figure.axes] == ["alpha", "gamma", r"a\$b_\$", "β served"]
        assert legend_of(figure) == ["prior", "tempered"]
        points = figure.axes[0].collections[0]
        assert len(points.get_offsets()) == 5000  # type: ignore[arg-type]
        assert len(np.unique(points.get_facecolors(), axis=0)) == 2  # type: ignore[attr-defined]
        assert rendered(figure)

    @pytest.mark.parametrize("n", [0, 1, 7])
    def test_few(self, n: int) -> None:
        figure = simulations_over_time(np.ones((n, 2)), np.full(n, np.nan), ["prior"] * n, NAMES[:2])
        assert len(figure.axes) == 2
        assert rendered(figure)


class TestProgress:
    def history(self) -> pd.DataFrame:
        seconds = np.arange(0.0, 300.0, 10.0)
        loss = np.where(np.arange(30) % 10 == 0, 5.0 - seconds / 100, np.nan)
        return pd.DataFrame(
            {
                "seconds": seconds,
                "simulations": seconds * 2,
                "failed": seconds / 10,
                "surrogate_loss": loss,
                "epistemic": 1.0,
            }
        )

    def test_a_panel_a_column(self) -> None:
        figure = progress(self.history())
        titles = [axes.get_title() for axes in figure.axes]
        assert titles == ["Simulations finished", "Surrogate loss (nats)", "Epistemic uncertainty"]
        assert [line.get_label() for line in figure.axes[0].lines] == ["finished", "of these failed"]
        assert len(figure.axes[1].lines[0].get_xdata()) == 3  # type: ignore[arg-type]
        assert figure.get_supxlabel() == "minutes since the start"

    def test_missing_columns_and_rows(self) -> None:
        assert len(progress(self.history()[["seconds", "simulations"]]).axes) == 1
        assert rendered(progress(self.history().iloc[:1]))
        assert "nothing was recorded" in texts_of(progress(self.history().iloc[:0]))
        assert "nothing was recorded" in texts_of(progress(pd.DataFrame()))


class TestFit:
    def test_marks_the_recommended_temperature(self) -> None:
        found = Recommendation(np.geomspace(0.1, 1.0, 5), np.array([0.9, 0.5, 0.2, 0.06, 0.01]), 0.56)
        figure = fit_by_temperature(found)
        assert figure.axes[0].lines[-1].get_xdata()[0] == 0.56  # type: ignore[index]
        assert rendered(figure)

    def test_of_one_temperature_or_none_recommended(self) -> None:
        assert rendered(fit_by_temperature(Recommendation(np.array([0.5]), np.array([0.2]), 0.5)))
        assert rendered(fit_by_temperature(Recommendation(np.array([0.1, 1.0]), np.zeros(2), None)))


class TestWidths:
    def test_medians_and_the_central_part(self) -> None:
        figure = temperature_widths(draws(4000), NAMES)
        assert len(figure.axes) == 3
        assert figure.axes[0].get_xscale() == "log"
        band = np.asarray(figure.axes[0].collections[0].get_paths()[0].vertices)
        assert np.ptp(band[:, 1]) == pytest.approx(2 * 0.1**-0.5, rel=0.1)

    def test_of_a_positive_parameter_nothing_is_shown_below_zero(self) -> None:
        figure = temperature_widths({0.1: np.exp(3 * draws(4000)[1.0]), 1.0: np.exp(draws(4000)[1.0])}, NAMES)
        for axes in figure.axes:
            assert axes.get_ylim()[0] > -0.1 * axes.get_ylim()[1]
            assert np.asarray(axes.collections[0].get_paths()[0].vertices)[:, 1].min() > 0

    @pytest.mark.parametrize("given", [{}, {1.0: np.zeros((5, 3))}, {1.0: np.full((5, 3), np.nan)}])
    def test_degenerate(self, given: dict[float, Array]) -> None:
        assert rendered(temperature_widths(given, NAMES))
