"""The README's pages, run unchanged in Chromium."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from tests.browser.browser import Browser
from tests.browser.client_types import HERE
from tests.browser.page import ORIGIN, local, new_email, serving
from tests.npm import installed
from tests.readme import block
from tests.service import PASSWORD, START_SECONDS, Service

API = "http://localhost:8000"
PROBLEM, TASK = "p:not(:empty)", "li"


def keep_a_task(browser: Browser) -> None:
    """Register in the page, add a task and complete it, load the page anew, and sign out."""
    browser.open(ORIGIN)
    browser.driver.delete_all_cookies()
    browser.driver.execute_script("localStorage.clear()")
    browser.see(PROBLEM)  # nobody is signed in
    browser.type("[name=email]", new_email())
    browser.type("[name=password]", PASSWORD)
    browser.click("form button:nth-of-type(2)")
    browser.wait_until_gone(PROBLEM)
    browser.type("[name=title]", "Buy milk")
    browser.click("form:has([name=title]) button")
    browser.read(TASK, "○ Buy milk")
    browser.click(TASK)
    browser.read(TASK, "✓ Buy milk")
    browser.driver.refresh()
    browser.read(TASK, "✓ Buy milk")
    browser.click(":not(form) > button")
    browser.wait_until_gone(TASK)


def test_the_page_signs_in_and_keeps_tasks(browser: Browser, service: Service) -> None:
    page = block("<!doctype html>", "html")
    assert len(page.splitlines()) <= 30
    with serving({"/": page.replace(API, local(service.url))}):
        keep_a_task(browser)


def test_the_same_with_vite_and_react(browser: Browser, service: Service, tmp_path: Path) -> None:
    pages = {"index.html": ("<!-- index.html -->", "html"), "src/app.jsx": ("// src/app.jsx", "jsx")}
    for name, (first_line, language) in pages.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(block(first_line, language).replace(API, local(service.url)))
    install, *commands = block("npm install vite react react-dom", "bash").splitlines()
    link_packages(install.split()[2:], tmp_path)
    with shell("\n".join(commands).replace(API, local(service.url)), tmp_path):
        keep_a_task(browser)


def link_packages(names: list[str], directory: Path) -> None:
    """Do what `npm install` does, with the versions of the lock file."""
    packages, modules = installed(HERE), directory / "node_modules"
    modules.mkdir()
    assert {name for name in names if (packages / name).is_dir()} == set(names)
    for package in packages.iterdir():
        (modules / package.name).symlink_to(package)


@contextmanager
def shell(commands: str, directory: Path) -> Iterator[None]:
    """Run commands of which the last one serves the page, until the block ends."""
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-e", "-c", commands],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for_page(process, log)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(START_SECONDS)


def wait_for_page(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the page is served; fails with what was printed when it is not."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx2.get(ORIGIN, trust_env=False, verify=False).raise_for_status()
        except httpx2.HTTPError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"the page is not served:\n{log.read_text()}")
