"""Checks a password within the rate limits. A failure takes as long as for an unknown email."""

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
        """Return 0 for the right password, otherwise the cost whose time the check took.

        The account's limit does not apply to a home address: the user has signed in from it, and few
        accounts share it. Raises `RateLimitedError`.
        """
        limits = self.sign_in.limits
        may_be_home = account is not None and account["is_own_address"]
        async with limits.guess_from(self.client.address) as count_at_address:
            if may_be_home and await limits.is_contested(self.key) and await self._is_home():
                cost = await self._check(password, account)
            else:
                async with limits.guess_at(self.key) as count_at_account:
                    cost = await self._check(password, account)
                    if cost and not (may_be_home and await self._is_home()):
                        await count_at_account()
            if cost:
                await count_at_address()
        return cost

    async def _check(self, password: str, account: Row | None) -> int:
        stored = account["password_hash"] if account else None
        return await self.sign_in.hasher.cost_of_failure(password, stored, self.client.address)

    async def _is_home(self) -> bool:
        """Return whether few accounts share the client's address.

        It runs only near the limit and after a failure, because it reads the addresses of all users.
        """
        try:
            accounts = await self.database.one(statements.COUNT_ACCOUNTS, address=self.client.address)
        except DatabaseError:  # a node with some of the addresses may be down
            return False
        return accounts is not None and accounts["count"] <= statements.MAX_ACCOUNTS_AT_HOME

    async def prolong(self, cost: int) -> None:
        """Extend a failure that took the time of `cost` to the time of the highest stored cost."""
        sign_in = self.sign_in
        with suppress(DatabaseError):  # the last known cost is used instead
            row = await self.database.one(statements.HIGHEST_COST)
            sign_in.highest_cost = (row and row["highest_cost"]) or 0
        await sign_in.hasher.prolong(cost, self.client.address, sign_in.highest_cost)
