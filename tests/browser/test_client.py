"""The JavaScript client with faults of the network, in several tabs, and behind proxies."""

import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.browser.browser import Browser
from tests.browser.page import ORIGIN, Run, import_client, local, new_email, runner
from tests.conftest import Postgres, holding
from tests.operations.haproxy import balanced, encrypted
from tests.operations.proxy import Loss, Proxy
from tests.service import JWT_SECRET, PASSWORD, Service, free_port

REFRESHES = "LOCK TABLE refresh_tokens"
START = "globalThis.outcome = app.api('/tasks').then((r) => r.status, (error) => error.code)"
WAIT_FOR_LOCKS = """
while (true) {
  const { held, pending } = await navigator.locks.query();
  if (held.length === 1 && pending.length === args[0]) return true;
  await new Promise((next) => setTimeout(next, 10));
}"""


@pytest.fixture
def second_tab(browser: Browser) -> Iterator[Callable[[], None]]:
    """Open a second tab; calling this goes from one to the other."""
    first = browser.driver.current_window_handle
    browser.driver.switch_to.new_window("tab")
    tabs = [first, browser.driver.current_window_handle]
    browser.driver.get(ORIGIN)
    browser.driver.switch_to.window(first)

    def go_to_other() -> None:
        (other,) = (tab for tab in tabs if tab != browser.driver.current_window_handle)
        browser.driver.switch_to.window(other)

    yield go_to_other
    browser.driver.switch_to.window(tabs[1])
    browser.driver.close()
    browser.driver.switch_to.window(first)


def test_one_tab_refreshes_at_a_time(  # noqa: PLR0917  # by name
    run: Run,
    user: dict[str, Any],
    browser: Browser,
    second_tab: Callable[[], None],
    service: Service,
    database: Postgres,
) -> None:
    """Each tab spends the token that the tab before left in the cookie, so no tab needs the grace."""
    browser.driver.refresh()
    with holding(database, REFRESHES):
        for _ in range(2):
            run(f"{START}; return null")
            second_tab()
        assert run(WAIT_FOR_LOCKS, 1)
    for _ in range(2):
        assert run("return outcome") == 200
        second_tab()
    refreshed = service.lines(event="auth.refreshed", user_id=user["id"])
    assert [line.get("within_grace", False) for line in refreshed] == [False, False]


def test_a_tab_does_not_become_the_user_who_signs_in_in_another(
    run: Run, user: dict[str, Any], browser: Browser, second_tab: Callable[[], None]
) -> None:
    listen = "globalThis.told = []; onSignedOut(() => globalThis.told.push(document.title))"
    run(listen)
    second_tab()
    same = {"email": user["email"], "password": PASSWORD}
    run("await signIn(args[0])", same)
    other = run("return register(args[0])", {**same, "email": new_email()})
    second_tab()
    assert (
        run("while (!told.length) await new Promise((next) => setTimeout(next, 10)); return told.length") == 1
    )
    second_tab()
    browser.driver.refresh()
    assert run("return (await api('/auth/me')).json()") == other


@pytest.mark.usefixtures("user")
def test_a_session_that_ends_elsewhere_is_told_once(run: Run, service: Service, user: dict[str, Any]) -> None:
    credentials = {"email": user["email"], "password": PASSWORD}
    elsewhere = service.client().post("/auth/login", json=credentials).json()["access_token"]
    service.client(elsewhere).delete("/auth/sessions")
    told = run("""
        const told = [];
        onSignedOut(() => told.push("stopped"))();
        onSignedOut(() => told.push("out"));
        await Promise.allSettled([1, 2, 3].map(() => api('/tasks')));
        await signOut().catch(() => null);
        return told""")
    assert told == ["out"]


def test_an_abort_reaches_every_request(run: Run, user: dict[str, Any]) -> None:
    credentials = {"email": user["email"], "password": PASSWORD}
    calls = [
        "register({ email: 'aborted@example.com', password: 'correct horse battery' }, gone)",
        "signIn(args[0], gone)",
        "api('/tasks', gone)",
        "pages('/tasks', gone).next()",
        "create({ title: 'Never sent' }, gone)",
        "signOut(gone)",
    ]
    for call in calls:
        error = run(f"const gone = {{ signal: AbortSignal.abort() }}; return {call}", credentials)
        assert error["name"] == "AbortError", call
    assert run("return (await api('/tasks')).json()") == []


@pytest.mark.usefixtures("user")
def test_an_abort_ends_the_wait_for_an_answer_and_for_a_refresh(
    run: Run, browser: Browser, database: Postgres
) -> None:
    abort = """
        const controller = new AbortController();
        setTimeout(() => controller.abort(), 200);
        return api('/auth/me', { signal: controller.signal })"""
    with holding(database, "LOCK TABLE users"):
        assert run(abort)["name"] == "AbortError"
    browser.driver.refresh()
    with holding(database, REFRESHES):
        assert run(abort)["name"] == "AbortError"
        assert run(WAIT_FOR_LOCKS, 0)  # others may wait for that refresh: it goes on
    assert run("return (await api('/tasks')).status") == 200


