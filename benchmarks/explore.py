"""A move of the explorer's slider in a real browser: milliseconds until the answer is there, and until it is drawn.

Run as `python -m benchmarks.explore [DIR]` (`make bench-explore`), on a run directory or on one that is made up (8
parameters, 42 numbers). Chromium and its driver must be installed. Each move sets the slider to another temperature, as
a drag does. "Answered" is when the new outlines have arrived in the page: the server has drawn from the posterior,
reweighted the predictive draws and computed all contours. "Drawn" is the end of the last frame in which the page drew
anything because of it; a browser without a window paints in software.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

from .report import make_run

_FLAGS = ("headless=new", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking", "disable-sync")
_READY = "return Boolean(window.Bokeh?.documents[0]?.get_model_by_name('outlines')?.data.x.length)"
_MOVES = """
const [betas, done] = arguments
const find = (name) => Bokeh.documents[0].get_model_by_name(name)
const slider = find("slider"), outlines = find("outlines")
let drew = 0
const context = CanvasRenderingContext2D.prototype
for (const name of ["clearRect", "fill", "stroke", "drawImage"]) {
  const plain = context[name]
  context[name] = function (...rest) { drew = performance.now(); return plain.apply(this, rest) }
}
// A task that a frame's callback leaves behind runs once the frame is painted.
const channel = new MessageChannel()
const painted = () => new Promise((resolve) => requestAnimationFrame(() => {
  channel.port1.onmessage = () => resolve(performance.now())
  channel.port2.postMessage(0)
}))
const times = []
let moved = null
outlines.properties.data.change.connect(() => moved?.(performance.now()))
const run = async () => {
  for (const beta of betas) {
    const begin = performance.now()
    const answered = new Promise((resolve) => { moved = resolve })
    slider.value = Math.log10(beta)
    const answer = await answered
    moved = null
    let last = answer, quiet = 0
    while (quiet < 6) {
      const frame = await painted()
      if (drew > last) { last = frame; quiet = 0 } else { quiet += 1 }
    }
    times.push([answer - begin, last - begin])
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
  done(times)
}
run()
"""


def measure(directory: Path, moves: int) -> np.ndarray:
    """Milliseconds `(moves, 2)`: answered, drawn."""
    temperflow = str(Path(sys.executable).with_name("temperflow"))
    command = [temperflow, "explore", str(directory), "--port", "0", "--no-browser"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*_FLAGS, f"user-data-dir={profile}", "window-size=1400,1300"):
            options.add_argument(f"--{flag}")
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            assert server.stdout is not None
            driver.get(server.stdout.readline().split()[1])
            WebDriverWait(driver, 60).until(lambda d: d.execute_script(_READY))
            driver.set_script_timeout(120)
            betas = np.tile(np.geomspace(0.12, 1.9, 25), -(-moves // 25))[:moves]
            driver.execute_async_script(_MOVES, betas[:5].tolist())
            return np.array(driver.execute_async_script(_MOVES, betas.tolist()))
        finally:
            driver.quit()
            server.send_signal(signal.SIGINT)
            server.wait()


def main() -> None:
    """Prints the figures; see the module."""
    parser = argparse.ArgumentParser(description="Time moves of the explorer's slider.")
    parser.add_argument("directory", nargs="?", type=Path, help="Run directory; without it one is made up.")
    parser.add_argument("--moves", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        directory = arguments.directory or make_run(Path(folder) / "run", 2000).path
        times = measure(directory, arguments.moves)
    print(
        f"{arguments.moves} moves of the slider, {platform.machine()}, {os.cpu_count()} cores shared with the browser"
    )
    for name, column in zip(("answered", "drawn"), times.T, strict=True):
        print(f"  {name:9} median {np.median(column):5.0f} ms, 95 % within {np.quantile(column, 0.95):5.0f} ms")


if __name__ == "__main__":
    main()
