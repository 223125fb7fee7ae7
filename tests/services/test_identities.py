"""Identities from memory: one look-up for many, served while the store is away, dropped exactly when a change touched them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from ipaddress import ip_network
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from app.domain.identity import AppCredential, Identity, KeyStatus, PaymentStatus, User
from app.exceptions import (
    AppInactive,
    DependencyUnavailable,
    InvalidApiKey,
    InvalidRequest,
    IpNotAllowed,
    PaymentExpired,
    TooManyFailures,
    UserSuspended,
    UserUnknown,
)
from app.services.api_key import (
    APP_SECRET_PREFIX,
    CHECKSUM_LENGTH,
    KEY_PREFIX,
    NewKey,
    _checksum,
    digest_of,
    new_key,
    pepper_of,
)
from app.services.identities import Identities
from app.storage.ports import RegisteredApp, StoredSecret
from tests.calls import NOON, a_key, a_user, an_app, an_identity
from tests.kit.clock import ManualClock

SHARED = "the-shared-secret-of-all-apps-0123456789"
PEPPER = pepper_of("a-secret-key-that-only-these-tests-know")


class FakeKeyStore:
    """Rows by digest. `gate` holds look-ups back until a test opens it."""

    def __init__(self) -> None:
        self.rows: dict[bytes, Identity] = {}
        self.looked_up: list[bytes] = []
        self.gathered: list[int] = []
        self.used: list[tuple[str, datetime]] = []
        self.is_away = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.apps: dict[str, RegisteredApp] = {}
        self.users: dict[str, User] = {}
        self.apps_looked_up = 0
        self.created: list[tuple[str, str]] = []

    async def registered_app(self, app_id: str, user_oid: str) -> RegisteredApp | None:
        self.apps_looked_up += 1
        if self.is_away:
            raise DependencyUnavailable("database")
        found = self.apps.get(app_id)
        return found and replace(found, user=self.users.get(user_oid))

    async def create_user(self, oid: str, app_id: str) -> None:
        self.created.append((oid, app_id))
        await self.gate.wait()
        self.users[oid] = a_user(oid=oid)

    async def identity_of_key(self, digest: bytes) -> Identity | None:
        self.looked_up.append(digest)
        row = self.rows.get(digest)
        await self.gate.wait()
        if self.is_away:
            raise DependencyUnavailable("database")
        return row

    async def identities_of_keys(self, digests: Sequence[bytes]) -> dict[bytes, Identity]:
        self.gathered.append(len(digests))
        if self.is_away:
            raise DependencyUnavailable("database")
        return {digest: self.rows[digest] for digest in digests if digest in self.rows}

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
        self.awaited: list[str] = []
        self.identities = Identities(
            store=self.store,
            pepper=PEPPER,
            clock=self.clock,
            zone=ZoneInfo(zone),
            on_expired=self.noticed.append,
            until_stored=self.until_stored,
            create_user=self.store.create_user,
            shared_secret=SHARED,
            capacity=capacity,
        )

    async def until_stored(self, user_oid: str) -> None:
        self.awaited.append(user_oid)

    def key(self, identity: Identity | None = None) -> NewKey:
        made = new_key(PEPPER)
        self.store.rows[made.digest] = identity or an_identity()
        return made

    def keys(self, count: int) -> list[NewKey]:
        return [self.key(an_identity(a_user(oid=f"u{i}"), key=a_key(id=f"k{i}"))) for i in range(count)]

    def app(self, app_id: str = "crm", *, own_secret_only: bool = False, creates: bool = False, **fields: Any) -> str:
        """Register an app; returns its own secret."""
        made = new_key(PEPPER, APP_SECRET_PREFIX)
        secrets = (StoredSecret(made.digest, None),)
        app = an_app(id=app_id, **fields)
        self.store.apps[app_id] = RegisteredApp(app, secrets, own_secret_only, creates, None)
        self.store.users.setdefault("alice", a_user(oid="alice"))
        return made.secret

    async def app_call(
        self, secret: str, app_id: str = "crm", oid: str = "alice", *, address: str | None = "10.0.0.1"
    ) -> Identity:
        return await self.identities.of(AppCredential(secret, app_id, oid), address=address)

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
    """T003, T005."""
    with pytest.raises(InvalidApiKey):
        await house.identities.of_key(secret, address=None)
    assert house.store.looked_up == []


async def test_keys_that_begin_alike_are_never_taken_for_each_other(house: House) -> None:
    """T008: what is remembered is keyed by the whole key's digest."""
    first = new_key(PEPPER)
    sibling = first.secret[: len(KEY_PREFIX) + 32] + new_key(PEPPER).secret[len(KEY_PREFIX) + 32 : -CHECKSUM_LENGTH]
    second = sibling + _checksum(sibling.encode())
    digest = digest_of(second, PEPPER)
    assert digest is not None
    house.store.rows[first.digest] = an_identity(a_user(oid="first"), key=a_key(id="k1"))
    house.store.rows[digest] = an_identity(a_user(oid="second"), key=a_key(id="k2"))

    for _ in range(500):
        assert (await house.identities.of(first.secret, address=None)).user.oid == "first"
        assert (await house.identities.of(second, address=None)).user.oid == "second"


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

    assert house.noticed == house.awaited == ["alice"]
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


