"""One browser for each module, and the page of an app in it."""

from collections.abc import Iterator
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

from tests.browser.browser import FLAGS, WAIT_SECONDS, Browser
from tests.browser.page import APP, ORIGIN, Run, local, new_email, runner, serving
from tests.programs import find
from tests.service import PASSWORD, Service

HINT = "install chromium and chromium-driver"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser of its own profile."""
    chromium, driver_program = (find(name, hint=HINT) for name in ("chromium", "chromedriver"))
    options = ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.accept_insecure_certs = True  # those of the tests
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = Chrome(options, ChromeService(driver_program))
    try:
        driver.set_script_timeout(WAIT_SECONDS)
        yield Browser(driver)
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def page(service: Service) -> Iterator[str]:
    """The app, served where `CORS_ORIGINS` allows it by default."""
    with serving({"/": APP.format(api=local(service.url))}):
        yield ORIGIN


@pytest.fixture
def run(browser: Browser, page: str) -> Run:
    """Return a function that runs an async function's body in the signed-out page."""
    browser.driver.get(page)
    browser.driver.delete_all_cookies()
    browser.driver.execute_script("localStorage.clear()")
    browser.driver.get(page)
    return runner(browser)


@pytest.fixture
def user(run: Run) -> dict[str, Any]:
    """A user who has just registered in the page."""
    fields = {"email": new_email(), "password": PASSWORD}
    account: dict[str, Any] = run("return register(args[0])", fields)
    return account