@pytest.mark.usefixtures("user")
def test_an_address_with_and_without_a_slash_is_one_service(run: Run, service: Service) -> None:
    copied = """
        globalThis.TASKS_API = args[0];
        const copy = await import(`${args[0]}/client/tasks-api.js?copied`);
        return (await copy.api('/tasks')).status"""
    assert run(copied, local(service.url)) == 200


def test_the_client_works_behind_a_proxy_that_strips_the_root_path(
    run: Run, browser: Browser, new_service: Callable[..., Service], tmp_path: Path
) -> None:
    with balanced([new_service(ROOT_PATH="/prefix")], tmp_path) as proxy:
        import_client(browser, f"{proxy.url}/prefix")
        run("await register({ email: args[0], password: args[1] })", new_email(), PASSWORD)
        titles = run("""
            const found = [];
            for (const title of ['a', 'b', 'c']) await create({ title });
            for await (const page of pages('/tasks?limit=2')) found.push(...page.map((task) => task.title));
            return found""")
    assert titles == ["a", "b", "c"]


@pytest.mark.parametrize("loss", [Loss.CUT_BEFORE, Loss.CUT_AFTER, Loss.CUT_WITHIN])
def test_a_task_whose_answer_was_lost_is_created_once(
    run: Run, browser: Browser, service: Service, loss: Loss
) -> None:
    with closing(Proxy(("127.0.0.1", urlsplit(service.url).port or 80))) as network:
        import_client(browser, f"http://127.0.0.1:{network.port}")
        run("await register({ email: args[0], password: args[1] })", new_email(), PASSWORD)
        network.lose(b'"Buy milk"', loss)
        created = run("return create({ title: 'Buy milk' })")
        assert network.lost.is_set()
        assert run("return (await api('/tasks')).json()") == [created]


@pytest.mark.usefixtures("user")
def test_a_key_of_the_page_repeats_an_earlier_call(run: Run) -> None:
    first, again, other = run("""
        const milk = { title: 'Buy milk' };
        return [await create(milk, { key: 'k1' }), await create(milk, { key: 'k1' }), await create(milk)]""")
    assert (first == again, first["id"] == other["id"]) == (True, False)
    error = run("return create({ title: 'Buy bread' }, { key: 'k1' })")
    assert (error["status"], error["code"]) == (409, "idempotency_key_reused")


@pytest.mark.usefixtures("page")
def test_a_service_that_is_gone_is_offline_and_a_new_secret_costs_one_refresh(
    run: Run, browser: Browser, new_service: Callable[..., Service], new_database: Callable[[], Postgres]
) -> None:
    settings = {"PORT": str(free_port()), "DATABASE_URL": new_database().url}
    first = new_service(**settings)
    import_client(browser, first.url)
    run("await register({ email: 'ada@example.com', password: args[0] })", PASSWORD)
    run("onSignedOut(() => (globalThis.isOut = true))")
    first.stop(signal.SIGKILL)
    error = run("return api('/tasks').catch((error) => ({ ...error, isOffline: error.isOffline }))")
    assert (error["status"], error["code"], error["isOffline"]) == (0, "offline", True)
    second = new_service(**settings, JWT_SECRET=f"new {JWT_SECRET}")
    requests = "return Promise.all([1, 2, 3].map(async () => (await api('/tasks')).status))"
    assert run(requests) == [200] * 3
    assert len(second.lines(event="auth.refreshed")) == 1
    refused = run("return api('/nothing').catch((error) => ({ ...error, isOffline: error.isOffline }))")
    assert (refused["status"], refused["code"], refused["isOffline"]) == (404, "not_found", False)
    assert run("return globalThis.isOut ?? false") is False


def test_over_tls_the_cookie_is_of_the_host_and_secure(
    browser: Browser, new_service: Callable[..., Service], tmp_path: Path
) -> None:
    """Chromium refuses a `__Host-` cookie without `Secure` or with another path than `/`."""
    service = new_service(FORWARDED_ALLOW_IPS="127.0.0.1")
    with encrypted(service, tmp_path) as url:
        browser.driver.get(f"{url}/docs")
        browser.driver.delete_all_cookies()
        import_client(browser, url)
        run = runner(browser)
        run("await register({ email: args[0], password: args[1] })", new_email(), PASSWORD)
        (cookie,) = browser.driver.get_cookies()
        kept = {name: cookie[name] for name in ("name", "path", "secure", "httpOnly", "sameSite")}
        assert kept == {
            "name": "__Host-refresh", "path": "/", "secure": True, "httpOnly": True, "sameSite": "Strict",
        }  # fmt: skip
        browser.driver.refresh()
        import_client(browser, url)
        assert run("return [(await api('/tasks')).status, document.cookie]") == [200, ""]
        run("await signOut()")
        assert browser.driver.get_cookies() == []
