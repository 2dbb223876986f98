"""Checks a password within the rate limits. A failure takes as long as for an unknown email."""

from contextlib import suppress

from backend.auth.accounts import statements
from backend.auth.sessions.service import Context
from backend.database import DatabaseError, Row


async def cost_of_failure(context: Context, key: str, password: str, account: Row | None) -> int:
    """Return 0 for the right password of the email `key`, otherwise the cost whose time the check took.

    The account's limit does not apply to a home address: the user has signed in from it, and few accounts
    share it. Raises `RateLimitedError`.
    """
    limits = context.sign_in.limits
    account_key = limits.key_of(key)
    may_be_home = account is not None and account["is_own_address"]
    async with limits.address.attempt(context.address) as count_at_address:
        if may_be_home and await limits.account.is_half_reached(account_key) and await _is_home(context):
            cost = await _check(context, password, account)
        else:
            async with limits.account.attempt(account_key) as count_at_account:
                cost = await _check(context, password, account)
                if cost and not (may_be_home and await _is_home(context)):
                    await count_at_account()
        if cost:
            await count_at_address()
    return cost


async def _check(context: Context, password: str, account: Row | None) -> int:
    stored = account["password_hash"] if account else None
    return await context.sign_in.hasher.cost_of_failure(password, stored, context.address)


async def _is_home(context: Context) -> bool:
    """Return whether few accounts share the client's address.

    It runs only near the limit and after a failure, because it reads the addresses of all users.
    """
    try:
        accounts = await context.database.one(statements.COUNT_ACCOUNTS, address=context.address)
    except DatabaseError:  # a node with some of the addresses may be down
        return False
    return accounts is not None and accounts["count"] <= statements.MAX_ACCOUNTS_AT_HOME


async def prolong(context: Context, cost: int) -> None:
    """Extend a failure that took the time of `cost` to the time of the highest stored cost."""
    sign_in = context.sign_in
    with suppress(DatabaseError):  # the last known cost is used instead
        row = await context.database.one(statements.HIGHEST_COST)
        sign_in.highest_cost = (row and row["highest_cost"]) or 0
    await sign_in.hasher.prolong(cost, context.address, sign_in.highest_cost)
