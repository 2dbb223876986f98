"""`/docs` and `/redoc` in headless Chromium: no foreign asset, nothing stored, Authorize and Try it out."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.browser.browser import Browser
from tests.operations.haproxy import balanced
from tests.service import PASSWORD, Account, Service

DONE = ".auth-container:has([aria-label='Remove authorization']) .btn-done"
"""The button that closes the dialog, in the section of the completed sign-in, whose fields are gone."""


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
    browser.click(DONE)


def paste(browser: Browser, service: Service, account: Account) -> None:
    """Paste an access token at Authorize."""
    form = ".auth-container:has(#auth-bearer-value)"
    browser.open(f"{service.url}/docs")
    browser.click(".auth-wrapper .authorize")
    browser.type("#auth-bearer-value", account.tokens["access_token"])
    browser.click(f"{form} .authorize")
    browser.click(DONE)


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
    try_out(browser)
    assert [task["title"] for task in ada.client.get("/tasks").json()] == ["Buy milk"]
    assert browser.asked_hosts() == {urlsplit(service.url).netloc}
    assert browser.complaints() == []


def test_authorize_and_try_it_out_work_behind_a_proxy_that_strips_the_root_path(
    browser: Browser, new_service: Callable[..., Service], tmp_path: Path
) -> None:
    service = new_service(ROOT_PATH="/prefix")
    ada = service.register()
    with balanced([service], tmp_path) as proxy:
        authorize(browser, replace(proxy, url=f"{proxy.url}/prefix"), ada)
        try_out(browser)
        assert [task["title"] for task in ada.client.get("/tasks").json()] == ["Buy milk"]
        asked = asked_urls(browser)
        assert f"{proxy.url}/prefix/auth/token" in asked
        assert [url for url in asked if not url.startswith(f"{proxy.url}/prefix/")] == []
        assert browser.complaints() == []


def asked_urls(browser: Browser) -> list[str]:
    """Return every address that the page requested, without URLs that contain their data."""
    events = [json.loads(entry["message"])["message"] for entry in browser.log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [one["request"]["url"] for one in sent if not one["request"]["url"].startswith("data:")]


def try_out(browser: Browser) -> None:
    """Create a task by the example of the document."""
    browser.click(".opblock-post [data-path='/tasks']")
    browser.click(".opblock-post .try-out__btn")
    browser.click(".opblock-post .execute")
    assert browser.see(".live-responses-table tbody .response-col_status").text == "201"
