"""Payment that has run out: noticed on a call, and looked for once a day."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import date, tzinfo

from app.clock import Clock
from app.domain.access import GATEWAY, Actor, Role
from app.domain.identity import payment_day
from app.exceptions import NotFound
from app.services.manage_users import UserCommands

ACTOR = Actor(GATEWAY, Role.OWNER)
STORE_WAIT_S = 1.0
"""How long a refusal waits for the database to know of it."""


class UserExpiry:
    def __init__(self, *, users: UserCommands, clock: Clock, zone: tzinfo, grace_days: int = 0) -> None:
        self._users = users
        self._clock = clock
        self._zone = zone
        self._grace_days = grace_days
        self._noticed: dict[str, asyncio.Event] = {}
        """By user; set once the status is stored."""
        self._wakeup = asyncio.Event()
        self._synced_on: date | None = None

    def noticed(self, user_oid: str) -> None:
        """A call of this user was refused although his stored status is not `expired` yet."""
        self._noticed.setdefault(user_oid, asyncio.Event())
        self._wakeup.set()

    async def stored(self, user_oid: str) -> None:
        """Wait until the status of a user who was noticed is stored, so that whoever looks next finds what the caller was told; but
        not for long: the refusal stands either way."""
        is_stored = self._noticed.get(user_oid)
        if is_stored is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(STORE_WAIT_S):
                    await is_stored.wait()

    async def store_noticed(self) -> None:
        """Store the status of the users noticed; waits until there are any."""
        await self._wakeup.wait()
        while self._noticed:  # also those that are noticed meanwhile
            user_oid = next(iter(self._noticed))
            with suppress(NotFound):  # deleted in between
                await self._users.sync_expiry(ACTOR, user_oid, self._today())
            self._noticed.pop(user_oid).set()
        self._wakeup.clear()

    async def sync_daily(self) -> None:
        """Once a day, as soon as the day has begun in the budgets' time zone."""
        today = self._today()
        if self._synced_on != today:
            await self._users.sync_all_expiries(ACTOR, today)
            self._synced_on = today

    def _today(self) -> date:
        return payment_day(self._clock.now(), self._zone, self._grace_days)
