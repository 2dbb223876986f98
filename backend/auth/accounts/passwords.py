"""The rules for new passwords, and `PasswordHasher`, which hashes on threads with a bounded queue."""

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

from backend.auth.accounts.fair_queue import Turns
from backend.auth.errors import PasswordRefusedError

MAX_CHARACTERS = 128
MAX_SENT_CHARACTERS = 512
"""The limit of a password as sent, because NFC takes quadratic time for combining marks."""
MIN_QUEUE = 128
QUEUE_PER_THREAD = 64
"""At cost 12 a hash takes about 0.25 s, so the last in a full queue waits about 16 s."""


def _common_passwords() -> frozenset[str]:
    """Return the 30,000 most frequent passwords, in lower case, from the data of the library zxcvbn."""
    spec = find_spec("zxcvbn")
    assert spec is not None
    assert spec.origin is not None
    lists = run_path(str(Path(spec.origin).with_name("frequency_lists.py")))
    return frozenset(lists["FREQUENCY_LISTS"]["passwords"])


COMMON = _common_passwords()


def normalise(password: str) -> str:
    """Return `password` in NFC, in which RFC 8265 section 4 compares passwords."""
    return unicodedata.normalize("NFC", password)


def check_rules(password: str, *, email: str, min_length: int, field: str = "password") -> None:
    """Raise `PasswordRefusedError` unless `password` keeps the rules (NIST SP 800-63B section 3.1.1).

    It has `min_length` to 128 characters after NFC, is none of the common ones and not the email.
    """
    password = normalise(password) if len(password) <= MAX_SENT_CHARACTERS else password
    if len(password) < min_length:
        broken = f"Passwords have at least {min_length} characters", "string_too_short"
    elif len(password) > MAX_CHARACTERS:
        broken = f"Passwords have at most {MAX_CHARACTERS} characters", "string_too_long"
    elif password.casefold() in COMMON:
        broken = "This password is one of the first guessed", "password_common"
    elif password.casefold() == email.casefold():
        broken = "The password is the email", "password_is_email"
    else:
        return
    raise PasswordRefusedError(*broken, field)


def _give_way() -> None:
    """Lower the priority of a hash thread below the event loop's; Linux has a niceness for each thread."""
    if sys.platform == "linux":  # pragma: no branch  # the tests run on Linux
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


class PasswordHasher:
    """Hashes by libpass's `bcrypt_sha256`; hashes of plain bcrypt verify too, and are outdated.

    The methods that wait take the client's address, because addresses take turns (see `Turns`). They raise
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
        self._context.hash("nobody")  # loads the backend, so that the first sign-in need not wait for it

    @property
    def waiting(self) -> int:
        """The number of passwords that are being hashed or wait."""
        return self._turns.count

    def close(self) -> None:
        """Stop the threads; work that still waits is dropped."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def hash(self, password: str, address: str) -> str:
        """Return the hash to store."""
        return await self._turns.run(address, lambda: str(self._context.hash(normalise(password))))

    async def cost_of_failure(self, password: str, stored: str | None, address: str) -> int:
        """Return 0 if `password` matches the hash `stored`, else the cost whose time the failure took.

        That is the time of one hash, at `BCRYPT_ROUNDS` or at the cost of `stored` if that is more. `stored`
        is None for an unknown email.
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
        """Return whether `stored` has another scheme or cost than new hashes."""
        return bool(self._context.needs_update(stored))

    def _compare(self, password: str, stored: str | None) -> int:
        if stored is None or len(password) > MAX_SENT_CHARACTERS:
            _fail_at(self._rounds)
            return self._rounds
        try:
            if self._context.verify(normalise(password), stored):
                return 0
        except ValueError:
            # Plain bcrypt refuses over 72 bytes, NUL and a damaged hash without computing anything.
            _fail_at(self._rounds)
            return self._rounds
        cost = int(self._context.identify(stored, resolve=True).from_string(stored).rounds)
        _fail_at(*range(cost, self._rounds))
        return max(cost, self._rounds)


def _fail_at(*costs: int) -> None:
    """Take the time of a hash of each cost, so that time does not tell why a sign-in fails."""
    for cost in costs:
        bcrypt.hashpw(b"", bcrypt.gensalt(cost))
