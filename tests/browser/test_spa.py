"""The JavaScript client in a page of another origin: sign-in, tasks, pages of a list, and errors."""

from typing import Any

import pytest

from tests.browser.browser import Browser
from tests.browser.page import ORIGIN, Run
from tests.service import PASSWORD, Service


def test_the_page_registers_signs_out_and_signs_in(run: Run, user: dict[str, Any]) -> None:
    assert run("return (await api('/auth/me')).json()") == user
    run("await signOut()")
    assert run("return api('/tasks')")["status"] == 401
    assert run("return signIn(args[0])", {"email": user["email"], "password": PASSWORD}) == user


@pytest.mark.usefixtures("user")
def test_the_page_creates_changes_and_deletes_tasks(run: Run) -> None:
    """Every method gets through the preflight, and `Location` can be read."""
    created, location = run("""
        const body = { title: 'Buy milk', description: 'ü' };
        const response = await api('/tasks', { method: 'POST', body });
        return [await response.json(), response.headers.get('Location')]""")
    assert (created["title"], location) == ("Buy milk", f"/tasks/{created['id']}")
    change = "return (await api(args[0], { method: args[1], body: args[2] })).json()"
    assert run(change, location, "PATCH", {"description": None})["description"] is None
    assert run(change, location, "PUT", {"title": "Buy oat milk"})["title"] == "Buy oat milk"
    assert run(change, f"{location}/complete", "PATCH", None)["completed"] is True
    assert run(change, f"{location}/complete", "PATCH", None)["completed"] is False
    assert run("return (await api(args[0], { method: 'DELETE' })).status", location) == 204
    assert run("return (await api('/tasks')).json()") == []


@pytest.mark.usefixtures("user")
def test_the_page_follows_links_through_all_pages(run: Run) -> None:
    """`Link` can be read across origins, and is relative to the service and not to the page."""
    titles = run("""
        for (const title of 'abcde') await api('/tasks', { method: 'POST', body: { title } });
        const found = [];
        for await (const tasks of pages('/tasks?limit=2&order=desc'))
          found.push(tasks.map((task) => task.title));
        return found""")
    assert titles == [["e", "d"], ["c", "b"], ["a"]]


def test_a_page_loaded_anew_refreshes_once_by_the_cookie(
    run: Run, user: dict[str, Any], browser: Browser, service: Service
) -> None:
    """Concurrent requests share the refresh. No script of the page can read a token."""
    browser.driver.refresh()
    statuses = run("return Promise.all([1, 2, 3, 4, 5].map(async () => (await api('/tasks')).status))")
    assert statuses == [200] * 5
    assert len(service.lines(event="auth.refreshed", user_id=user["id"])) == 1
    assert run("return [document.cookie, Object.values(localStorage)]") == ["", [user["id"]]]


def test_tabs_refresh_in_turn_and_are_signed_out_together(
    run: Run, user: dict[str, Any], browser: Browser, service: Service
) -> None:
    first = browser.driver.current_window_handle
    browser.driver.switch_to.new_window("tab")
    browser.driver.get(ORIGIN)
    assert run("return (await api('/tasks')).status") == 200
    second = browser.driver.current_window_handle
    run("onSignedOut(() => (globalThis.isOut = true))")
    browser.driver.switch_to.window(first)
    assert run("return (await api('/tasks')).status") == 200
    run("await signOut()")
    browser.driver.switch_to.window(second)
    assert run("while (!globalThis.isOut) await new Promise((next) => setTimeout(next, 10)); return true")
    browser.driver.close()
    browser.driver.switch_to.window(first)
    assert not service.lines(event="auth.refreshed", user_id=user["id"], within_grace=True)


def test_a_session_that_ended_elsewhere_signs_the_page_out(
    run: Run, user: dict[str, Any], service: Service
) -> None:
    credentials = {"email": user["email"], "password": PASSWORD}
    elsewhere = service.client().post("/auth/login", json=credentials).json()["access_token"]
    assert service.client(elsewhere).delete("/auth/sessions").status_code == 204
    run("onSignedOut(() => (globalThis.isOut = true))")
    assert run("return api('/tasks')")["code"] == "invalid_refresh_token"
    assert run("return globalThis.isOut") is True


@pytest.mark.usefixtures("user")
def test_the_page_reads_every_error_across_origins(run: Run, service: Service) -> None:
    """The page can read the bodies of 400, 401, 403, 404 and of errors before routing."""
    foreign = service.register().create()["id"]
    calls = {
        "api('/tasks', { method: 'POST', body: { title: '' } })": (400, "validation_error"),
        "signIn({ email: 'nobody@example.com', password: 'wrong password' })": (401, "invalid_credentials"),
        f"api('/tasks/{foreign}')": (403, "task_forbidden"),
        "api('/api/somebody-else/tasks')": (403, "wrong_user"),
        f"api('/tasks/{2**62}')": (404, "task_not_found"),
        "api('/nothing')": (404, "not_found"),
        "api('/tasks', { method: 'DELETE' })": (405, "method_not_allowed"),
        "api('/tasks', { method: 'POST', body: { title: 'x'.repeat(70000) } })": (413, "content_too_large"),
    }
    for call, (status, code) in calls.items():
        error = run(f"return {call}")
        assert (error["thrown"], error["status"], error["code"]) == ("ApiError", status, code), call
        assert error["message"]
        assert error["requestId"]
    invalid = run("return api('/tasks', { method: 'POST', body: { title: '' } })")
    assert [problem["field"] for problem in invalid["fields"]] == ["title"]


def test_a_page_without_a_token_reads_its_401(run: Run) -> None:
    error = run("return api('/tasks')")
    assert (error["status"], error["code"]) == (401, "not_authenticated")


@pytest.mark.usefixtures("page")
def test_a_page_of_another_origin_reads_nothing(browser: Browser, service: Service) -> None:
    """The same page under another name of this machine is not one of `CORS_ORIGINS`."""
    browser.driver.get("http://127.0.0.1:3000")
    outcome = browser.driver.execute_async_script(
        "fetch(arguments[0]).then((r) => r.text(), (error) => error.name).then(arguments[1])",
        f"{service.url}/health",
    )
    assert outcome == "TypeError"
