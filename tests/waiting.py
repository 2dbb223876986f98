"""Polls until a condition holds, and fails after a time limit."""

import asyncio
import time
from collections.abc import Callable

_PAUSE_SECONDS = 0.02


def until(holds: Callable[[], object], seconds: float = 30) -> None:
    """Wait until `holds()` is true; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(_PAUSE_SECONDS)


async def until_async(holds: Callable[[], object], seconds: float = 30, what: str = "end of it") -> None:
    """Wait until `holds()` is true without blocking the event loop; raises TimeoutError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {what} within {seconds} s")
        await asyncio.sleep(_PAUSE_SECONDS / 10)
