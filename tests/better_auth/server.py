"""A real Better Auth on loopback: installed once from its lock file, run by Node.js, stopped at the end."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx2

from tests.npm import installed
from tests.service import PASSWORD, START_SECONDS, free_port

HERE = Path(__file__).parent
SECRET = "N7xq2mV9rT4wZ8bK1cJ6yH3uF5sD0pLe"  # no other program knows this secret

_numbers = count(1)


@dataclass
class ExternalUser:
    """A user of the Better Auth server, with the cookies of their browser."""

    browser: httpx2.Client
    id: str
    email: str
    name: str

    def token(self) -> str:
        """Return a new JWT for an API."""
        response = self.browser.get("/api/auth/token")
        assert response.status_code == 200, response.text
        return str(response.json()["token"])


@dataclass
class BetterAuth:
    """The server; its users, sessions and keys survive `stop` and `start`."""

    directory: Path
    environment: dict[str, str]
    url: str
    process: subprocess.Popen[bytes] | None = None
    clients: list[httpx2.Client] = field(default_factory=list)

    def start(self) -> None:
        """Start the process, and wait until it publishes its keys."""
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                ["node", "server.js"],
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                httpx2.get(f"{self.url}/api/auth/jwks", trust_env=False, verify=False).raise_for_status()
            except httpx2.HTTPError:
                time.sleep(0.1)
            else:
                return
        raise AssertionError(f"Better Auth did not start:\n{(self.directory / 'log').read_text()}")

    def stop(self) -> None:
        """End the process."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            self.process.wait(START_SECONDS)

    def hang(self) -> None:
        """Accept connections and answer nothing, until `wake`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        """Answer again."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def rotate_keys(self) -> None:
        """Sign the next token by a new key; the old one stays published."""
        httpx2.post(f"{self.url}/rotate", trust_env=False, verify=False, timeout=30).raise_for_status()

    def sign_up(self, **fields: Any) -> ExternalUser:
        """Sign up a new user."""
        person = {"name": "Eve", "email": f"eve{next(_numbers)}@example.org", "password": PASSWORD, **fields}
        browser = httpx2.Client(base_url=self.url, trust_env=False, verify=False, timeout=30)
        self.clients.append(browser)
        response = browser.post("/api/auth/sign-up/email", json=person)
        assert response.status_code == 200, response.text
        return ExternalUser(browser, response.json()["user"]["id"], person["email"], person["name"])


@contextmanager
def better_auth_server(directory: Path, *modules: Path, **environment: str) -> Iterator[BetterAuth]:
    """Run a Better Auth in `directory`, with `modules` in place of the tests' own, until the block ends."""
    modules_of_lock = installed(HERE, "optional", "peer")
    url = f"http://127.0.0.1:{(port := free_port())}"
    for module in (HERE / "auth.js", HERE / "server.js", HERE / "package.json", *modules):
        shutil.copy(module, directory)
    (directory / "node_modules").symlink_to(modules_of_lock)
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    own = {"PORT": str(port), "BETTER_AUTH_URL": url, "BETTER_AUTH_SECRET": SECRET}
    server = BetterAuth(directory, {**kept, "BETTER_AUTH_TELEMETRY": "0", **own, **environment}, url)
    try:
        server.start()
        yield server
    finally:
        for client in server.clients:
            client.close()
        server.stop()
