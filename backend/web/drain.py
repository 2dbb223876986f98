"""Drains the process on SIGTERM: it reports that it is not ready, and serves until requests stop."""

import asyncio
import signal
import threading
from time import perf_counter
from typing import Final

from loguru import logger

QUIET_SECONDS: Final = 1.0
"""The drain ends after so many seconds without a request."""
_POLL_SECONDS: Final = 0.1


class Drain:
    """Counts the requests of the process, and ends it gracefully."""

    def __init__(self, *, longest_seconds: float) -> None:
        self._longest_seconds = longest_seconds
        self.is_draining = False
        self.under_way = 0
        """The number of requests without a complete response."""
        self.last_request_at = float("-inf")
        """The start of the last request that is not a probe's, by `perf_counter`."""

    async def on_sigterm(self) -> None:
        """Wait for SIGTERM and drain; the server gets the signal after that, or when it comes again."""
        stop = signal.getsignal(signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread() or not callable(stop):
            return
        loop, has_come = asyncio.get_running_loop(), asyncio.Event()

        def begin(*_: object) -> None:
            if self.is_draining:
                stop(signal.SIGTERM, None)
            self.is_draining = True
            loop.call_soon_threadsafe(has_come.set)

        signal.signal(signal.SIGTERM, begin)
        try:
            await has_come.wait()
            logger.info("not ready any more, until nobody asks")
            await self._until_quiet()
            stop(signal.SIGTERM, None)
        finally:
            signal.signal(signal.SIGTERM, stop)

    async def _until_quiet(self) -> None:
        end = perf_counter() + self._longest_seconds
        while self._is_busy() and perf_counter() < end:  # noqa: ASYNC110  # nothing tells that nothing happens
            await asyncio.sleep(_POLL_SECONDS)

    def _is_busy(self) -> bool:
        return self.under_way > 0 or perf_counter() - self.last_request_at < QUIET_SECONDS
