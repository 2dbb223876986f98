"""The pages that mailed links lead to, in headless Chromium."""

import re
from collections.abc import Callable
from urllib.parse import urljoin

import pytest

from tests.browser.browser import Browser
from tests.conftest import Postgres
from tests.service import PASSWORD, Account, Service

NEW_PASSWORD = "a new password of four words"


@pytest.fixture
def link(service: Service, database: Postgres, ada: Account) -> Callable[[str, str], str]:
    """Return the link of a mail to Ada, by its page and purpose."""

    def make(page: str, purpose: str) -> str:
        token = f"{purpose} of {ada.id}".replace(" ", "_")
        database.sql("UPDATE users SET pending_email = email WHERE id = $1", ada.id)
        database.sql(
            "INSERT INTO mail_tokens (digest, user_id, purpose, email, expires_at)"
            " VALUES (sha256($1), $2, $3, $4, now() + interval '1 hour')",
            token.encode(),
            ada.id,
            purpose,
            ada.email,
        )
        return f"{service.url}/{page}#token={token}"

    return make


def said(browser: Browser, kind: str) -> str:
    """Wait for what the page says: `done` or `error`."""
    return browser.see(f"#message[data-kind={kind}]").text


def test_a_new_password_is_saved_by_a_press_and_the_token_leaves_the_address(
    browser: Browser, service: Service, ada: Account, link: Callable[[str, str], str]
) -> None:
    browser.open(link("reset-password", "reset"))
    field = browser.see("#password")
    assert browser.driver.current_url == f"{service.url}/reset-password"
    assert (field.get_attribute("type"), field.get_attribute("autocomplete")) == ("password", "new-password")
    browser.type("#password", "short")
    browser.click("button")
    assert said(browser, "error") == "Passwords have at least 8 characters"
    assert browser.driver.switch_to.active_element == field
    field.clear()
    browser.type("#password", NEW_PASSWORD)
    browser.click("button")
    assert said(browser, "done").startswith("Your password is changed")
    login = {"email": ada.email, "password": NEW_PASSWORD}
    assert service.client().post("/auth/login", json=login).status_code == 200
    assert browser.asked_hosts() == {service.url.removeprefix("http://")}


@pytest.mark.parametrize(
    ("at", "words"),
    [
        (("verify-email", "verify"), "Your email is verified"),
        (("confirm-email", "change"), "Your email is changed"),
    ],
)
def test_a_page_acts_on_a_press_alone_and_says_what_happened(
    browser: Browser, ada: Account, link: Callable[[str, str], str], at: tuple[str, str], words: str
) -> None:
    browser.open(link(*at))
    browser.see("button")
    assert ada.client.get("/auth/me").json()["email_verified"] is False
    browser.driver.switch_to.active_element.send_keys("\t\n")  # by the keyboard
    assert said(browser, "done").startswith(words)
    assert browser.complaints() == []
    login = {"email": ada.email, "password": PASSWORD}
    tokens = ada.client.post("/auth/login", json=login).json()
    assert tokens["user"]["email_verified"] is True


def test_a_link_that_is_not_valid_or_not_whole_is_said_to_be(browser: Browser, service: Service) -> None:
    browser.open(f"{service.url}/verify-email#token=none-of-ours")
    browser.click("button")
    assert said(browser, "error") == "This link is not valid any more, ask for a new one"
    assert not browser.driver.find_elements("css selector", "form:not([hidden])")
    browser.open(f"{service.url}/confirm-email")
    assert said(browser, "error").startswith("This link is not complete")
    assert not browser.driver.find_elements("css selector", "form:not([hidden])")


def test_a_second_link_in_the_same_tab_counts_and_its_token_leaves_the_address(
    browser: Browser, service: Service, ada: Account, link: Callable[[str, str], str]
) -> None:
    browser.open(f"{service.url}/verify-email#token=none-of-ours")
    browser.click("button")
    assert said(browser, "error").startswith("This link is not valid")
    browser.open(link("verify-email", "verify"))
    assert browser.driver.current_url == f"{service.url}/verify-email"
    browser.click("button")
    browser.see("#message[data-kind=done]")
    assert ada.client.get("/auth/me").json()["email_verified"] is True


def test_the_page_tells_the_length_that_a_password_must_have(new_service: Callable[..., Service]) -> None:
    page = new_service(PASSWORD_MIN_LENGTH="15").client().get("/reset-password")
    assert "At least 15 characters" in page.text


def test_behind_a_proxy_that_strips_the_root_path_a_page_finds_what_is_its_own(
    new_service: Callable[..., Service],
) -> None:
    client, outside = new_service(ROOT_PATH="/prefix").client(), "http://proxy/prefix"
    for path in ("/reset-password", "/verify-email", "/confirm-email"):
        addresses = re.findall(r'(?:href|src|data-action)="([^"]+)"', client.get(path).text)
        urls = [urljoin(outside + path, address) for address in addresses]
        assert [url.startswith(f"{outside}/") for url in urls] == [True] * 3, urls
        answers = [client.get(url.removeprefix(outside)) for url in urls]
        assert [answer.status_code for answer in answers] == [200, 200, 405]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_fits_a_narrow_window_in_both_color_schemes(
    browser: Browser, service: Service, scheme: str
) -> None:
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    size = {"width": 320, "height": 640, "deviceScaleFactor": 1, "mobile": False}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.open(f"{service.url}/reset-password#token=any")
    browser.see("button")
    assert browser.driver.execute_script("return document.documentElement.scrollWidth") == 320
    colors = (
        "const { color, backgroundColor } = getComputedStyle(document.body); return [color, backgroundColor]"
    )
    text, ground = [
        sum(map(int, re.findall(r"\d+", color)[:3])) for color in browser.driver.execute_script(colors)
    ]
    assert (text < ground) == (scheme == "light")
