"""One attempt at a password: within the limits on guessing, and as long as for an unknown email."""

from contextlib import suppress
from dataclasses import dataclass

from backend.auth.accounts import statements
from backend.auth.sessions.service import Client, SignIn
from backend.database import Database, DatabaseError, Row


@dataclass(frozen=True, slots=True)
class Guess:
    """An attempt of a client at the password of the email `key`."""

    database: Database
    sign_in: SignIn
    client: Client
    key: str

    async def cost_of_failure(self, password: str, account: Row | None) -> int:
        """Return 0 where the password is right, else the cost whose time the failure took.

        At home the account's own limit does not count. Raises `RateLimitedError`.
        """
        limits, hasher = self.sign_in.limits, self.sign_in.hasher
        may_be_home = account is not None and account["is_own_address"]
        is_home = may_be_home and (not await limits.is_locked(self.key) or await self._is_home())
        stored = account["password_hash"] if account else None
        async with limits.guess(self.client.address, None if is_home else self.key) as failed:
            cost = await hasher.cost_of_failure(password, stored, self.client.address)
            if cost:
                await failed()
                if is_home and not await self._is_home():
                    await limits.count_failure(self.key)
        return cost

    async def _is_home(self) -> bool:
        """Return whether few accounts share the client's address.

        It is asked at a limit and after a failure alone, because it looks at the addresses of all users.
        """
        try:
            accounts = await self.database.one(statements.COUNT_ACCOUNTS, address=self.client.address)
        except DatabaseError:  # some of the addresses can't be reached
            return False
        return accounts is not None and accounts["count"] <= statements.MAX_ACCOUNTS_AT_HOME

    async def prolong(self, cost: int) -> None:
        """Let a failure that took the time of `cost` take that of the costliest hash of all users."""
        sign_in = self.sign_in
        with suppress(DatabaseError):  # then the last known cost will do
            row = await self.database.one(statements.HIGHEST_COST)
            sign_in.highest_cost = (row and row["highest_cost"]) or 0
        await sign_in.hasher.prolong(cost, self.client.address, sign_in.highest_cost)
