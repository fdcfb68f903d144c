"""The report and the explorer as a user meets them, in a real Chromium."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bokeh.document import Document
from bokeh.models import Axis
from browser import WALK, Browser, browser, needs_chromium, until
from selenium.webdriver.common.keys import Keys

from benchmarks.report import make_run
from learners import TemperedPosterior
from orchestrator.checking import read_check
from orchestrator.explorer import load_explored
from orchestrator.explorer_bands import BandPicture
from orchestrator.explorer_page import ExplorerPage, page_variables
from orchestrator.explorer_pairs import PairPicture
from orchestrator.observation import Observation
from orchestrator.reporting import make_report
from orchestrator.run_directory import RunDirectory
from simulators.errors import RunDirectoryError

COMMAND = Path(sys.executable).with_name("temperflow")
FORMULA = r"$$\href{javascript:document.title='XSS'}{click}$$"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run directory: 2,000 simulations of 8 parameters and 42 numbers; the fastest to make."""
    run = make_run(tmp_path_factory.mktemp("pages") / "run", 2000)
    make_report(run)
    return run.path


@pytest.fixture
def odd(run: Path, tmp_path: Path) -> Path:
    """The campaign with names that are long, or look like formulas or HTML."""
    shutil.copytree(run, tmp_path / "odd")
    records = json.loads((run / "campaign.json").read_text())
    series = {"series": [r"\(z^2\)", "<i>y</i>"], "index": None, "index_name": "$$t$$"}
    records["observation"].update(series)
    (tmp_path / "odd" / "campaign.json").write_text(json.dumps(records))
    path = tmp_path / "odd" / "posterior" / "posterior.json"
    spec = json.loads(path.read_text())
    spec["names"][:4] = [FORMULA, "$$a^2$$", r"\[b\]", "$$$$"]
    spec["names"][7] = 5 * "a_name_"
    path.write_text(json.dumps(spec))
    return tmp_path / "odd"


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def window(downloads: Path) -> Iterator[Browser]:
    with browser(downloads) as opened:
        yield opened


@pytest.fixture(scope="module")
def explorer(run: Path) -> Iterator[str]:
    """Address of `temperflow explore` on the campaign."""
    with explored(str(run)) as url:
        yield url


@contextmanager
def explored(target: str) -> Iterator[str]:
    """`temperflow explore TARGET` as a process; its address."""
    command = [str(COMMAND), "explore", target, "--port", "0", "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[1]
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def visit(window: Browser, url: str, width: int = 1280, dark: bool = False) -> None:
    """Opens the explorer, and waits until it has drawn."""
    window.open(url, width, dark)
    until(lambda: window.driver.execute_script("return window.Bokeh?.documents[0]?.is_idle ?? false"), "the page")
    until(lambda: "effective draws" in window.text(), "the first picture")


def choose(window: Browser, tab: str) -> None:
    window.driver.find_element("id", f"tab-{tab}").click()


def upload(window: Browser, path: Path) -> None:
    choose(window, "observation")
    window.driver.find_element("id", "upload").send_keys(str(path))


def alert(window: Browser) -> str:
    return str(until(lambda: window.read("[role=alert]", "message"), "a message"))


@needs_chromium
class TestReport:
    @pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False), (390, True)])
    def test_fits_the_window_and_asks_for_nothing(self, run: Path, window: Browser, width: int, dark: bool) -> None:
        url = (run / "report.html").as_uri()
        window.open(url, width, dark)
        assert window.overflow() <= 0
        assert window.requests() == [url]
        assert window.complaints() == []
        background = window.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(18, 22, 28)") == dark
        images = "return [...document.images].map((image) => image.complete && image.naturalWidth > 0)"
        shown = window.driver.execute_script(images)
        assert shown == [True] * 8

    def test_long_names_leave_room_for_numbers_on_a_phone(self, odd: Path, window: Browser) -> None:
        make_report(RunDirectory(odd))
        window.open((odd / "report.html").as_uri(), 360)
        script = """
            return [...document.querySelectorAll(".scroll")].filter((s) => s.clientWidth)
              .map((s) => s.querySelector("tbody th").offsetWidth / s.clientWidth)"""
        assert max(window.driver.execute_script(script)) < 0.5
        assert window.overflow() <= 0

    def test_says_what_was_spent_and_what_to_use(self, run: Path, window: Browser) -> None:
        window.open((run / "report.html").as_uri())
        text = window.text()
        for expected in ("Workers busy", "How busy the workers were", "What simulations cost", "calibration-prior"):
            assert expected in text
        assert re.search(r"Recommended: β = [0-9.]+\. ", text)
        assert f'TemperedPosterior.load("{run}")' in text
        assert f"temperflow explore {run}" in text


