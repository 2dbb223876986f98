"""`/docs` and `/redoc` in headless Chromium: no foreign asset, nothing stored, Authorize and Try it out."""

from collections.abc import Callable
from urllib.parse import urlsplit

import pytest

from tests.browser.browser import Browser
from tests.service import PASSWORD, Account, Service


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
    form = ".auth-container:has(#oauth_username)"
    browser.open(f"{service.url}/docs")
    browser.click(".auth-wrapper .authorize")
    browser.type("#oauth_username", account.email)
    browser.type("#oauth_password", PASSWORD)
    browser.click(f"{form} .authorize")
    browser.see("[aria-label='Remove authorization']")
    browser.click(".btn-done")


def paste(browser: Browser, service: Service, account: Account) -> None:
    """Paste an access token at Authorize."""
    form = ".auth-container:has(#auth-bearer-value)"
    browser.open(f"{service.url}/docs")
    browser.click(".auth-wrapper .authorize")
    browser.type("#auth-bearer-value", account.tokens["access_token"])
    browser.click(f"{form} .authorize")
    browser.see("[aria-label='Remove authorization']")
    browser.click(".btn-done")


def test_a_password_typed_at_authorize_is_not_stored_in_the_browser(
    browser: Browser, service: Service, ada: Account
) -> None:
    authorize(browser, service, ada)
    assert browser.stored() == {}
    browser.driver.refresh()
    browser.see(".auth-wrapper .authorize.unlocked")
    assert browser.stored() == {}


@pytest.mark.parametrize("way_in", [authorize, paste])
def test_whoever_signs_in_at_authorize_can_try_the_routes(
    browser: Browser, service: Service, ada: Account, way_in: Callable[[Browser, Service, Account], None]
) -> None:
    """Try it out creates a task."""
    way_in(browser, service, ada)
    browser.click(".opblock-post [data-path='/tasks']")
    browser.click(".opblock-post .try-out__btn")
    browser.click(".opblock-post .execute")
    assert browser.see(".live-responses-table tbody .response-col_status").text == "201"
    assert [task["title"] for task in ada.client.get("/tasks").json()] == ["Buy milk"]
    assert browser.asked_hosts() == {urlsplit(service.url).netloc}
    assert browser.complaints() == []