# ── Apps ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_app_calls_for_a_user_with_its_own_secret_or_with_the_shared_one(house: House) -> None:
    """T011."""
    own = house.app()

    for secret in (own, SHARED):
        for _ in range(3):
            assert await house.app_call(secret) == an_identity(key=None, app=an_app())
    assert house.store.apps_looked_up == 2


async def test_whatever_is_wrong_with_a_secret_is_told_alike(house: House) -> None:
    """T011: wrong, empty, another app's, a rotated one, and an app that nobody registered."""
    own, other = house.app("crm"), house.app("erp")
    stranger = new_key(PEPPER, APP_SECRET_PREFIX).secret
    for secret, app_id in (
        *((wrong, "crm") for wrong in ("", "x", stranger, other, own[:-1], SHARED[:-1], SHARED + " ", "\u00e9")),
        *((right, app_id) for right in (own, SHARED) for app_id in ("nobody", "", "CRM", "crm\x00", "x" * 101)),
        (own, "erp"),
    ):
        with pytest.raises(InvalidApiKey):
            await house.app_call(secret, app_id)


async def test_a_wrong_secret_is_looked_up_even_if_the_app_is_known(house: House) -> None:
    """So that it takes as long as an unknown app: what differs in time tells which apps there are."""
    await house.app_call(house.app())
    before = house.store.apps_looked_up

    for app_id in ("crm", "nobody"):
        with pytest.raises(InvalidApiKey):
            await house.app_call(new_key(PEPPER, APP_SECRET_PREFIX).secret, app_id)

    assert house.store.apps_looked_up == before + 2


async def test_an_app_of_its_own_secret_only_takes_no_shared_one(house: House) -> None:
    own = house.app(own_secret_only=True)

    await house.app_call(own)
    with pytest.raises(InvalidApiKey):
        await house.app_call(SHARED)


async def test_without_a_shared_secret_nothing_passes_for_it(house: House) -> None:
    """T013: header login by the global secret is off."""
    identities = Identities(
        store=house.store,
        pepper=PEPPER,
        clock=house.clock,
        zone=UTC,
        on_expired=house.noticed.append,
        until_stored=house.until_stored,
        create_user=house.store.create_user,
    )
    house.app()
    with pytest.raises(InvalidApiKey):
        await identities.of(AppCredential("", "crm", "alice"), address=None)


async def test_of_two_secrets_the_older_ends_when_its_time_is_over(house: House) -> None:
    first, second = (new_key(PEPPER, APP_SECRET_PREFIX) for _ in range(2))
    house.app()
    secrets = (StoredSecret(first.digest, NOON + timedelta(seconds=60)), StoredSecret(second.digest, None))
    house.store.apps["crm"] = replace(house.store.apps["crm"], secrets=secrets)
    await house.app_call(first.secret)
    await house.app_call(second.secret)

    await house.clock.advance(60)

    with pytest.raises(InvalidApiKey):
        await house.app_call(first.secret)  # known from memory
    house.identities.forget_all()
    with pytest.raises(InvalidApiKey):
        await house.app_call(first.secret)
    await house.app_call(second.secret)


async def test_an_inactive_app_is_told_so_only_with_the_right_secret(house: House) -> None:
    own = house.app(is_active=False)

    with pytest.raises(AppInactive):
        await house.app_call(own)
    with pytest.raises(InvalidApiKey):
        await house.app_call(new_key(PEPPER, APP_SECRET_PREFIX).secret)


@pytest.mark.parametrize("oid", ["", "a b", "\u00e9", "x" * 201, "a\tb", "a\x7f"])
async def test_a_malformed_user_is_a_bad_request_only_with_the_right_secret(house: House, oid: str) -> None:
    """T012."""
    own = house.app(creates=True)

    with pytest.raises(InvalidRequest):
        await house.app_call(own, oid=oid)
    with pytest.raises(InvalidApiKey):
        await house.app_call("wrong", oid=oid)
    assert house.store.created == []


async def test_an_unknown_user_is_created_only_for_an_app_that_may(house: House) -> None:
    """T016."""
    strict, lenient = house.app("crm"), house.app("erp", creates=True)

    with pytest.raises(UserUnknown):
        await house.app_call(strict, oid="bob")
    assert (await house.app_call(lenient, "erp", "bob")).user.oid == "bob"
    assert (await house.app_call(strict, oid="bob")).user.oid == "bob"
    assert house.store.created == [("bob", "erp")]