class TestUnfinished:
    def test_a_campaign_under_way_has_a_report(self, run: Path, tmp_path: Path) -> None:
        """What is there while simulations go on: no posterior, no end, no calibration."""
        shutil.copytree(run / "simulations", tmp_path / "run" / "simulations")
        records = json.loads((run / "campaign.json").read_text())
        del records["finished"]
        (tmp_path / "run" / "campaign.json").write_text(json.dumps(records))
        paths = make_report(RunDirectory(tmp_path / "run"))
        assert {path.stem for path in paths} == {"utilization", "cost", "simulations"}
        page = (tmp_path / "run" / "report.html").read_text()
        for expected in (
            "There is no posterior yet",
            "How busy the workers were",
            "killed after 60 s",
            "How to go on",
        ):
            assert expected in page
        for missing in ('id="answer"', 'id="calibration"', 'id="temperature"', "TemperedPosterior.load"):
            assert missing not in page

    def test_so_has_one_that_has_not_simulated_yet(self, run: Path, tmp_path: Path) -> None:
        records = json.loads((run / "campaign.json").read_text())
        started = {key: value for key, value in records.items() if key not in ("finished", "mlflow")}
        (tmp_path / "campaign.json").write_text(json.dumps(started))
        assert make_report(RunDirectory(tmp_path)) == []
        assert "There is no posterior yet" in (tmp_path / "report.html").read_text()


