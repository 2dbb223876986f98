"""A Better Auth and a service that trusts it, which the tests of external tokens share."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Protocol

import pytest

from tests.better_auth.server import BetterAuth, ExternalUser, better_auth_server
from tests.service import JWT_SECRET, Service, running
from tests.tokens import SHARED_SECRET

_numbers = count(1)


class _Database(Protocol):
    url: str


@pytest.fixture
def new_better_auth(tmp_path: Path) -> Iterator[Callable[..., BetterAuth]]:
    """Run a Better Auth server of a test's own, with environment variables of its own."""
    with ExitStack() as stack:

        def run(*modules: Path, **environment: str) -> BetterAuth:
            directory = tmp_path / f"better-auth-{next(_numbers)}"
            directory.mkdir()
            return stack.enter_context(better_auth_server(directory, *modules, **environment))

        yield run


@pytest.fixture(scope="session")
def better_auth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BetterAuth]:
    """The Better Auth server that most tests share; leave its keys alone."""
    with better_auth_server(tmp_path_factory.mktemp("better-auth")) as server:
        yield server


@pytest.fixture(scope="session")
def federated(
    better_auth: BetterAuth,
    new_database: Callable[[], _Database],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """A service that trusts the shared Better Auth server, and a front end's shared secret beside it."""
    log = tmp_path_factory.mktemp("federated") / "log"
    with running(
        log,
        DATABASE_URL=new_database().url,
        JWT_SECRET=JWT_SECRET,
        BETTER_AUTH_URL=better_auth.url,
        BETTER_AUTH_SECRET=SHARED_SECRET,
    ) as running_service:
        yield running_service


@pytest.fixture
def eve(better_auth: BetterAuth) -> ExternalUser:
    """A user of the Better Auth server."""
    return better_auth.sign_up()
