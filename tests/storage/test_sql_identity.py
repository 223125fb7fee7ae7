"""The conformance suite of KeyStore on PostgreSQL."""

from __future__ import annotations

from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from app.domain.limits import Scope
from app.storage.ports import KeyStore
from app.storage.sql_identity import SqlKeyStore
from tests.kit.clock import ManualClock
from tests.storage.conform_identity import DIGEST, RICH_APP, RICH_KEY, RICH_USER, KeyStoreConformance
from tests.storage.planting import Planter, SqlPlanter


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def keys(engine: AsyncEngine, clock: ManualClock) -> KeyStore:
    return SqlKeyStore(engine, clock=clock, zone=ZoneInfo("Pacific/Auckland"))


@pytest.fixture
def plant(engine: AsyncEngine) -> Planter:
    return SqlPlanter(engine)


class TestSqlKeyStore(KeyStoreConformance):
    pass


async def test_an_identity_is_one_statement(engine: AsyncEngine, keys: KeyStore, plant: Planter) -> None:
    await plant.user(RICH_USER)
    await plant.key(RICH_KEY, owner=RICH_USER.oid, digest=DIGEST)
    seen: list[object] = []
    event.listen(engine.sync_engine, "before_cursor_execute", lambda *arguments: seen.append(arguments[2]))
    await keys.identity_of_key(DIGEST)
    assert len(seen) == 1
    await plant.app(RICH_APP)
    seen.clear()
    await keys.registered_app("crm", RICH_USER.oid)
    assert len(seen) == 1


async def test_the_budgets_of_a_holder_are_found_by_its_id(
    engine: AsyncEngine, plant: Planter, clock: ManualClock
) -> None:
    store = SqlKeyStore(engine, clock=clock, zone=ZoneInfo("UTC"))
    await plant.user(RICH_USER)
    await plant.key(RICH_KEY, owner=RICH_USER.oid, digest=DIGEST)
    assert await store.budgets_of(Scope.KEY, RICH_KEY.id) == RICH_KEY.budgets
    assert await store.budgets_of(Scope.USER, RICH_USER.oid) == RICH_USER.budgets
    assert await store.budgets_of(Scope.APP, "nobody") == ()
    assert await store.budgets_of(Scope.KEY, "no uuid") == ()
