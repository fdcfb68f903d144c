"""Figures become pictures in a process of its own, while the next ones are being made.

Most of a report's time goes into drawing, which Python does on one core. Figures reach the process through a pipe, as
pickles between two parts of one program: nothing of them is kept.
"""

from __future__ import annotations

__all__ = ["Renderer", "png"]

import contextlib
import gc
import io
import multiprocessing
import os
import pickle
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

from matplotlib.figure import Figure

_ROOT = Path(__file__).resolve().parent.parent


def png(figure: Figure, dpi: float) -> bytes:
    """The picture. Panels are placed once: `savefig` would draw the whole figure a second time for it."""
    figure.set_dpi(dpi)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


class Renderer:
    """Draws figures one after the other; a context manager.

    Arguments:
        apart: Whether in a process of its own. Should it not start, or end, drawing goes on here.
    """

    def __init__(self, apart: bool = True) -> None:
        self._thread = ThreadPoolExecutor(1, "rendering")
        self._begun: dict[tuple[Figure, float], Future[bytes]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        if apart:
            with contextlib.suppress(OSError):
                self._start()

    def submit(self, figure: Figure, dpi: float) -> Future[bytes]:
        """The PNG to come. A figure that was asked for before, at this resolution, is not drawn again."""
        if (figure, dpi) not in self._begun:
            self._begun[figure, dpi] = self._thread.submit(self._render, figure, dpi)
        return self._begun[figure, dpi]

    def __enter__(self) -> Renderer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=kind is None, cancel_futures=kind is not None)
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._thread.shutdown()
        if self._pipe is not None:
            self._pipe.close()

    def _start(self) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "orchestrator.rendering", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": path},
            )

    def _render(self, figure: Figure, dpi: float) -> bytes:
        if self._pipe is not None:
            # Also what a figure holds that cannot be sent: AttributeError, TypeError.
            with contextlib.suppress(OSError, EOFError, pickle.PicklingError, AttributeError, TypeError):
                self._pipe.send((figure, dpi))
                return self._pipe.recv_bytes()
        return png(figure, dpi)


def _serve(pipe: Connection) -> None:
    """Answers figures with pictures until the other side closes."""
    gc.disable()
    with contextlib.suppress(EOFError):
        while True:
            pipe.send_bytes(png(*pipe.recv()))


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