async def test_first_calls_at_once_create_a_user_once(house: House) -> None:
    """T109."""
    own = house.app(creates=True)
    house.store.gate.clear()
    calls = [asyncio.create_task(house.app_call(own, oid="bob")) for _ in range(8)]
    await house.clock.turns()
    house.store.gate.set()

    assert {identity.user.oid for identity in await asyncio.gather(*calls)} == {"bob"}
    assert house.store.created == [("bob", "crm")]


@pytest.mark.parametrize("fields", [{"is_active": False}, {"allowed_networks": (ip_network("192.168.0.0/16"),)}])
async def test_an_app_that_may_not_call_creates_nobody(house: House, fields: dict[str, Any]) -> None:
    own = house.app(creates=True, **fields)

    with pytest.raises((AppInactive, IpNotAllowed)):
        await house.app_call(own, oid="bob")
    assert house.store.created == []


async def test_an_app_calls_from_its_networks_only(house: House) -> None:
    own = house.app(allowed_networks=(ip_network("10.0.0.0/8"), ip_network("2001:db8::/32")))

    for address in ("10.1.2.3", "2001:db8::1", "::ffff:10.1.2.3"):
        await house.app_call(own, address=address)
    for stranger in ("192.168.0.1", "2001:db9::1", None, "unix"):
        with pytest.raises(IpNotAllowed):
            await house.app_call(own, address=stranger)


@pytest.mark.parametrize(
    ("user", "refusal"),
    [
        (a_user(payment_status=PaymentStatus.SUSPENDED), UserSuspended),
        (a_user(payment_status=PaymentStatus.EXPIRED), PaymentExpired),
        (a_user(payment_valid_until=date(2026, 1, 14)), PaymentExpired),
    ],
)
async def test_an_app_gets_no_further_than_its_user(house: House, user: User, refusal: type[Exception]) -> None:
    own = house.app()
    house.store.users["alice"] = user

    with pytest.raises(refusal):
        await house.app_call(own)


@pytest.mark.parametrize(("kind", "ref"), [("app", "crm"), ("user", "alice")])
async def test_a_change_of_app_or_user_drops_the_pair(house: House, kind: str, ref: str) -> None:
    own = house.app()
    await house.app_call(own)
    house.app(is_active=False)
    house.store.apps["crm"] = replace(house.store.apps["crm"], secrets=())

    await house.app_call(own)  # from memory
    house.identities.forget(kind, ref)
    with pytest.raises(InvalidApiKey):
        await house.app_call(own)


async def test_three_texts_that_join_alike_are_not_the_same_caller(house: House) -> None:
    """T008: what is remembered is keyed by all three, each told apart."""
    own = house.app("a", creates=True)
    house.app("ab", creates=True)
    house.store.apps["ab"] = replace(house.store.apps["ab"], secrets=house.store.apps["a"].secrets)

    first, second = await house.app_call(own, "a", "bc"), await house.app_call(own, "ab", "c")

    assert (first.user.oid, second.user.oid) == ("bc", "c")


async def test_a_known_pair_goes_on_working_while_the_store_is_away(house: House) -> None:
    """T098."""
    own = house.app()
    await house.app_call(own)
    house.store.is_away = True

    await house.app_call(own)
    with pytest.raises(DependencyUnavailable):
        await house.app_call(own, oid="bob")


async def test_days_of_grace_put_the_end_off(house: House) -> None:
    identities = Identities(
        store=house.store,
        pepper=PEPPER,
        clock=house.clock,
        zone=UTC,
        on_expired=house.noticed.append,
        until_stored=house.until_stored,
        create_user=house.store.create_user,
        grace_days=2,
    )
    late, later = (house.key(an_identity(a_user(payment_valid_until=date(2026, 1, day)))) for day in (13, 12))

    await identities.of(late.secret, address=None)
    with pytest.raises(PaymentExpired):
        await identities.of(later.secret, address=None)


# ── Floods of bad credentials ─────────────────────────────────────────────────────────────────────────────────────────


async def guess(house: House, *, address: str | None = "203.0.113.7") -> type[Exception]:
    with pytest.raises((InvalidApiKey, TooManyFailures)) as refused:
        await house.identities.of(new_key(PEPPER).secret, address=address)
    return refused.type


