"""A headless Chromium with a log of the requests that it sends."""

import json
from typing import Any
from urllib.parse import urlsplit

from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support import expected_conditions as expected
from selenium.webdriver.support.ui import WebDriverWait

WAIT_SECONDS = 30
FLAGS = [
    "--headless",
    "--no-sandbox",  # Chromium refuses to run as root with it
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--no-proxy-server",
    "--window-size=1280,1600",
    # Chromium's own background requests go to other hosts.
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
        """Return the entries of a log since the last call."""
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

    def read(self, css: str, text: str) -> None:
        """Wait for something on the page to say so."""
        said = expected.text_to_be_present_in_element((By.CSS_SELECTOR, css), text)
        WebDriverWait(self.driver, WAIT_SECONDS).until(said)

    def wait_until_gone(self, css: str) -> None:
        """Wait until nothing on the page is like it."""
        WebDriverWait(self.driver, WAIT_SECONDS).until_not(
            lambda driver: driver.find_elements(By.CSS_SELECTOR, css)
        )

    def asked_hosts(self) -> set[str]:
        """Return every host and port that the page sent a request to."""
        events = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        urls = [
            urlsplit(event["params"]["request"]["url"])
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return {url.netloc for url in urls if url.scheme in {"http", "https", "ws", "wss"}}

    def stored(self) -> dict[str, str]:
        """Return the page's stored data, which every later page of this origin can read."""
        script = "return {...localStorage, ...sessionStorage}"
        values: dict[str, str] = self.driver.execute_script(script)
        return values | {cookie["name"]: cookie["value"] for cookie in self.driver.get_cookies()}

    def complaints(self) -> list[str]:
        """Return the errors on the page's console."""
        return [entry["message"] for entry in self.log("browser") if entry["level"] == "SEVERE"]
