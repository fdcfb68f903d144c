"""The report: well-formed, self-contained, safe against what users write, written whole or not at all."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from orchestrator import report
from orchestrator.recommendation import Recommendation
from orchestrator.report import (
    CalibrationResult,
    Comparison,
    Failure,
    MlflowRun,
    ReportData,
    ReportFigure,
    Width,
    summarize,
    write_report,
)
from orchestrator.spending import KindCost, Timeline

VOID = {"meta", "link", "img", "br", "hr", "input"}
EVIL = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Checks that tags nest; collects attributes and visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def small_figure() -> Figure:
    figure = Figure(figsize=(3, 2))
    figure.subplots().plot([0, 1])
    return figure


def png() -> bytes:
    buffer = io.BytesIO()
    small_figure().savefig(buffer, format="png")
    return buffer.getvalue()


@pytest.fixture
def data() -> ReportData:
    rng = np.random.default_rng(0)
    names = ["alpha", "gamma"]
    return ReportData(
        name="hudson-bay",
        question="Targeted: which parameters explain 21 years of pelts?",
        parameters=names,
        config_yaml="name: hudson-bay\nbudget: {simulations: 1000}",
        budget="1,000 simulations",
        counts={"ok": 990, "timeout": 9, "crashed": 1},
        simulator_seconds=7384.0,
        wall_seconds=95.0,
        versions={"temperflow": "0.1.0"},
        seed=7,
        posterior={beta: summarize(rng.normal(size=(100, 2)), names) for beta in (0.1, 1.0)},
        usage='posterior.sample((1000,), x=x_o, beta=0.5)\nposterior.log_prob(theta, x=x_o) < 0 & "quoted"',
        costs=[KindCost("tempered", 900, 10, 7000.0), KindCost("prior", 100, 0, 384.0)],
        timeline=Timeline(np.linspace(0, 100, 11), np.full(10, 1.5), 2, 0.754),
        recommendation=Recommendation(np.array([0.1, 0.32, 1.0]), np.array([0.6, 0.2, 0.01]), 0.32),
        failures=[Failure("timeout", "killed after 10 s", 9), Failure("crashed", "signal 11", 1)],
        comparison=[Comparison("alpha", 1.0, 0.1, 1.05, 0.12, True), Comparison("gamma", 1.0, 0.1, 1.3, 0.1, False)],
        comparison_rule="Agreement means within one standard deviation.",
        widths=[Width("alpha", 0.3, 0.1, True), Width("gamma", 0.1, 0.2, False)],
        beta_low=0.1,
        calibration=[
            CalibrationResult("the prior", rng.uniform(size=(50, 2)), [0.5, 0.0001], False, "Miscalibrated: gamma."),
        ],
        warnings=["The observation is unlike the simulations."],
        figures=[
            ReportFigure("Corner", "All pairs.", small_figure(), "answer"),
            ReportFigure("Over time", "Every point a simulation.", png(), "simulations"),
        ],
        mlflow=MlflowRun("https://user:secret@mlflow.example.org/x", "abc123", "hudson-bay"),
    )


def page_of(data: ReportData, folder: Path) -> Page:
    write_report(data, folder / "report.html")
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_sections_in_order(data: ReportData, tmp_path: Path) -> None:
    page = page_of(data, tmp_path)
    sections = [attributes["id"] for attributes in page.all("section")]
    assert sections == [
        "asked",
        "spent",
        "temperature",
        "answer",
        "comparison",
        "calibration",
        "simulations",
        "failures",
        "use",
        "provenance",
    ]
    targets = [a["href"] for a in page.all("a") if (a["href"] or "").startswith("#")]
    assert {f"#{section}" for section in sections} >= set(targets)
    assert [tag for tag, _ in page.tags if tag == "h1"] == ["h1"]


def test_says_what_happened(data: ReportData, tmp_path: Path) -> None:
    text = page_of(data, tmp_path).text
    for expected in (
        data.question,
        "2 h 03 min",
        "1 min 35 s",
        "10 simulations of 1,000 (1.0 %) gave no result",
        "killed after 10 s",
        "Miscalibrated: gamma.",
        "The observation is unlike the simulations.",
        "name: hudson-bay budget: {simulations: 1000}",
        'posterior.log_prob(theta, x=x_o) < 0 & "quoted"',
        "75.4 % of the time of 2 slots went into simulations",
        "tempered 900 10 1 h 56 min 94.8 % 7.78 s",
        "Recommended: β = 0.32. Just above β = 0.32 the observation is extreme",
    ):
        assert expected in text


def test_verdicts_are_words_with_marks(data: ReportData, tmp_path: Path) -> None:
    text = page_of(data, tmp_path).text
    assert "alpha ✓ agrees 1.00 ± 0.100 1.05 ± 0.120 +0.50 1.20" in text
    assert "gamma ✗ differs 1.00 ± 0.100 1.30 ± 0.100 +3.00 1.00" in text
    assert "✗ 1 of 2 parameters agree" in text
    assert "alpha ✓ wider" in text
    assert "gamma ✗ not wider" in text
    assert "alpha ✓ look uniform 0.500" in text
    assert "gamma ✗ not uniform < 0.001" in text


def test_is_self_contained(data: ReportData, tmp_path: Path) -> None:
    page = page_of(data, tmp_path)
    for _, attributes in page.tags:
        for key in ("src", "href", "srcset", "data", "action", "poster"):
            assert re.match(r"#|data:", attributes.get(key) or "#")
    assert not page.all("script")
    assert "url(" not in (tmp_path / "report.html").read_text()
    assert "@import" not in (tmp_path / "report.html").read_text()


def test_figures_are_images_with_alternatives(data: ReportData, tmp_path: Path) -> None:
    images = page_of(data, tmp_path).all("img")
    assert len(images) == 3  # two given, one of the ranks
    for image in images:
        kind, _, content = (image["src"] or "").partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(content).startswith(b"\x89PNG")
        assert len(image["alt"] or "") > 10


def test_what_users_wrote_is_escaped(data: ReportData, tmp_path: Path) -> None:
    evil = dataclasses.replace(
        data,
        name=EVIL,
        question=EVIL,
        parameters=[EVIL, "gamma"],
        posterior={1.0: summarize(np.zeros((5, 2)), [EVIL, "gamma"])},
        config_yaml=EVIL,
        usage=EVIL,
        warnings=[EVIL],
        failures=[Failure(EVIL, EVIL, 1)],
        versions={EVIL: EVIL},
        figures=[ReportFigure(f'"{EVIL}', f'"><{EVIL}', png(), "answer")],
        comparison=[Comparison(EVIL, 0, 1, 0, 1, True)],
        mlflow=MlflowRun(EVIL, EVIL, EVIL),
    )
    page = page_of(evil, tmp_path)
    assert not page.all("script")
    assert page.text.count(EVIL) > 10


def test_credentials_are_left_out(data: ReportData, tmp_path: Path) -> None:
    write_report(data, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "secret" not in text
    assert "https://mlflow.example.org/x" in text
    database = MlflowRun("postgresql://db/mlflow?user=me&password=secret", "abc123")
    write_report(dataclasses.replace(data, mlflow=database), tmp_path / "report.html")
    assert "secret" not in (tmp_path / "report.html").read_text()


def test_an_amortized_campaign_without_anything(data: ReportData, tmp_path: Path) -> None:
    bare = dataclasses.replace(
        data,
        counts={},
        posterior={},
        failures=(),
        comparison=(),
        widths=(),
        calibration=(),
        warnings=(),
        figures=(),
        mlflow=None,
        costs=(),
        timeline=None,
        recommendation=None,
    )
    text = page_of(bare, tmp_path).text
    assert "the model answers any observation" in text
    assert "Calibration was not checked" in text
    assert "every simulation gave a result" in text
    assert "Comparison" not in text
    assert "No temperature is recommended" in text


def test_a_campaign_under_way_has_no_answer_yet(data: ReportData, tmp_path: Path) -> None:
    early = dataclasses.replace(data, trained=False, posterior={}, comparison=(), widths=(), calibration=(), figures=())
    page = page_of(early, tmp_path)
    sections = [attributes["id"] for attributes in page.all("section")]
    assert sections == ["asked", "spent", "simulations", "failures", "use", "provenance"]
    assert "There is no posterior yet" in page.text
    assert "10 simulations of 1,000 (1.0 %) gave no result" in page.text


def test_no_fitting_temperature_is_said(data: ReportData, tmp_path: Path) -> None:
    nothing = Recommendation(np.array([0.1, 1.0]), np.array([0.02, 0.01]), None)
    text = page_of(dataclasses.replace(data, recommendation=nothing), tmp_path).text
    assert "Recommended β none trained from 0.1" in text
    assert "None in the trained range: even at β = 0.1 the observation is extreme" in text


def test_efficiency_is_told_where_it_is_known(data: ReportData, tmp_path: Path) -> None:
    assert "efficiency" not in page_of(data, tmp_path).text
    text = page_of(dataclasses.replace(data, efficiency={0.1: 0.875, 1.0: 0.25}), tmp_path).text
    assert "efficiency 0.88 0.25" in text
    assert "temperflow sample --refine" in text


def test_gives_back_the_pictures(data: ReportData, tmp_path: Path) -> None:
    pictures = write_report(data, tmp_path / "report.html")
    assert len(pictures) == len(data.figures)
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert pictures[1] == data.figures[1].image


def test_replaces_the_old_report_whole(data: ReportData, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    with path.open() as reader:  # someone reads the old one meanwhile
        write_report(data, path)
        assert reader.read() == "old"
    assert path.read_text().endswith("</html>")
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_report(data: ReportData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def refuse(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_report(data, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_stays_below_its_size(data: ReportData, tmp_path: Path) -> None:
    noise = Figure(figsize=(7, 7))
    noise.figimage(np.random.default_rng(0).uniform(size=(900, 900)), resize=False)
    heavy = dataclasses.replace(data, figures=[ReportFigure(f"{i}", "Noise.", noise, "answer") for i in range(3)])
    write_report(heavy, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < report.MOST_BYTES


def test_summaries() -> None:
    draws = np.stack([np.linspace(0, 100, 1001), np.full(1001, np.nan)], axis=1)
    assert np.isnan(summarize(draws, ["a", "b"])[0].mean)
    (summary,) = summarize(draws[:, :1], ["a"])
    assert (summary.q05, summary.q50, summary.q95) == pytest.approx((5, 50, 95))
    assert summary.mean == pytest.approx(50)
    assert summary.std == pytest.approx(100 / 12**0.5, rel=0.01)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1234.5, "1,234"), (-0.01234, "−0.0123"), (54.321, "54.3"), (np.nan, "–"), (1e-9, "1.00e−09")],
)
def test_numbers(value: float, text: str) -> None:
    assert report._number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "0.5 s"), (60.0, "1 min 00 s"), (3599.9, "1 h 00 min"), (7384.0, "2 h 03 min"), (3e5, "3 days 11 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert report._duration(seconds) == text


def test_a_report_needs_no_cluster() -> None:
    # To import Ray alone takes a second or two of the ten that a large report may take.
    code = "import sys, orchestrator.reporting; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