async def flood(house: House, seconds: int, *, per_s: int = 200, address: str = "203.0.113.7") -> list[type[Exception]]:
    told: list[type[Exception]] = []
    for _ in range(seconds * 10):
        tasks = [asyncio.create_task(guess(house, address=address)) for _ in range(per_s // 10)]
        await house.clock.advance(0.1)
        if tasks:
            await house.clock.advance(0.4 if not all(task.done() for task in tasks) else 0)
            told += [await task for task in tasks]
    return told


async def test_a_flood_of_guesses_is_told_to_stay_away_and_costs_few_look_ups(house: House) -> None:
    """T017."""
    told = await flood(house, 5)

    assert told[:5] == [InvalidApiKey] * 5
    assert told[-500:] == [TooManyFailures] * 500
    assert len(house.store.looked_up) < 60
    assert len(house.store.gathered) <= 5 * 5 / 0.35 + 1


async def test_a_good_key_works_from_where_the_flood_comes(house: House) -> None:
    """T017: one that is known at once, another after a moment."""
    known, unknown = house.key(), house.key()
    await house.identities.of(known.secret, address="203.0.113.7")
    await flood(house, 2)

    waiting = asyncio.create_task(house.identities.of(unknown.secret, address="203.0.113.7"))
    assert await house.identities.of(known.secret, address="203.0.113.7") == an_identity()
    await house.clock.advance(0.4)
    assert await waiting == an_identity()


async def test_other_addresses_do_not_suffer_and_a_network_of_ipv6_is_one(house: House) -> None:
    await flood(house, 4, address="2001:db8:1:2::1")

    assert await guess(house, address="2001:db8:1:3::1") is InvalidApiKey
    neighbour = asyncio.create_task(guess(house, address="2001:db8:1:2:ffff::9"))
    await house.clock.advance(0.4)
    assert await neighbour is TooManyFailures


async def test_whoever_stops_guessing_is_welcome_again(house: House) -> None:
    await flood(house, 2)
    await house.clock.advance(50)

    assert await guess(house) is InvalidApiKey


async def test_malformed_credentials_count_and_missing_ones_are_never_asked_about(house: House) -> None:
    told = []
    for _ in range(350):
        with pytest.raises((InvalidApiKey, TooManyFailures)) as refused:
            await house.identities.of("sk-nonsense", address=None)
        told.append(refused.type)

    assert told == [InvalidApiKey] * 300 + [TooManyFailures] * 50
    assert (house.store.looked_up, house.store.gathered) == ([], [])


async def test_keys_that_were_revoked_make_no_suspect_of_the_address_they_are_still_used_from(house: House) -> None:
    """T006: keys are made and revoked one after the other, each called with until it is refused; the next is known at once."""
    for _ in range(200):
        ended = house.key(an_identity(key=a_key(status=KeyStatus.REVOKED)))
        with pytest.raises(InvalidApiKey):
            await house.identities.of(ended.secret, address="203.0.113.7")

    assert await house.identities.of(house.key().secret, address="203.0.113.7") == an_identity()
    assert house.store.gathered == []


async def test_a_flood_of_a_revoked_key_is_told_to_stay_away_and_costs_one_look_up(house: House) -> None:
    """T017."""
    ended, told = house.key(an_identity(key=a_key(status=KeyStatus.REVOKED))), []
    for _ in range(3_100):
        with pytest.raises((InvalidApiKey, TooManyFailures)) as refused:
            await house.identities.of(ended.secret, address="203.0.113.7")
        told.append(refused.type)

    assert issubclass(told[0], InvalidApiKey)
    assert told[-1] is TooManyFailures
    assert len(house.store.looked_up) == 1


async def test_a_gathered_look_up_that_fails_has_failed_for_all_who_waited(house: House) -> None:
    await flood(house, 2)
    house.store.is_away = True

    calls = [asyncio.create_task(house.identities.of(new_key(PEPPER).secret, address="203.0.113.7")) for _ in range(20)]
    await house.clock.advance(1)

    told = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(error) for error in told} == {DependencyUnavailable}


async def test_a_caller_who_leaves_does_not_take_those_who_wait_with_him(house: House) -> None:
    key = house.key()
    await flood(house, 2)
    calls = [asyncio.create_task(house.identities.of(key.secret, address="203.0.113.7")) for _ in range(2)]
    await house.clock.turns()
    calls[0].cancel()
    await house.clock.advance(1)

    assert await calls[1] == an_identity()


async def test_guesses_at_apps_are_bounded_too(house: House) -> None:
    house.app()

    async def guess_app() -> type[Exception]:
        with pytest.raises((InvalidApiKey, TooManyFailures)) as refused:
            await house.app_call(new_key(PEPPER, APP_SECRET_PREFIX).secret)
        return refused.type

    calls = [asyncio.create_task(guess_app()) for _ in range(310)]
    await house.clock.advance(2)
    told = await asyncio.gather(*calls)
    calls = [asyncio.create_task(guess_app()) for _ in range(100)]
    await house.clock.advance(3)
    told += await asyncio.gather(*calls)

    assert told[-1] is TooManyFailures
    assert house.store.apps_looked_up < 330
