"""An S3-compatible server in this process, spoken to over HTTP, that can be told to fail."""

from __future__ import annotations

import logging
import threading
import urllib.request
from collections.abc import Callable, Iterable
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

logging.getLogger("werkzeug").setLevel(logging.ERROR)


class ObjectStore:
    """A server on loopback. What it stores stays for the whole process, also while it is stopped.

    Attributes:
        refuses: Requests (WSGI environments) that are answered with 403.
        requests: Method and path of all requests so far.
    """

    def __init__(self) -> None:
        self.refuses: Callable[[dict[str, Any]], bool] = lambda _: False
        self.requests: list[tuple[str, str]] = []
        self._application = DomainDispatcherApplication(create_backend_app)
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._server = make_server("127.0.0.1", self._port, self._answer, threaded=True)
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def send(self, method: str, path: str, body: bytes | None = None) -> None:
        headers = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{self.url}/{path}", data=body, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            answer.read()

    def _answer(self, environment: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.requests.append((environment["REQUEST_METHOD"], environment["PATH_INFO"]))
        if self.refuses(environment):
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            return [b"<Error><Code>AccessDenied</Code><Message>not now</Message></Error>"]
        answer: Iterable[bytes] = self._application(environment, start_response)
        return answer
