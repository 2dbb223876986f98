"""Serves a page of a test on another origin than the service, which `CORS_ORIGINS` allows by default."""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.browser.browser import Browser

ORIGIN = "http://localhost:3000"
APP = """<!doctype html><meta charset="utf-8"><title>A single-page app</title>
<script type="module">globalThis.app = await import("{api}/client/tasks-api.js")</script>"""
SCRIPT = """
const done = arguments[arguments.length - 1], args = [...arguments].slice(0, -1);
(async () => {
  while (!globalThis.app) await new Promise((next) => setTimeout(next, 10));
  const { api, create, onSignedOut, pages, register, signIn, signOut } = app;
  BODY
})().then(done, (error) =>
  done({ ...error, thrown: error.constructor.name, name: error.name, message: error.message }));
"""
Run = Callable[..., Any]


def local(url: str) -> str:
    """Return the same address on the page's site: `127.0.0.1` would be another one."""
    return url.replace("127.0.0.1", "localhost")


def new_email() -> str:
    """Return a unique email."""
    return f"spa{time.monotonic_ns()}@example.com"


class Listener(ThreadingHTTPServer):
    """A server that can end its connections, because Chromium keeps idle ones."""

    def __init__(self, *arguments: Any) -> None:
        self._accepted: list[socket.socket] = []
        super().__init__(*arguments)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection."""
        connection, address = super().get_request()
        self._accepted.append(connection)
        return connection, address

    def cut(self) -> None:
        """End every connection."""
        for connection in self._accepted:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def serving(files: Mapping[str, str]) -> Iterator[None]:
    """Serve these pages by their paths."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name is http.server's
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(files.get(self.path, "").encode())

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    try:
        listener = Listener(("127.0.0.1", 3000), Handler)
    except OSError as error:
        pytest.fail(f"something else listens on port 3000, where the page has to be: {error}")
    with listener:
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield
        finally:
            listener.shutdown()
            thread.join()
            listener.cut()


def runner(browser: Browser) -> Run:
    """Return a function that runs an async function's body in the page, and returns its result or error."""

    def run_script(body: str, *arguments: Any) -> Any:
        return browser.driver.execute_async_script(SCRIPT.replace("BODY", body), *arguments)

    return run_script


def import_client(browser: Browser, url: str) -> None:
    """Load the client of the service at this address into the page."""
    script = """
    const [url, done] = arguments;
    const use = (app) => { globalThis.app = app; return ""; };
    import(`${url}/client/tasks-api.js`).then(use).catch(String).then(done);"""
    problem = browser.driver.execute_async_script(script, local(url))
    assert not problem, problem
