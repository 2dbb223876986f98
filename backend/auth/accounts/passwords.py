"""Rules, hashing and checking of passwords: off the event loop, on bounded threads with a bounded queue."""

import os
import sys
import threading
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path

import bcrypt
from passlib.context import CryptContext

from backend.auth.accounts.turns import Turns
from backend.auth.errors import PasswordRefusedError

MAX_CHARACTERS = 128
MAX_SENT_CHARACTERS = 512
"""Of a password as it is sent, because NFC of combining marks takes time by the square of their number."""
MIN_QUEUE = 128
QUEUE_PER_THREAD = 64
"""At cost 12 a hash takes about a quarter of a second: the last in a full queue waits some 16 seconds."""


def _common_passwords() -> frozenset[str]:
    """Return the 30,000 most frequent ones of zxcvbn's list, in lower case, and nothing else of it."""
    spec = find_spec("zxcvbn")
    assert spec is not None
    assert spec.origin is not None
    lists = run_path(str(Path(spec.origin).with_name("frequency_lists.py")))
    return frozenset(lists["FREQUENCY_LISTS"]["passwords"])


COMMON = _common_passwords()


def normalise(password: str) -> str:
    """Return `password` in NFC, as RFC 8265 section 4 has it compared."""
    return unicodedata.normalize("NFC", password)


def check_rules(password: str, *, email: str, min_length: int, field: str = "password") -> None:
    """Raise `PasswordRefusedError` unless `password` keeps the rules (NIST SP 800-63B section 3.1.1).

    It has `min_length` to 128 characters after NFC, is none of the common ones and not the email.
    """
    password = normalise(password) if len(password) <= MAX_SENT_CHARACTERS else password
    if len(password) < min_length:
        raise PasswordRefusedError(
            f"Passwords have at least {min_length} characters", "string_too_short", field
        )
    if len(password) > MAX_CHARACTERS:
        raise PasswordRefusedError(
            f"Passwords have at most {MAX_CHARACTERS} characters", "string_too_long", field
        )
    if password.casefold() in COMMON:
        raise PasswordRefusedError("This password is one of the first guessed", "password_common", field)
    if password.casefold() == email.casefold():
        raise PasswordRefusedError("The password is the email", "password_is_email", field)


def _give_way() -> None:
    """Let the event loop go first, however much there is to hash; on Linux a thread has its own niceness."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


class PasswordHasher:
    """Hashes by `bcrypt_sha256` of libpass; hashes of plain bcrypt verify too, and are outdated.

    Each method that hashes takes the client's address, because addresses take turns, and raises
    `ServiceUnavailableError` when the queue is full.
    """

    def __init__(self, *, rounds: int, processes: int = 1) -> None:
        self._context = CryptContext(
            schemes=["bcrypt_sha256", "bcrypt"], deprecated=["bcrypt"], bcrypt_sha256__rounds=rounds
        )
        threads = max(1, (os.cpu_count() or 1) // processes)
        self._executor = ThreadPoolExecutor(threads, "hash", initializer=_give_way)
        self._turns = Turns(self._executor, threads=threads, limit=max(MIN_QUEUE, threads * QUEUE_PER_THREAD))
        self._rounds = rounds
        self._context.hash("nobody")  # loads the backend, which else the first sign-in would wait for

    @property
    def waiting(self) -> int:
        """The number of passwords that are being hashed or wait for it."""
        return self._turns.count

    def close(self) -> None:
        """Let go of the threads; what still waits is dropped."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def hash(self, password: str, address: str) -> str:
        """Return the hash to store."""
        return await self._turns.run(address, lambda: str(self._context.hash(normalise(password))))

    async def verify(self, password: str, stored: str | None, address: str) -> bool:
        """Tell whether `password` is that of `stored`, which is None for an unknown email."""
        return not await self.cost_of_failure(password, stored, address)

    async def cost_of_failure(self, password: str, stored: str | None, address: str) -> int:
        """Return 0 where `password` is that of `stored`, else the cost whose time the failure took.

        That is the time of one hash, at `BCRYPT_ROUNDS` or at the cost of `stored` where that is more.
        """
        return await self._turns.run(address, lambda: self._compare(password, stored))

    async def prolong(self, cost: int, address: str, highest_cost: int) -> None:
        """Let a failure that took the time of `cost` take that of `highest_cost`.

        Where this may matter each failure waits for a turn more, so that the wait tells nothing either.
        """
        if highest_cost > self._rounds:
            # At cost c a hash takes 2**c rounds: with these the sum is 2**highest_cost.
            await self._turns.run(address, lambda: _fail_at(*range(cost, highest_cost)))

    def is_outdated(self, stored: str) -> bool:
        """Tell whether `stored` is of another scheme or cost than today's."""
        return bool(self._context.needs_update(stored))

    def _compare(self, password: str, stored: str | None) -> int:
        if stored is None or len(password) > MAX_SENT_CHARACTERS:
            _fail_at(self._rounds)
            return self._rounds
        try:
            if self._context.verify(normalise(password), stored):
                return 0
        except ValueError:
            # Plain bcrypt refuses over 72 bytes, NUL and a damaged hash before it computes anything.
            _fail_at(self._rounds)
            return self._rounds
        cost = self._cost_of(stored)
        _fail_at(*range(cost, self._rounds))
        return max(cost, self._rounds)

    def _cost_of(self, stored: str) -> int:
        handler = self._context.identify(stored, resolve=True)
        return int(handler.from_string(stored).rounds)


def _fail_at(*costs: int) -> None:
    """Take the time of a hash of each cost, for a sign-in that fails."""
    for cost in costs:
        bcrypt.hashpw(b"", bcrypt.gensalt(cost))
