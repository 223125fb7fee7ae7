"""Identities from memory: one look-up for many, served while the store is away, dropped exactly when a change touched them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from ipaddress import ip_network
from zoneinfo import ZoneInfo

import pytest

from app.domain.identity import Identity, KeyStatus, PaymentStatus
from app.exceptions import (
    DependencyUnavailable,
    InvalidApiKey,
    IpNotAllowed,
    PaymentExpired,
    UserSuspended,
)
from app.services.api_key import NewKey, new_key, pepper_of
from app.services.identities import Identities
from tests.calls import NOON, a_key, a_user, an_app, an_identity
from tests.kit.clock import ManualClock

PEPPER = pepper_of("a-secret-key-that-only-these-tests-know")


class FakeKeyStore:
    """Rows by digest. `gate` holds look-ups back until a test opens it."""

    def __init__(self) -> None:
        self.rows: dict[bytes, Identity] = {}
        self.looked_up: list[bytes] = []
        self.used: list[tuple[str, datetime]] = []
        self.is_away = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def identity_of_key(self, digest: bytes) -> Identity | None:
        self.looked_up.append(digest)
        row = self.rows.get(digest)
        await self.gate.wait()
        if self.is_away:
            raise DependencyUnavailable("database")
        return row

    async def mark_expired(self, user_oid: str) -> None:
        raise AssertionError("identities only notice; they store nothing")

    async def mark_used(self, used: Sequence[tuple[str, datetime]]) -> None:
        if self.is_away:
            raise DependencyUnavailable("database")
        self.used.extend(used)


class House:
    """The cache under test with everything around it."""

    def __init__(self, *, capacity: int = 100, zone: str = "UTC") -> None:
        self.store = FakeKeyStore()
        self.clock = ManualClock()
        self.noticed: list[str] = []
        self.identities = Identities(
            store=self.store,
            pepper=PEPPER,
            clock=self.clock,
            zone=ZoneInfo(zone),
            on_expired=self.noticed.append,
            capacity=capacity,
        )

    def key(self, identity: Identity | None = None) -> NewKey:
        made = new_key(PEPPER)
        self.store.rows[made.digest] = identity or an_identity()
        return made

    def keys(self, count: int) -> list[NewKey]:
        return [self.key(an_identity(a_user(oid=f"u{i}"), key=a_key(id=f"k{i}"))) for i in range(count)]

    async def call(self, key: NewKey, *, address: str | None = "10.0.0.1") -> Identity:
        return await self.identities.of_key(key.secret, address=address)


@pytest.fixture
def house() -> House:
    return House()


async def test_a_known_key_is_looked_up_once(house: House) -> None:
    key = house.key()

    assert {await house.call(key) for _ in range(5)} == {an_identity()}
    assert house.store.looked_up == [key.digest]


async def test_calls_that_miss_at_once_share_one_look_up(house: House) -> None:
    key = house.key()
    house.store.gate.clear()
    calls = [asyncio.create_task(house.call(key)) for _ in range(20)]
    await house.clock.turns()
    house.store.gate.set()

    assert await asyncio.gather(*calls) == [an_identity()] * 20
    assert len(house.store.looked_up) == 1


@pytest.mark.parametrize("is_away", [True, False])
async def test_a_look_up_that_fails_has_failed_for_all_who_waited_for_it(house: House, is_away: bool) -> None:
    """One after the other they would wait as many time-outs as there are calls."""
    key = new_key(PEPPER)
    house.store.is_away = is_away
    house.store.gate.clear()
    calls = [asyncio.create_task(house.call(key)) for _ in range(20)]
    await house.clock.turns()
    house.store.gate.set()

    told = await asyncio.gather(*calls, return_exceptions=True)

    assert {type(error) for error in told} == {DependencyUnavailable if is_away else InvalidApiKey}
    assert len(house.store.looked_up) == 1


async def test_a_caller_who_gives_up_does_not_take_the_others_with_him(house: House) -> None:
    key = house.key()
    house.store.gate.clear()
    first, second = (asyncio.create_task(house.call(key)) for _ in range(2))
    await house.clock.turns()
    first.cancel()
    await house.clock.turns()
    house.store.gate.set()

    assert await second == an_identity()
    assert first.cancelled()


@pytest.mark.parametrize("secret", ["", "sk-ag-", "sk-ag-" + "0" * 49, "Bearer", "sk-proj-other", "é" * 55, "\x00"])
async def test_a_credential_of_the_wrong_form_is_refused_without_a_look_up(house: House, secret: str) -> None:
    with pytest.raises(InvalidApiKey):
        await house.identities.of_key(secret, address=None)
    assert house.store.looked_up == []


async def test_an_unknown_key_is_invalid_and_is_not_remembered(house: House) -> None:
    key = new_key(PEPPER)
    with pytest.raises(InvalidApiKey):
        await house.call(key)
    house.store.rows[key.digest] = an_identity()

    assert await house.call(key) == an_identity()


async def test_a_known_key_goes_on_working_while_the_store_is_away(house: House) -> None:
    key = house.key()
    await house.call(key)
    house.store.is_away = True

    assert await house.call(key) == an_identity()


async def test_an_unknown_key_is_not_called_invalid_while_the_store_is_away(house: House) -> None:
    key = house.key()
    house.store.is_away = True
    with pytest.raises(DependencyUnavailable):
        await house.call(key)
    house.store.is_away = False

    assert await house.call(key) == an_identity()


@pytest.mark.parametrize("kind", ["user", "key", "app"])
async def test_a_change_drops_what_it_touched_and_nothing_else(house: House, kind: str) -> None:
    ours = [
        house.key(an_identity(a_user(oid="our"), key=a_key(id="our"), app=an_app(id="our"))),
        house.key(an_identity(a_user(oid="our"), key=a_key(id="our"), app=an_app(id="our"))),
    ]
    others = [
        house.key(an_identity(a_user(oid="other"), key=a_key(id="other"))),
        house.key(an_identity(a_user(oid="other"), key=a_key(id="our" if kind != "key" else "x"))),
    ]
    for key in (*ours, *others):
        await house.call(key)
    house.store.looked_up.clear()

    house.identities.forget(kind, "our")
    for key in (*ours, *others):
        await house.call(key)

    assert house.store.looked_up == [key.digest for key in ours]


async def test_a_change_is_seen_by_the_next_call(house: House) -> None:
    key = house.key()
    await house.call(key)
    house.store.rows[key.digest] = an_identity(key=a_key(status=KeyStatus.REVOKED))
    house.identities.forget("key", "key-1")

    with pytest.raises(InvalidApiKey):
        await house.call(key)


@pytest.mark.parametrize("kind", ["catalog", "admin", "nonsense"])
async def test_a_change_of_something_else_drops_no_identity(house: House, kind: str) -> None:
    key = house.key()
    await house.call(key)

    house.identities.forget(kind, "alice")
    await house.call(key)

    assert len(house.store.looked_up) == 1


@pytest.mark.parametrize("is_everything", [True, False])
async def test_what_was_read_while_a_change_came_in_is_used_but_not_kept(house: House, is_everything: bool) -> None:
    key = house.key()
    house.store.gate.clear()
    call = asyncio.create_task(house.call(key))
    await house.clock.turns()
    if is_everything:
        house.identities.forget_all()
    else:
        house.identities.forget("key", "key-1")
    house.store.rows[key.digest] = an_identity(a_user(payment_status=PaymentStatus.SUSPENDED))
    house.store.gate.set()

    assert await call == an_identity()
    with pytest.raises(UserSuspended):
        await house.call(key)


async def test_everything_can_be_dropped_at_once(house: House) -> None:
    keys = house.keys(3)
    for key in keys:
        await house.call(key)

    house.identities.forget_all()

    assert len(house.identities) == 0
    await house.call(keys[0])
    assert len(house.store.looked_up) == 4


async def test_memory_is_bounded_and_what_was_not_used_longest_goes_first() -> None:
    house = House(capacity=3)
    keys = house.keys(4)
    for key in keys[:3]:
        await house.call(key)
    await house.call(keys[0])
    await house.call(keys[3])
    assert len(house.identities) == 3
    house.store.looked_up.clear()

    for index in (0, 2, 3, 1):
        await house.call(keys[index])

    assert house.store.looked_up == [keys[1].digest]


async def test_what_was_pushed_out_leaves_nothing_behind() -> None:
    house = House(capacity=1)
    first, second = house.keys(2)
    await house.call(first)
    await house.call(second)

    house.identities.forget("user", "u0")  # would touch the one that is gone
    house.store.looked_up.clear()
    await house.call(second)

    assert house.store.looked_up == []


async def test_paid_time_ends_with_its_day_in_the_budgets_zone_also_from_memory() -> None:
    """T009."""
    house = House(zone="Europe/Berlin")
    key = house.key(an_identity(a_user(payment_valid_until=date(2026, 1, 15))))
    house.clock.set_now(datetime(2026, 1, 15, 22, 59, 59, tzinfo=UTC))
    await house.call(key)
    assert house.noticed == []

    house.clock.set_now(datetime(2026, 1, 15, 23, 0, tzinfo=UTC))
    with pytest.raises(PaymentExpired):
        await house.call(key)

    assert house.noticed == ["alice"]
    assert len(house.store.looked_up) == 1


async def test_a_user_whose_status_says_expired_already_need_not_be_noticed(house: House) -> None:
    key = house.key(an_identity(a_user(payment_status=PaymentStatus.EXPIRED, payment_valid_until=date(2020, 1, 1))))

    with pytest.raises(PaymentExpired):
        await house.call(key)

    assert house.noticed == []


async def test_a_key_expires_from_memory_too(house: House) -> None:
    key = house.key(an_identity(key=a_key(expires_at=NOON + timedelta(seconds=60))))
    await house.call(key)
    await house.clock.advance(60)

    with pytest.raises(InvalidApiKey):
        await house.call(key)


async def test_when_keys_were_last_used_is_written_once_each_with_the_latest_time(house: House) -> None:
    one, other = house.keys(2)
    for key in (one, other, one):
        await house.clock.advance(1)
        await house.call(key)

    await house.identities.write_used()
    await house.identities.write_used()

    assert sorted(house.store.used) == [("k0", NOON + timedelta(seconds=3)), ("k1", NOON + timedelta(seconds=2))]


async def test_a_refused_call_is_no_use_of_its_key(house: House) -> None:
    key = house.key(an_identity(key=a_key(allowed_networks=(ip_network("192.168.0.0/16"),))))
    with pytest.raises(IpNotAllowed):
        await house.call(key)

    await house.identities.write_used()

    assert house.store.used == []


async def test_when_keys_were_last_used_is_kept_until_the_store_is_back(house: House) -> None:
    one, other = house.keys(2)
    await house.call(one)
    await house.call(other)
    house.store.is_away = True
    with pytest.raises(DependencyUnavailable):
        await house.identities.write_used()
    await house.clock.advance(5)
    await house.call(other)
    house.store.is_away = False

    await house.identities.write_used()

    assert sorted(house.store.used) == [("k0", NOON), ("k1", NOON + timedelta(seconds=5))]
