"""Tests of other files once more, behind the pooler of `test_pooler`."""

from inspect import signature
from types import ModuleType

from tests import test_isolation
from tests.auth import (
    test_account,
    test_login,
    test_logout,
    test_profile,
    test_refresh,
    test_register,
    test_sessions,
    test_token_endpoint,
)
from tests.operations import test_pooler
from tests.tasks import test_concurrency, test_list, test_router, test_user_scoped

NEEDS_MORE = {"new_service", "new_empty_database", "server", "federated", "better_auth", "eve", "proxy"}
"""Fixtures of tests that start services or servers themselves."""


def again(module: ModuleType) -> type:
    """Return the tests of a module that need only the shared service, which is the pooled one here."""
    tests = {name: value for name, value in vars(module).items() if name.startswith("test_")}
    return type(
        f"Test{module.__name__}",
        (),
        {
            name: staticmethod(test)
            for name, test in tests.items()
            if NEEDS_MORE.isdisjoint(signature(test).parameters)
        },
    )


task, threads = test_router.task, test_account.threads  # fixtures of theirs
pooler, services = test_pooler.pooler, test_pooler.services
database, service = test_pooler.database, test_pooler.service
TestAccount = again(test_account)
TestConcurrency = again(test_concurrency)
TestIsolation = again(test_isolation)
TestList = again(test_list)
TestLogin = again(test_login)
TestLogout = again(test_logout)
TestProfile = again(test_profile)
TestRefresh = again(test_refresh)
TestRegister = again(test_register)
TestRouter = again(test_router)
TestSessions = again(test_sessions)
TestTokenEndpoint = again(test_token_endpoint)
TestUserScoped = again(test_user_scoped)
