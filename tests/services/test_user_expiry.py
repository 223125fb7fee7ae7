"""Payment that has run out: stored soon after it was noticed, and looked for once a day."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import cast
from zoneinfo import ZoneInfo

import pytest

from app.domain.access import Actor
from app.exceptions import DependencyUnavailable, NotFound
from app.services import user_expiry
from app.services.manage_users import UserCommands
from app.services.user_expiry import UserExpiry
from tests.kit.clock import ManualClock


class FakeUsers:
    def __init__(self) -> None:
        self.synced: list[tuple[str, date]] = []
        self.synced_all: list[date] = []
        self.deleted: set[str] = set()
        self.is_away = False
        self.meanwhile: Callable[[], None] = lambda: None

    async def sync_expiry(self, actor: Actor, user_oid: str, today: date) -> None:
        await asyncio.sleep(0)
        self.meanwhile()
        if self.is_away:
            raise DependencyUnavailable("database")
        if user_oid in self.deleted:
            raise NotFound
        self.synced.append((user_oid, today))

    async def sync_all_expiries(self, actor: Actor, today: date) -> None:
        if self.is_away:
            raise DependencyUnavailable("database")
        self.synced_all.append(today)


class House:
    def __init__(self) -> None:
        self.users, self.clock = FakeUsers(), ManualClock()
        self.expiry = UserExpiry(users=cast(UserCommands, self.users), clock=self.clock, zone=ZoneInfo("Europe/Berlin"))


@pytest.fixture
def house() -> House:
    return House()


TODAY = date(2026, 1, 15)


async def test_who_was_noticed_is_stored_once(house: House) -> None:
    for user in ("alice", "bob", "alice"):
        house.expiry.noticed(user)

    await house.expiry.store_noticed()

    assert sorted(house.users.synced) == [("alice", TODAY), ("bob", TODAY)]


async def test_a_refusal_waits_until_the_status_is_stored(house: House) -> None:
    house.expiry.noticed("alice")
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(house.expiry.stored("alice"))
        await asyncio.sleep(0)
        assert not waiting.done()
        group.create_task(house.expiry.store_noticed())
    assert house.users.synced == [("alice", TODAY)]
    await house.expiry.stored("alice")


async def test_a_refusal_does_not_wait_for_a_database_that_is_away(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_expiry, "STORE_WAIT_S", 0.01)
    house.expiry.noticed("alice")
    await house.expiry.stored("alice")
    assert house.users.synced == []


async def test_who_is_noticed_while_another_is_stored_is_not_forgotten(house: House) -> None:
    house.users.meanwhile = lambda: house.expiry.noticed("bob") if not house.users.synced else None
    house.expiry.noticed("alice")

    await house.expiry.store_noticed()

    assert [user for user, _ in house.users.synced] == ["alice", "bob"]


async def test_who_was_deleted_in_between_does_not_hold_up_the_others(house: House) -> None:
    house.users.deleted = {"alice"}
    house.expiry.noticed("alice")
    house.expiry.noticed("bob")

    await house.expiry.store_noticed()

    assert house.users.synced == [("bob", TODAY)]


async def test_who_could_not_be_stored_is_stored_later(house: House) -> None:
    house.users.is_away = True
    house.expiry.noticed("alice")
    with pytest.raises(DependencyUnavailable):
        await house.expiry.store_noticed()
    house.users.is_away = False

    await house.expiry.store_noticed()

    assert house.users.synced == [("alice", TODAY)]


async def test_all_are_looked_at_once_a_day_as_the_budgets_zone_counts_days(house: House) -> None:
    for hour, minute in ((12, 0), (22, 59), (23, 0), (23, 30)):
        house.clock.set_now(datetime(2026, 1, 15, hour, minute, tzinfo=UTC))
        await house.expiry.sync_daily()

    assert house.users.synced_all == [date(2026, 1, 15), date(2026, 1, 16)]


async def test_a_day_that_could_not_be_looked_at_is_looked_at_later(house: House) -> None:
    house.users.is_away = True
    with pytest.raises(DependencyUnavailable):
        await house.expiry.sync_daily()
    house.users.is_away = False

    await house.expiry.sync_daily()

    assert house.users.synced_all == [TODAY]
