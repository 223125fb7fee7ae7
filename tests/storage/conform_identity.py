"""What every KeyStore must do. A test module subclasses this and gives `keys`, `plant` and `clock`, all of one store whose
payment dates are meant in Auckland."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from ipaddress import ip_network

import pytest

from app.domain.budget import Budget, PeriodKind, ReserveMode
from app.domain.identity import App, Identity, Key, KeyStatus, LogContent, Overflow, OverflowMode, PaymentStatus, User
from app.domain.limits import Limit, LimitKind
from app.domain.money import MAX_BUDGET_NANOUSD, NanoUsd
from app.storage.ports import KeyStore, RegisteredApp, StoredSecret
from tests.kit.clock import ManualClock
from tests.storage.planting import Planter
from tests.storage.records import KEY_A, KEY_B, NOON

DIGEST = bytes(range(32))
USER = User("user-1", PaymentStatus.ACTIVE, None)
KEY = Key(KEY_A, KeyStatus.ACTIVE, None, frozenset({"*"}))

RICH_USER = User(
    "o'brien \\ %_ ü",
    PaymentStatus.TRIAL,
    date(2027, 1, 31),
    limits=(Limit(LimitKind.TOKENS, 10**12, 86_400), Limit(LimitKind.CONCURRENCY, 3, 0)),
    budgets=(Budget(PeriodKind.TOTAL, None, MAX_BUDGET_NANOUSD),),
)
RICH_KEY = Key(
    KEY_B,
    KeyStatus.ACTIVE,
    datetime(2027, 1, 1, tzinfo=UTC),
    frozenset({"gpt-4", "claude"}),
    allowed_networks=(ip_network("10.0.0.0/8"), ip_network("2001:db8::1/128")),
    log_content=LogContent.METADATA,
    limits=(Limit(LimitKind.REQUESTS, 60, 60), Limit(LimitKind.REQUESTS, 1, 1)),
    budgets=(
        Budget(PeriodKind.MONTHLY, NanoUsd(8), NanoUsd(10), ReserveMode.EXPECTED),
        Budget(PeriodKind.DAILY, NanoUsd(0), NanoUsd(0)),
    ),
    overflow=Overflow(OverflowMode.FALLBACK, 2.5, "gpt-4o-mini"),
)

RICH_APP = RegisteredApp(
    App(
        "crm",
        is_active=False,
        allowed_models=frozenset({"gpt-4"}),
        allowed_networks=(ip_network("10.0.0.0/8"),),
        log_content=LogContent.METADATA,
        limits=(Limit(LimitKind.REQUESTS, 60, 60),),
        budgets=(Budget(PeriodKind.DAILY, None, NanoUsd(7)),),
    ),
    secrets=(),
    own_secret_only=True,
    may_create_users=True,
    user=None,
)


class KeyStoreConformance:
    async def test_an_unknown_digest_is_nobody(self, keys: KeyStore) -> None:
        assert await keys.identity_of_key(DIGEST) is None
        assert await keys.identity_of_key(b"") is None

    async def test_a_key_brings_its_owner_and_all_that_both_may_do(self, keys: KeyStore, plant: Planter) -> None:
        await plant.user(RICH_USER)
        await plant.key(RICH_KEY, owner=RICH_USER.oid, digest=DIGEST)
        assert await keys.identity_of_key(DIGEST) == Identity(RICH_USER, RICH_KEY)

    @pytest.mark.parametrize("limits", [None, ()])
    async def test_no_limits_of_its_own_is_not_the_same_as_none_at_all(
        self, keys: KeyStore, plant: Planter, limits: tuple[Limit, ...] | None
    ) -> None:
        key = Key(KEY_A, KeyStatus.ACTIVE, None, frozenset({"*"}), limits=limits)
        await plant.user(USER)
        await plant.key(key, owner=USER.oid, digest=DIGEST)
        found = await keys.identity_of_key(DIGEST)
        assert found is not None
        assert found.key == key

    async def test_who_may_not_call_is_known_all_the_same(self, keys: KeyStore, plant: Planter) -> None:
        suspended = User("user-2", PaymentStatus.SUSPENDED, date(2020, 1, 1))
        revoked = Key(KEY_A, KeyStatus.REVOKED, datetime(2020, 1, 1, tzinfo=UTC), frozenset())
        await plant.user(suspended)
        await plant.key(revoked, owner=suspended.oid, digest=DIGEST)
        assert await keys.identity_of_key(DIGEST) == Identity(suspended, revoked)

    async def test_an_app_that_nobody_registered_is_nobody(self, keys: KeyStore, plant: Planter) -> None:
        await plant.user(USER)
        assert await keys.registered_app("crm", USER.oid) is None

    async def test_an_app_brings_its_secrets_and_the_user_it_names(self, keys: KeyStore, plant: Planter) -> None:
        secrets = (StoredSecret(DIGEST, None), StoredSecret(DIGEST[::-1], datetime(2027, 1, 1, 1, 2, 3, tzinfo=UTC)))
        await plant.user(RICH_USER)
        await plant.app(replace(RICH_APP, secrets=secrets))
        found = await keys.registered_app("crm", RICH_USER.oid)
        assert found is not None
        assert set(found.secrets) == set(secrets)
        assert replace(found, secrets=()) == replace(RICH_APP, user=RICH_USER)

    @pytest.mark.parametrize("oid", ["nobody", "", "' OR 1=1--", "%"])
    async def test_an_app_may_name_a_user_who_is_not_there(self, keys: KeyStore, plant: Planter, oid: str) -> None:
        await plant.user(USER)
        await plant.app(RICH_APP)
        assert await keys.registered_app("crm", oid) == RICH_APP

    async def test_limits_of_others_are_not_mixed_in(self, keys: KeyStore, plant: Planter) -> None:
        await plant.user(RICH_USER)
        await plant.key(RICH_KEY, owner=RICH_USER.oid, digest=DIGEST)
        await plant.user(USER)
        await plant.key(KEY, owner=USER.oid, digest=DIGEST[::-1])
        assert await keys.identity_of_key(DIGEST[::-1]) == Identity(USER, KEY)

    @pytest.mark.parametrize("status", [PaymentStatus.ACTIVE, PaymentStatus.TRIAL])
    async def test_a_user_expires_when_his_last_paid_day_is_over_in_his_zone(
        self, keys: KeyStore, plant: Planter, clock: ManualClock, status: PaymentStatus
    ) -> None:
        await plant.user(User("u", status, date(2026, 1, 15)))
        await keys.mark_expired("u")  # noon in UTC is already the 16th in Auckland
        assert await plant.user_status("u") == "expired"

    async def test_one_who_paid_again_meanwhile_stays_as_he_is(self, keys: KeyStore, plant: Planter) -> None:
        await plant.user(User("renewed", PaymentStatus.ACTIVE, date(2026, 1, 16)))
        await plant.user(User("unlimited", PaymentStatus.ACTIVE, None))
        await plant.user(User("suspended", PaymentStatus.SUSPENDED, date(2020, 1, 1)))
        for oid in ("renewed", "unlimited", "suspended", "nobody"):
            await keys.mark_expired(oid)
        statuses = [await plant.user_status(oid) for oid in ("renewed", "unlimited", "suspended")]
        assert statuses == ["active", "active", "suspended"]

    async def test_the_last_use_is_the_latest_one(self, keys: KeyStore, plant: Planter) -> None:
        await plant.user(USER)
        await plant.key(KEY, owner=USER.oid, digest=DIGEST)
        late, early = NOON + timedelta(hours=1), NOON
        await keys.mark_used([])
        await keys.mark_used([(KEY_A, early), (KEY_A, late), (KEY_B, late), ("no uuid", late)])
        await keys.mark_used([(KEY_A, early)])
        assert await plant.key_used_at(KEY_A) == late

    async def test_marks_of_the_same_keys_in_any_order_do_not_block_each_other(
        self, keys: KeyStore, plant: Planter
    ) -> None:
        ids = [f"0192aaaa-0000-7000-8000-{number:012d}" for number in range(50)]
        await plant.user(USER)
        for number, key_id in enumerate(ids):
            key = Key(key_id, KeyStatus.ACTIVE, None, frozenset({"*"}))
            await plant.key(key, owner=USER.oid, digest=number.to_bytes(32, "big"))
        marks = [(key_id, NOON) for key_id in ids]
        await asyncio.gather(*(keys.mark_used(marks[::step]) for step in (1, -1) * 6))
        assert await plant.key_used_at(ids[-1]) == NOON