def test_that_an_observation_is_unlike_all_others_is_said_once(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "posterior" / "posterior.json"
    spec = json.loads(path.read_text())
    path.write_text(json.dumps({**spec, "default_x": [1e6 * x for x in spec["default_x"]]}))
    told = subprocess.run([str(COMMAND), "report", str(tmp_path / "run")], capture_output=True, text=True, check=True)
    assert told.stderr.count("unlike the simulated data (p < 0.001)") == 1
    assert "unlike the simulated data (p &lt; 0.001)" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("content", ["", "{", "[3]", '[{"kind": "prior"}]', "[" * 100_000])
def test_a_damaged_calibration_is_named_with_the_remedy(run: Path, tmp_path: Path, content: str) -> None:
    directory = RunDirectory(tmp_path)
    shutil.copy(run / "calibration.json", tmp_path)
    assert read_check(directory)
    directory.calibration.write_text(content)
    with pytest.raises(RunDirectoryError, match=r"calibration.json is damaged .*delete it, and `temperflow check"):
        read_check(directory)


@needs_chromium
class TestExplorer:
    @pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
    def test_needs_nothing_from_elsewhere_and_fits(
        self, explorer: str, window: Browser, width: int, dark: bool
    ) -> None:
        visit(window, explorer, width, dark)
        port = explorer.rsplit(":", 1)[1].strip("/")
        assert all(re.match(rf"(http|ws)://localhost:{port}/", url) for url in window.requests())
        assert window.complaints() == []
        for tab in ("posterior", "observation", "calibration", "samples"):
            choose(window, tab)
            assert window.overflow() <= 0

    def test_pictures_follow_the_slider(self, explorer: str, window: Browser) -> None:
        visit(window, explorer)
        before, text = window.pixels("pairs"), window.text()
        bands = window.pixels("bands")
        assert "Temperature β: 1.00" in text
        at_one = deviation(window)
        handle = window.find(".noUi-handle", "slider")
        handle.send_keys(*[Keys.ARROW_LEFT] * 30)
        until(lambda: window.pixels("pairs") != before and window.pixels("bands") != bands, "another picture")
        until(lambda: "Temperature β: 1.00" not in window.text(), "another temperature")
        handle.send_keys(Keys.HOME)
        until(lambda: "Temperature β: 0.100" in window.text(), "the lowest temperature")
        until(lambda: deviation(window) > 1.2 * at_one, "a wider posterior")
        handle.send_keys(Keys.END)
        until(lambda: "Temperature β: 2.00" in window.text(), "the highest temperature")
        until(lambda: deviation(window) < 0.95 * at_one, "a narrower posterior")

    def test_a_temperature_outside_the_range_is_refused(self, explorer: str, window: Browser) -> None:
        visit(window, explorer)
        field = window.find("input", "exact")
        field.send_keys("7", Keys.ENTER)
        assert "beta = 7 is outside the trained range [0.1, 2]" in alert(window)
        assert "Temperature β: 1.00" in window.text()
        field.clear()
        field.send_keys("0.25", Keys.ENTER)
        until(lambda: "Temperature β: 0.250" in window.text(), "the typed temperature")
        until(lambda: "outside" not in window.text(), "the message to go")

    def test_bad_files_are_explained_and_a_good_one_is_shown(
        self, run: Path, explorer: str, window: Browser, tmp_path: Path
    ) -> None:
        visit(window, explorer)
        before = window.pixels("pairs")
        bad = {
            "words.csv": (b"x\none\ntwo\nthree\n", "must hold numbers"),
            "holes.csv": (b"x\n1\nnan\n", "NaN or infinite"),
            "short.json": (b"[1, 2]", "expected an observation of 42 numbers, got 2 in short.json"),
            "garbage.npy": (bytes(range(256)), "garbage.npy cannot be read as numbers"),
            "garbage.parquet": (b"PAR1 or not", "garbage.parquet cannot be read"),
            "pickled.npy": (pickled(), "pickled.npy cannot be read as numbers"),
            "data.xyz": (b"1 2 3", "expected a .csv, .parquet, .npy or .json file"),
            "empty.csv": (b"", "empty.csv cannot be read"),
            "many.csv": (b"x,y\n" + 42 * b"1,2\n", "expected an observation of 42 numbers, got 84 in many.csv"),
        }
        for name, (content, message) in bad.items():
            (tmp_path / name).write_bytes(content)
            upload(window, tmp_path / name)
            until(lambda message=message: message in window.text(), f"{name}: {message}")
            assert "Traceback" not in window.text()
        choose(window, "posterior")
        until(lambda: window.pixels("pairs") == before, "the posterior as it was")
        x = TemperedPosterior.load(run).default_x
        assert x is not None
        np.save(tmp_path / "good.npy", [-77.5, *(0.9 * x[1:].numpy())])
        upload(window, tmp_path / "good.npy")
        until(lambda: "-77.5" in window.text() and "many.csv" not in window.text(), "the uploaded numbers")
        choose(window, "posterior")
        until(lambda: window.pixels("pairs") != before, "its posterior")
        choose(window, "observation")
        window.find("button", "reset").click()
        until(lambda: "-77.5" not in window.text(), "the first observation")

    def test_too_large_a_file_is_refused(self, explorer: str, window: Browser, tmp_path: Path) -> None:
        visit(window, explorer)
        with (tmp_path / "large.npy").open("wb") as file:
            file.truncate(2**24 + 1)
        upload(window, tmp_path / "large.npy")
        until(lambda: "too large: an observation has at most 16 MiB" in window.text(), "the refusal")

    def test_a_number_can_be_edited(self, explorer: str, window: Browser) -> None:
        visit(window, explorer)
        before = window.read("table", "summary")
        choose(window, "observation")
        window.find(".slick-row:nth-child(1) .slick-cell.l1", "table").click()
        editor = window.find("input", "table")
        editor.send_keys(*[Keys.BACKSPACE] * 20, "-40", Keys.ENTER)
        choose(window, "posterior")
        until(lambda: window.read("table", "summary") != before, "the posterior of the edited observation")
        choose(window, "observation")
        window.find(".slick-row:nth-child(2) .slick-cell.l1", "table").click()
        window.find("input", "table").send_keys(*[Keys.BACKSPACE] * 20, "1e999", Keys.ENTER)
        until(lambda: "1 of 42 cells of the table hold no finite number" in window.text(), "the message")
        assert window.complaints() == []

    def test_samples_can_be_downloaded(self, explorer: str, window: Browser, run: Path, downloads: Path) -> None:
        visit(window, explorer)
        field = window.find("input", "exact")
        field.send_keys("0.5", Keys.ENTER)
        until(lambda: "Temperature β: 0.500" in window.text(), "the temperature")
        choose(window, "samples")
        window.find("button", "download").click()
        path = downloads / "bench-report_beta_0.5.csv"
        until(path.exists, "the file")
        expected = TemperedPosterior.load(run).sample((1000,), beta=0.5, seed=0)
        frame = pd.read_csv(path)
        assert list(frame.columns) == [f"p{i}" for i in range(8)]
        np.testing.assert_allclose(frame, expected, rtol=1e-4)

    def test_calibration_is_a_tab(self, explorer: str, window: Browser) -> None:
        visit(window, explorer)
        choose(window, "calibration")
        text = window.text()
        assert "The prior" in text
        assert "at β = 1" in text
        assert "iscalibration was found with" in text or "Miscalibrated: with" in text


def test_only_names_of_this_machine_are_answered(explorer: str) -> None:
    port = int(explorer.rstrip("/").rpartition(":")[2])

    def status(host: str, path: str = "/") -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", path, headers={"Host": host})
        answer = connection.getresponse().status
        connection.close()
        return answer

    for host in (f"localhost:{port}", "LOCALHOST", f"127.0.0.1:{port}", f"[::1]:{port}", "localhost:9999"):
        assert status(host) == 200
    for host in (f"evil.example:{port}", "localhost.evil.example", "127.0.0.1.evil.example", "[::2]", "192.168.0.1"):
        for path in ("/", "/ws", "/static/js/bokeh.min.js"):
            assert status(host, path) == 403


@needs_chromium
def test_names_are_shown_as_they_are(odd: Path, window: Browser) -> None:
    with explored(str(odd)) as url:
        visit(window, url)
        text = window.text()
        links = "let found = 0; walk(document, (e) => { found += e.tagName.toLowerCase() === 'a' }); return found"
        assert window.driver.execute_script(WALK + links) == 0
        for name in (FORMULA, "$$a^2$$", r"\[b\]"):
            assert name in text
        window.find("input", "exact").send_keys("7", Keys.ENTER)
        alert(window)
        choose(window, "observation")
        until(lambda: "<i>y</i>" in window.text(), "a title that is no HTML")


def test_no_label_is_typeset(odd: Path) -> None:
    """What Bokeh writes onto its canvases cannot be read there: its own rule, on all that it is given."""
    explored = load_explored(str(odd))
    page, document = ExplorerPage(explored), Document()
    page.attach(document, page_variables(explored))
    texts = [label for axis in document.select({"type": Axis}) for label in axis.major_label_overrides.values()]
    texts += [axis.axis_label or "" for axis in document.select({"type": Axis})]
    texts += [column.title for column in page.table.widget.columns]
    assert any(text.startswith("$\u200b$a^2") for text in texts)
    assert any("z^2" in text for text in texts)
    assert not [text for text in texts if re.search(r"\$\$.*\$\$|\\\(.*\\\)|\\\[.*\\\]", text, re.DOTALL)]


def test_a_posterior_alone_is_explored_without_bands(run: Path) -> None:
    explored = load_explored(str(run / "posterior"))
    variables = page_variables(explored)
    page = ExplorerPage(explored)
    page.attach(Document(), variables)
    assert variables["checks"] == []
    assert "Bands need predictive draws" in page.facts.text
    assert "p7" in page.summary.text


def test_an_amortized_campaign_starts_at_the_centre_of_its_simulations(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    for name, entry in (("campaign.json", "observation"), ("posterior/posterior.json", "default_x")):
        path = tmp_path / "run" / name
        path.write_text(json.dumps({**json.loads(path.read_text()), entry: None}))
    explored = load_explored(str(tmp_path / "run"))
    assert not explored.observed
    assert explored.recommendation is None
    assert explored.bank is not None
    assert explored.bank.origin == "simulations of the prior"
    page = ExplorerPage(explored)
    page.attach(Document(), page_variables(explored))
    assert "Shown is the centre of the simulated data" in page.facts.text
    # Hundreds of prior draws cannot stand for a posterior that 42 numbers have narrowed, and the page says so.
    assert "too few for bands" in page.facts.text
    assert make_report(RunDirectory(tmp_path / "run"))
    assert "No temperature is recommended" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    "observation", [Observation(np.array([1.0, -2.0, 30.0])), Observation(np.zeros(2), ("a", "b"))]
)
def test_few_numbers_are_intervals_on_scales_of_their_own(observation: Observation) -> None:
    k = observation.x.size
    quantiles = observation.x + np.array([-2.0, -1.0, 0.1, 1.0, 2.0])[:, None] * np.arange(1, k + 1)
    picture = BandPicture(observation, quantiles)
    [figure] = picture.figures
    assert [label.split("\n")[0] for label in figure.yaxis.major_label_overrides.values()] == (
        list(observation.series) or ["x[0]", "x[1]", "x[2]"]
    )
    picture.update(quantiles, "#ff0000")
    shown = {key: np.array(values) for key, values in figure.renderers[1].data_source.data.items()}
    for low, high in (("q05", "q25"), ("q25", "q50"), ("q50", "q75"), ("q75", "q95")):
        assert (shown[low] < shown[high]).all()
    assert ((shown["q05"] >= 0) & (shown["q95"] <= 1)).all()
    picture.update(None, "#ff0000")
    assert len(figure.renderers[1].data_source.data["q50"]) == 0


@pytest.mark.parametrize(("count", "length", "slanted"), [(10, 30, True), (4, 9, True), (10, 3, False), (2, 30, False)])
def test_names_that_are_wider_than_a_cell_are_slanted(count: int, length: int, slanted: bool) -> None:
    picture = PairPicture([f"{i:x}".ljust(length, "n") for i in range(count)])
    names = [
        axis.major_label_orientation for axis in picture.figure.select({"type": Axis}) if axis.major_label_overrides
    ]
    assert len(names) == 2
    assert [isinstance(turned, float) for turned in names] == [slanted, slanted]


def deviation(window: Browser) -> float:
    """The first parameter's standard deviation in the table."""
    return float(window.read("tr:nth-child(2) td:nth-child(3)", "summary"))


def pickled() -> bytes:
    """An `.npy` file that only pickle could read."""
    import io

    buffer = io.BytesIO()
    np.save(buffer, np.array([{}, {}, {}], dtype=object), allow_pickle=True)
    return buffer.getvalue()
