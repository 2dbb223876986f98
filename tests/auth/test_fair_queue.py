"""`Turns`, the queue before the hash threads: an address with many jobs delays no other address."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import pytest

from backend.auth.accounts.fair_queue import Turns
from backend.web.errors import ServiceUnavailableError
from tests.waiting import until_async

LIMIT = 60


@contextmanager
def turns(threads: int = 1) -> Iterator[Turns]:
    with ThreadPoolExecutor(threads) as executor:
        yield Turns(executor, threads=threads, limit=LIMIT)


class Work:
    """Work that blocks until it may end, and the addresses of the work in the order of its start."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.may_end = threading.Event()

    def __call__(self, address: str) -> str:
        self.began.append(address)
        assert self.may_end.wait(30)
        return address


def begin(line: Turns, work: Work, address: str, count: int) -> list[asyncio.Future[str]]:
    return [asyncio.ensure_future(line.run(address, partial(work, address))) for _ in range(count)]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("addresses", [1, 4])
def test_an_address_waits_for_no_more_than_one_of_each_other_on_a_thread(
    threads: int, addresses: int
) -> None:
    async def race(line: Turns) -> list[str]:
        work = Work()
        names = [f"busy {number}" for number in range(addresses)] * (48 // addresses)
        waiting = [task for name in names for task in begin(line, work, name, 1)]
        await until_async(lambda: len(work.began) == threads)
        waiting += begin(line, work, "late", 1)
        await asyncio.sleep(0)
        work.may_end.set()
        await asyncio.gather(*waiting)
        return work.began[: work.began.index("late")]

    with turns(threads) as line:
        waited_for = asyncio.run(race(line))
    assert all(waited_for.count(address) <= threads for address in waited_for), waited_for


def test_addresses_that_wait_are_let_in_one_after_the_other() -> None:
    async def race(line: Turns) -> list[str]:
        work = Work()
        waiting = [task for address in "abc" for task in begin(line, work, address, 4)]
        work.may_end.set()
        await asyncio.gather(*waiting)
        return work.began

    with turns() as line:
        assert "".join(asyncio.run(race(line))) == "abcabcabcabc"


def test_one_address_that_fills_the_line_leaves_room_for_others() -> None:
    """A new address replaces the newest waiting job of the address that has the most."""

    async def fill(line: Turns) -> None:
        work = Work()
        much = begin(line, work, "busy", LIMIT)
        await asyncio.sleep(0)
        (refused,) = begin(line, work, "busy", 1)
        with pytest.raises(ServiceUnavailableError):
            await refused
        others = [task for number in range(9) for task in begin(line, work, f"other {number}", 1)]
        await asyncio.sleep(0)
        work.may_end.set()
        answers = await asyncio.gather(*much, *others, return_exceptions=True)
        lost = [type(answer) for answer in answers if not isinstance(answer, str)]
        assert lost == [ServiceUnavailableError] * len(others)
        assert not any(task.exception() for task in others)
        assert [bool(task.exception()) for task in much] == [False] * (LIMIT - 9) + [True] * 9
        assert line.count == 0

    with turns() as line:
        asyncio.run(fill(line))


def test_in_a_line_that_is_shared_evenly_a_newcomer_is_refused() -> None:
    async def fill(line: Turns) -> None:
        work = Work()
        each = [task for number in range(LIMIT) for task in begin(line, work, str(number), 1)]
        await asyncio.sleep(0)
        (refused,) = begin(line, work, "one more", 1)
        with pytest.raises(ServiceUnavailableError):
            await refused
        work.may_end.set()
        await asyncio.gather(*each)

    with turns() as line:
        asyncio.run(fill(line))


def test_a_request_that_is_cancelled_gives_up_its_place() -> None:
    async def cancel(line: Turns) -> None:
        work = Work()
        tasks = begin(line, work, "busy", LIMIT)
        await until_async(lambda: len(work.began) == 1)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert line.count == 0
        more = begin(line, work, "busy", LIMIT)
        await asyncio.sleep(0)
        assert line.count == LIMIT
        work.may_end.set()
        assert await asyncio.gather(*more) == ["busy"] * LIMIT
        (at_once,) = begin(line, work, "busy", 1)
        await asyncio.sleep(0)
        at_once.cancel()
        await until_async(lambda: line.count == 0)

    with turns() as line:
        asyncio.run(cancel(line))


def test_a_newcomer_gets_the_place_of_a_request_that_was_just_cancelled() -> None:
    async def cancel(line: Turns) -> None:
        work = Work()
        *tasks, newest = begin(line, work, "busy", LIMIT)
        await asyncio.sleep(0)
        newest.cancel()
        (newcomer,) = begin(line, work, "new", 1)
        await asyncio.sleep(0)
        work.may_end.set()
        assert await asyncio.gather(*tasks, newcomer) == ["busy"] * (LIMIT - 1) + ["new"]

    with turns() as line:
        asyncio.run(cancel(line))


def test_an_error_of_the_work_is_raised_and_its_place_is_free_again() -> None:
    async def fail(line: Turns) -> None:
        with pytest.raises(ZeroDivisionError):
            await line.run("busy", lambda: 1 // 0)
        assert await line.run("busy", lambda: 7) == 7
        assert line.count == 0

    with turns() as line:
        asyncio.run(fail(line))
