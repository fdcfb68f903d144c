"""Real MLflow servers as child processes, that can be killed and started again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import wait_until


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


class Child:
    """A server in a process group of its own.

    Arguments:
        arguments: Of `python -m mlflow`; `{port}` is replaced.
        folder: Its working directory and log.
        health: Path that answers once it is ready.
        environment: Added to ours.
    """

    def __init__(self, arguments: list[str], folder: Path, health: str, **environment: str) -> None:
        self.port, self.folder = free_port(), folder
        self.uri = f"http://127.0.0.1:{self.port}"
        self._health, self._environment = health, environment
        self._command = [sys.executable, "-m", "mlflow", *(a.format(port=self.port) for a in arguments)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        # `mlflow models serve` looks for uvicorn on the path.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        # Evaluation jobs of language models need processes of their own.
        quick = {"PATH": path, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment = {**os.environ, **quick, **self._environment}
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        process = self._process
        wait_until(lambda: process.poll() is not None or answers(self.uri + self._health))
        assert process.poll() is None, (self.folder / "log").read_text()[-3000:]

    def kill(self) -> None:
        """SIGKILL to all its processes."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def tracking_server(folder: Path, store: str | None = None, *options: str, **environment: str) -> Child:
    """`mlflow server` with a database, by default sqlite, and its artifacts, in a folder."""
    folder.mkdir(exist_ok=True)
    store = store or f"sqlite:///{folder}/mlflow.db"
    arguments = ["server", "--backend-store-uri", store, "--artifacts-destination", str(folder / "artifacts")]
    return Child([*arguments, "--port", "{port}", "--workers", "1", *options], folder, "/health", **environment)


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """A PostgreSQL of our own, on a socket in a temporary folder; its address for SQLAlchemy."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    # It refuses to run as root; its own user may not enter pytest's folders.
    root = os.geteuid() == 0
    user = ["runuser", "-u", "postgres", "--"] if root else []
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    if root:
        shutil.chown(folder, "postgres", "postgres")
    data, programs = folder / "data", found[-1].parent
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "cwd": folder}

    def control(*arguments: str) -> None:
        subprocess.run([*user, programs / "pg_ctl", "-D", data, "-w", *arguments], **quiet)  # type: ignore[call-overload]

    try:
        subprocess.run([*user, programs / "initdb", "-D", data, "-U", "mlflow", "-A", "trust"], **quiet)  # type: ignore[call-overload]
        control("-o", f"-c listen_addresses='' -c fsync=off -k {folder}", "-l", str(folder / "log"), "start")
        try:
            yield f"postgresql+psycopg2://mlflow@/postgres?host={folder}"
        finally:
            control("-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
