"""The traffic of a soak: users who send every kind of request under both prefixes and check each answer."""

import time
from asyncio import Future, sleep
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count
from random import Random
from typing import Any

import httpx2

from tests.operations.soak.books import Books, Task
from tests.operations.soak.journal import Journal, UnansweredError
from tests.service import PASSWORD

MOST_TASKS = 30
PAGE = 7
VISITORS_TITLE = "A visitor's"
ANSWER_SECONDS = 20
"""A request without a response for these seconds has failed, during every fault."""

_numbers = count(1)


class User:
    """A user with an account, who sends one request at a time."""

    def __init__(self, url: str, journal: Journal, chance: Random) -> None:
        self.number = next(_numbers)
        self.email = f"soak{self.number}@example.com"
        self.books = Books("")
        self.others: list[User] = []
        self._journal, self._chance = journal, chance
        self._tokens: dict[str, Any] = {}
        self._is_signed_in = False
        # Each user has an address, because failed sign-ins of one must not count for another.
        address = f"10.9.{self.number // 250}.{self.number % 250}"
        self._client = httpx2.AsyncClient(
            base_url=url,
            headers={"X-Forwarded-For": address},
            timeout=ANSWER_SECONDS,
            trust_env=False,
            verify=False,  # plain HTTP: certificates would take most of the time of making it
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def send(self, method: str, path: str, *expected: str, **options: Any) -> httpx2.Response:
        """Return an answer that is one of `expected`; raises `UnansweredError`."""
        since = time.monotonic()
        try:
            response = await self._client.request(method, path, **options)
        except httpx2.TransportError as error:
            self._journal.judge_loss(f"{method} {path}", error, since)
            raise UnansweredError from error
        self._journal.judge(response, since, *expected)
        return response

    async def live(self, until: Future[None], pause: float) -> None:
        """Do random acts, on average `pause` seconds apart."""
        while not until.done():
            with suppress(UnansweredError):
                if not self._is_signed_in:
                    await self.sign_in()
                (act,) = self._chance.choices(*zip(*ACTS.items(), strict=True))
                await act(self)
            await sleep(self._chance.uniform(0, 2 * pause))

    # Signing in and out

    async def register(self) -> None:
        answer = await self.send("POST", "/auth/register", "201", json=self._credentials)
        self._take(answer.json())
        self.books = Books(self._tokens["user"]["id"])

    async def sign_in(self) -> None:
        if self._chance.random() < 0.5:
            answer = await self.send("POST", "/auth/login", "200", json=self._credentials)
        else:
            form = {"username": self.email, "password": PASSWORD, "grant_type": "password"}
            answer = await self.send("POST", "/auth/token", "200", data=form)
        self._take(answer.json())

    async def refresh(self) -> None:
        """Refresh, or sign in again if no response came, because the token may be spent."""
        self._is_signed_in = False
        spent = {"refresh_token": self._tokens["refresh_token"]}
        self._take((await self.send("POST", "/auth/refresh", "200", json=spent)).json())

    async def sign_out(self) -> None:
        self._is_signed_in = False
        await self.send("POST", "/auth/logout", "204")
        for path in (self._paths(), "/auth/me"):
            await self.send("GET", path, "401 token_revoked")

    async def end_another_session(self) -> None:
        here = self._tokens
        await self.sign_in()
        there, mine = self._client.headers["Authorization"], f"Bearer {here['access_token']}"
        self._take(here)
        sessions = (await self.send("GET", "/auth/sessions", "200")).json()
        if [session["current"] for session in sessions].count(True) != 1:
            self._journal.blame(f"not one current session: {sessions}")
        await self.send("DELETE", "/auth/sessions", "204")
        await self.send("GET", self._paths(), "401 token_revoked", headers={"Authorization": there})
        await self.send("GET", "/auth/me", "200", headers={"Authorization": mine})

    async def guess(self) -> None:
        wrong = {"email": self.email, "password": "a wrong password"}
        await self.send("POST", "/auth/login", "401 invalid_credentials", json=wrong)

    async def visit(self) -> None:
        """Register a new account, use it and delete it."""
        email = f"visitor{next(_numbers)}@example.com"
        credentials = {"email": email, "password": PASSWORD}
        tokens = (await self.send("POST", "/auth/register", "201", json=credentials)).json()
        as_visitor = {"headers": {"Authorization": f"Bearer {tokens['access_token']}"}}
        await self.send("POST", "/tasks", "201", json={"title": VISITORS_TITLE}, **as_visitor)
        await self.send("DELETE", "/auth/me", "204", json={"password": PASSWORD}, **as_visitor)
        await self.send("GET", "/tasks", "401 token_revoked", **as_visitor)

    @property
    def _credentials(self) -> dict[str, str]:
        return {"email": self.email, "password": PASSWORD}

    def _take(self, tokens: dict[str, Any]) -> None:
        self._tokens = self._tokens | tokens
        self._client.headers["Authorization"] = f"Bearer {tokens['access_token']}"
        self._is_signed_in = True

    # Tasks

    def _paths(self, task_id: int | None = None) -> str:
        """Return the address of all tasks or of one, on either surface."""
        tasks = self._chance.choice(("/tasks", f"/api/{self.books.user_id}/tasks"))
        return tasks if task_id is None else f"{tasks}/{task_id}"

    async def create(self) -> None:
        if len(self.books.tasks) >= MOST_TASKS:
            await self.delete()
            return
        sent: Task = {
            "title": f"Task {next(_numbers)} of user {self.number}",
            "description": self._chance.choice((None, "Zwei Liter 🥛", "x" * 1000)),
            "completed": self._chance.random() < 0.3,
        }
        with self.books.creating(sent):
            task = (await self.send("POST", self._paths(), "201", json=sent)).json()
        self.books.tasks[task["id"]] = task

    async def update(self) -> None:
        changes: Task = {"description": f"Changed {next(_numbers)}"}
        if self._chance.random() < 0.5:
            changes["completed"] = self._chance.random() < 0.5
        await self._write(self._chance.choice(("PUT", "PATCH")), "", changes)

    async def toggle(self) -> None:
        if self.books.tasks:
            task = self._some_task()
            await self._write("PATCH", "/complete", {"completed": not task["completed"]}, task)

    async def _write(self, method: str, suffix: str, changes: Task, task: Task | None = None) -> None:
        if not self.books.tasks:
            return
        task_id = (task or self._some_task())["id"]
        body = {} if suffix else {"json": changes}
        with self.books.writing(task_id, changes):
            answer = await self.send(method, self._paths(task_id) + suffix, "200", **body)
        before, after = self.books.tasks[task_id], answer.json()
        if after != before | changes | {"updated_at": after["updated_at"]}:
            self._journal.blame(f"{changes} made {after} of {before}")
        self.books.tasks[task_id] = after

    async def delete(self) -> None:
        if not self.books.tasks:
            return
        task_id = self._some_task()["id"]
        with self.books.writing(task_id, None):
            await self.send("DELETE", self._paths(task_id), "204")
        del self.books.tasks[task_id]
        await self.send("GET", self._paths(task_id), "404 task_not_found")

    async def read(self) -> None:
        if not self.books.tasks:
            return
        task = self._some_task()
        answer = await self.send("GET", self._paths(task["id"]), "200")
        if answer.json() != task:
            self._journal.blame(f"{answer.json()} is not as acknowledged: {task}")

    async def walk(self) -> None:
        """Go through all pages, and compare with the books."""
        found: list[Task] = []
        path: str | None = f"{self._paths()}?limit={PAGE}&sort={self._chance.choice(('created', 'title'))}"
        while path is not None:
            page = await self.send("GET", path, "200")
            found += page.json()
            path = page.links["next"]["url"] if "next" in page.links else None
        self.check(found)

    def check(self, found: list[Task]) -> None:
        """Compare the tasks found for this user with the books."""
        for problem in self.books.problems(found):
            self._journal.blame(f"user {self.number}: {problem}")

    def _some_task(self) -> Task:
        return self._chance.choice([*self.books.tasks.values()])

    # Refused requests

    async def reach_for_anothers(self) -> None:
        other = self._chance.choice(self.others)
        task_id = next(iter(other.books.tasks), None)
        if task_id is None:
            return
        gone = "404 task_not_found"  # or its owner has just deleted it
        method = self._chance.choice(("GET", "DELETE"))
        await self.send(method, f"/tasks/{task_id}", "403 task_forbidden", gone)
        await self.send(method, f"/api/{self.books.user_id}/tasks/{task_id}", gone)
        await self.send(method, f"/api/{other.books.user_id}/tasks/{task_id}", "403 wrong_user")

    async def blunder(self) -> None:
        """Send an invalid request."""
        own, scoped = "/tasks", f"/api/{self.books.user_id}/tasks"
        await self.send("POST", own, "400 validation_error", json={"title": ""})
        await self.send("POST", scoped, "422 validation_error", json={"title": 7})
        json = {"Content-Type": "application/json"}
        await self.send("POST", own, "400 malformed_json", content=b'{"title": ', headers=json)
        await self.send("POST", scoped, "415 unsupported_media_type", data={"title": "A form"})
        await self.send("GET", f"{own}/abc", "404 task_not_found")
        await self.send("GET", own, "401 invalid_token", headers={"Authorization": "Bearer nonsense"})
        await self.send("POST", "/health", "405 method_not_allowed")


ACTS: dict[Callable[[User], Awaitable[None]], int] = {
    User.create: 20,
    User.read: 16,
    User.walk: 12,
    User.update: 12,
    User.toggle: 12,
    User.delete: 8,
    User.reach_for_anothers: 4,
    User.refresh: 4,
    User.sign_out: 2,
    User.end_another_session: 2,
    User.guess: 2,
    User.visit: 2,
    User.blunder: 2,
}
"""The weight of each act, of about a hundred in total."""
