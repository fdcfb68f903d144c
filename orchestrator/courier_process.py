"""The campaign's side of `orchestrator.courier`: starts it, listens to it, and never waits for it but in the end."""

from __future__ import annotations

__all__ = ["CourierProcess"]

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from .courier import DELIVERED, REFUSED
from .tracking_uri import without_secret

logger = logging.getLogger(__name__)

_ROOT = Path(__file__).resolve().parent.parent
#: Seconds that a server which is out is given in the end: time for the courier's last tries.
_LAST_CHANCE = 5.0


class CourierProcess:
    """A courier at work.

    Arguments:
        directory: Run directory, with a journal.
        uri: Tracking server or store, with credentials if it has them.
    """

    def __init__(self, directory: Path, uri: str) -> None:
        self._directory, self._server = directory, without_secret(uri)
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        # -P: files of the user's folder, such as a random.py, are not to be taken for Python's own. A session of its
        # own: Ctrl-C in the terminal is for the campaign.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "orchestrator.courier", str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path, "MLFLOW_TRACKING_URI": uri},
        )
        self._out = False
        self._reader = threading.Thread(target=self._listen, name="tracking", daemon=True)
        self._reader.start()

    def finish(self, patience: float) -> None:
        """Has it deliver what is in the journal, for at most `patience` seconds, and end."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write("\n")
            self._process.stdin.close()
        begin = time.monotonic()
        while self._process.poll() is None:
            waited = time.monotonic() - begin
            if waited > patience or (self._out and waited > _LAST_CHANCE):
                self._process.kill()
            time.sleep(0.02)
        self._reader.join(1.0)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                message = json.loads(line)
                event, text = str(message["event"]), str(message["text"])
            except (ValueError, KeyError, TypeError):
                continue  # A library's own word.
            if event == DELIVERED:
                if self._out:
                    logger.warning("MLflow at %s answers again", self._server)
                self._out = False
            elif event == REFUSED:
                logger.warning("%s", text)
            elif not self._out:
                self._out = True
                logger.warning(
                    "MLflow at %s does not take records (%s); the campaign goes on, and they are kept in %s",
                    self._server,
                    text,
                    self._directory / "tracking",
                )
