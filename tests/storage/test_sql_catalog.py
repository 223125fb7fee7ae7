"""The conformance suite of CatalogStore on PostgreSQL, and what only a database with sealed credentials can get wrong."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database import transaction
from app.domain.pricing import Price
from app.storage.ports import CatalogStore
from app.storage.sealing import Sealer
from app.storage.sql_catalog import EndpointLeftOut, SqlCatalogStore
from tests.storage.conform_catalog import BARE, FULL, MAPPED, MAPPED_TOO, MODEL, CatalogStoreConformance
from tests.storage.planting import SECRET_KEY, SqlPlanter


def price_map(provider: str, upstream_model: str, _api_base: str) -> Price | None:
    return {("openai", "mapped"): MAPPED, ("demo", "mapped-too"): MAPPED_TOO}.get((provider, upstream_model))


def store_with(engine: AsyncEngine, *secret_keys: str) -> SqlCatalogStore:
    return SqlCatalogStore(engine, sealer=Sealer(*secret_keys), fallback_price=price_map)


@pytest.fixture
def catalogs(engine: AsyncEngine) -> CatalogStore:
    return store_with(engine, SECRET_KEY)


@pytest.fixture
def plant(engine: AsyncEngine) -> SqlPlanter:
    return SqlPlanter(engine)


class TestSqlCatalogStore(CatalogStoreConformance):
    pass


async def test_a_credential_sealed_under_another_secret_costs_only_its_own_endpoint(
    engine: AsyncEngine, plant: SqlPlanter, caplog: pytest.LogCaptureFixture
) -> None:
    await plant.model(MODEL)
    await plant.endpoint(FULL)
    await plant.endpoint(BARE)
    store = store_with(engine, "another secret key")
    with caplog.at_level(logging.ERROR):
        catalog = await store.load()
    assert catalog.models["gpt-4"].endpoints == (BARE,)
    reason = "its credential cannot be opened: it was sealed under another SECRET_KEY"
    assert store.left_out == (EndpointLeftOut(FULL.id, "gpt-4", reason),)
    assert FULL.id in caplog.text
    assert "sk-upstream" not in caplog.text


async def test_the_older_secret_still_opens(engine: AsyncEngine, plant: SqlPlanter) -> None:
    await plant.model(MODEL)
    await plant.endpoint(FULL)
    store = store_with(engine, "the new secret key", SECRET_KEY)
    assert (await store.load()).models["gpt-4"].endpoints == (FULL,)
    assert store.left_out == ()


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE endpoints SET api_base = 'https://evil.example/v1'",
        "UPDATE endpoints SET credential_sealed = set_byte(credential_sealed, 20, 1 + get_byte(credential_sealed, 20) % 9)",
        "UPDATE endpoints SET credential_sealed = ''",
        "UPDATE endpoints SET id = '0192cccc-0000-7000-8000-000000000009'",
        """UPDATE endpoints SET timeouts = '{"connect_seconds": "soon"}'""",
    ],
)
async def test_a_row_changed_by_hand_costs_only_its_own_endpoint(
    engine: AsyncEngine, plant: SqlPlanter, tampering: str
) -> None:
    await plant.model(MODEL)
    await plant.endpoint(FULL)
    async with transaction(engine) as connection:
        await connection.exec_driver_sql(tampering)
    await plant.endpoint(BARE)
    store = store_with(engine, SECRET_KEY)
    assert (await store.load()).models["gpt-4"].endpoints == (BARE,)
    assert len(store.left_out) == 1


async def test_a_catalog_is_of_one_moment(engine: AsyncEngine, plant: SqlPlanter) -> None:
    await plant.model(MODEL)
    revision = await plant.change("catalog", "gpt-4")
    async with transaction(engine, read_only_snapshot=True) as before:
        assert (await before.execute(text("SELECT revision FROM config_revision"))).scalar_one() == revision
        await plant.model(replace(MODEL, name="later", aliases=()))
        await plant.change("catalog", "later")
        assert (await before.execute(text("SELECT count(*) FROM models"))).scalar_one() == 1
    catalog = await store_with(engine, SECRET_KEY).load()
    assert (catalog.revision, list(catalog.models)) == (revision + 1, ["gpt-4", "later"])
