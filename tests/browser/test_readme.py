"""The README's pages, in a real browser, as they stand there."""

import time

import pytest

from tests.browser.browser import Browser
from tests.browser.page import ORIGIN, local, serving
from tests.readme import block
from tests.service import PASSWORD, Service

API = "http://localhost:8000"


@pytest.mark.usefixtures("run")
def test_the_page_of_the_readme_signs_in_and_keeps_tasks(browser: Browser) -> None:
    browser.driver.get(f"{ORIGIN}/readme")
    email = f"readme{time.monotonic_ns()}@example.com"
    script = """
    const done = arguments[arguments.length - 1], [email, password] = arguments;
    const until = async (test) => { while (!test()) await new Promise((next) => setTimeout(next, 20)); };
    (async () => {
      const form = document.getElementById("sign-in"), add = document.getElementById("add");
      await until(() => form.onsubmit && document.getElementById("problem").textContent);
      form.email.value = email; form.password.value = password;
      form.requestSubmit(form.querySelectorAll("button")[1]);
      await until(() => !document.getElementById("problem").textContent);
      add.elements.title.value = "Buy milk"; add.requestSubmit();
      await until(() => document.querySelector("li"));
      document.querySelector("li").click();
      await until(() => document.querySelector("li").textContent.startsWith("✓"));
      return document.querySelector("li").textContent;
    })().then(done, (error) => done(String(error)));"""
    assert browser.driver.execute_async_script(script, email, PASSWORD) == "✓ Buy milk"
