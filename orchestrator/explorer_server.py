"""The server of the explorer's page. It listens on the loopback interface, and nowhere else."""

from __future__ import annotations

__all__ = ["make_server", "serve"]

import gc
import logging
import signal
import webbrowser

import torch
from bokeh.server.server import Server
from tornado.web import ErrorHandler

from simulators.errors import ConfigError

from .explorer import Explored
from .explorer_observation import MOST_UPLOAD_BYTES
from .explorer_page import ExplorerPage, page_variables

_HOST = "127.0.0.1"
#: What a browser may call this machine. A page from elsewhere may have its own name point here, to read what is shown.
_OTHER_NAMES = r"(?!(?:localhost|127\.0\.0\.1|\[::1\])$).*"


def make_server(explored: Explored, port: int) -> Server:
    """A server of the page that listens at `port` (0: any that is free); its loop is to be started.

    Raises:
        ConfigError: The port cannot be used.
    """
    # What a user can mend is said on the page; a closed browser window is no news.
    for name in ("bokeh", "tornado"):
        logging.getLogger(name).setLevel(logging.ERROR)
    variables = page_variables(explored)
    try:
        server = Server(
            lambda document: ExplorerPage(explored).attach(document, variables),
            address=_HOST,
            port=port,
            websocket_max_message_size=2 * MOST_UPLOAD_BYTES,
        )
    except OSError as error:
        raise ConfigError(f"port {port} cannot be used ({error.strerror}); choose another with --port") from error
    # Bokeh itself looks at the name for its websocket only.
    server._tornado.add_handlers(_OTHER_NAMES, [(".*", ErrorHandler, {"status_code": 403})])
    return server


def serve(explored: Explored, port: int, browser: bool) -> None:
    """Serves the page until it is interrupted."""
    # The networks are too small to gain from threads, and threads that wait by spinning fight the browser for cores.
    torch.set_num_threads(1)
    server = make_server(explored, port)
    url = f"http://localhost:{server.port}/"
    print(f"{explored.name}: {url} (Ctrl-C ends)", flush=True)
    if browser:
        server.io_loop.add_callback(webbrowser.open, url)
    server.start()
    # A collection that walks through all that was imported takes 0.15 s, in which the slider would stand still.
    gc.collect()
    gc.freeze()
    # An interruption as an exception would surface in whatever runs just then, which may swallow it.
    for number in (signal.SIGINT, signal.SIGTERM):
        server.io_loop.asyncio_loop.add_signal_handler(number, server.io_loop.stop)
    server.io_loop.start()
    server.stop()
