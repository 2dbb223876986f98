"""`/docs` and `/redoc` in headless Chromium: no foreign asset, nothing stored, Authorize and Try it out."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support import expected_conditions as expected
from selenium.webdriver.support.ui import WebDriverWait

from tests.programs import find
from tests.service import PASSWORD, Account, Service

WAIT_SECONDS = 30
HINT = "install chromium and chromium-driver"
FLAGS = [
    "--headless",
    "--no-sandbox",  # Chromium refuses to run as root with it
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--no-proxy-server",
    "--window-size=1280,1600",
    # Its own errands go to other hosts.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Browser:
    """A browser with a log of the requests that it sends."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        """Go to a page, forgetting what was asked for before."""
        self.log("performance")
        self.log("browser")
        self.driver.get(url)

    def log(self, kind: str) -> list[dict[str, Any]]:
        """Return what has come to a log since the last look."""
        entries: list[dict[str, Any]] = self.driver.get_log(kind)  # type: ignore[no-untyped-call]
        return entries

    def see(self, css: str) -> WebElement:
        """Wait for something on the page."""
        return WebDriverWait(self.driver, WAIT_SECONDS).until(
            expected.visibility_of_element_located((By.CSS_SELECTOR, css))
        )

    def click(self, css: str) -> None:
        """Wait for something on the page, and click it."""
        element = self.see(css)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        WebDriverWait(self.driver, WAIT_SECONDS).until(expected.element_to_be_clickable(element)).click()

    def type(self, css: str, text: str) -> None:
        """Wait for a field, and type into it."""
        self.see(css).send_keys(text)

    def asked_hosts(self) -> set[str]:
        """Return every host and port that the page asked for something."""
        events = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        urls = [
            urlsplit(event["params"]["request"]["url"])
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return {url.netloc for url in urls if url.scheme in {"http", "https", "ws", "wss"}}

    def stored(self) -> dict[str, str]:
        """Return what the page has stored in the browser, for every later page of this origin."""
        script = "return {...localStorage, ...sessionStorage}"
        values: dict[str, str] = self.driver.execute_script(script)
        return values | {cookie["name"]: cookie["value"] for cookie in self.driver.get_cookies()}

    def complaints(self) -> list[str]:
        """Return the errors on the page's console."""
        return [entry["message"] for entry in self.log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    chromium, driver_program = (find(name, hint=HINT) for name in ("chromium", "chromedriver"))
    options = ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = Chrome(options, ChromeService(driver_program))
    try:
        yield Browser(driver)
    finally:
        driver.quit()


@pytest.mark.parametrize(
    ("page", "content"),
    [("/docs", "[data-path='/tasks/{task_id}/complete']"), ("/redoc", "[data-section-id='tag/tasks']")],
)
def test_a_page_shows_the_routes_and_asks_nobody_else_for_anything(
    browser: Browser, service: Service, page: str, content: str
) -> None:
    browser.open(service.url + page)
    browser.see(content)
    assert browser.asked_hosts() == {urlsplit(service.url).netloc}
    assert browser.complaints() == []


def authorize(browser: Browser, service: Service, account: Account) -> None:
    """Sign in at Authorize, by the OAuth 2.0 password flow."""
    browser.open(f"{service.url}/docs")
    browser.click(".auth-wrapper .authorize")
    browser.type("#oauth_username", account.email)
    browser.type("#oauth_password", PASSWORD)
    browser.click(".auth-container .authorize")
    browser.see("[aria-label='Remove authorization']")
    browser.click(".auth-container .btn-done")


def test_a_password_typed_at_authorize_is_not_stored_in_the_browser(
    browser: Browser, service: Service, ada: Account
) -> None:
    authorize(browser, service, ada)
    assert browser.stored() == {}
    browser.driver.refresh()
    browser.see(".auth-wrapper .authorize.unlocked")
    assert browser.stored() == {}


def test_whoever_signs_in_at_authorize_can_try_the_routes(
    browser: Browser, service: Service, ada: Account
) -> None:
    """Try it out creates a task."""
    authorize(browser, service, ada)
    browser.click(".opblock-post [data-path='/tasks']")
    browser.click(".opblock-post .try-out__btn")
    browser.click(".opblock-post .execute")
    assert browser.see(".live-responses-table tbody .response-col_status").text == "201"
    assert [task["title"] for task in ada.client.get("/tasks").json()] == ["Buy milk"]
    assert browser.asked_hosts() == {urlsplit(service.url).netloc}
    assert browser.complaints() == []
