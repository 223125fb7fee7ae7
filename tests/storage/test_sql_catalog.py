"""The conformance suite of CatalogStore on PostgreSQL, and what only a database with sealed credentials can get wrong."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from random import Random
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database import transaction
from app.domain.access import Actor, Role
from app.domain.budget import Budget, PeriodKind
from app.domain.catalog import ProviderKind, Shadow, Timeouts
from app.domain.limits import Limit, LimitKind
from app.domain.money import NanoUsd, PicoUsd
from app.domain.pricing import Price, Rates
from app.services.manage_catalog import NewCredential
from app.services.management import Management
from app.storage.management_ports import EndpointSpec, ModelSpec, UserSpec
from app.storage.ports import CatalogStore
from app.storage.sealing import Sealer
from app.storage.sql_catalog import EndpointLeftOut, SqlCatalogStore
from tests.admin_fixtures import SECRET_KEY as HOUSE_KEY
from tests.admin_fixtures import open_gateway
from tests.storage.conform_catalog import BARE, FULL, MAPPED, MAPPED_TOO, MODEL, CatalogStoreConformance
from tests.storage.planting import SECRET_KEY, SqlPlanter

OWNER = Actor("owner", Role.OWNER)


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


# ── What changed, and nothing else ────────────────────────────────────────────────────────────────────────────────────


async def _edit_a_price(commands: Management, world: World) -> None:
    await commands.models.patch(OWNER, world.model(), {"price": world.price()})


async def _take_a_price_back(commands: Management, world: World) -> None:
    await commands.models.patch(OWNER, world.model(), {"price": None})


async def _price_an_endpoint(commands: Management, world: World) -> None:
    await commands.endpoints.patch(OWNER, world.endpoint(), {"price": world.price()})


async def _create_a_model(commands: Management, world: World) -> None:
    name = world.new_name()
    await commands.models.create(OWNER, ModelSpec(name, aliases=(f"alias of {name}",), price=world.price()))
    world.models.append(name)


async def _edit_a_model(commands: Management, world: World) -> None:
    limits = (Limit(LimitKind.REQUESTS, world.number(), 60),)
    budgets = (Budget(PeriodKind.DAILY, None, NanoUsd(world.number())),)
    await commands.models.patch(OWNER, world.model(), {"limits": limits, "budgets": budgets, "context_window": 4096})


async def _rename_an_alias(commands: Management, world: World) -> None:
    await commands.models.patch(OWNER, world.model(), {"aliases": (world.new_name(), world.new_name())})


async def _name_another_model(commands: Management, world: World) -> None:
    """Backwards only, so that no circle comes about."""
    name, other = sorted(world.random.sample(world.models, 2), key=world.models.index, reverse=True)
    await commands.models.patch(OWNER, name, {"fallbacks": (other,), "shadow": Shadow(other, 5.0)})


async def _delete_a_model(commands: Management, world: World) -> None:
    name = world.model()
    await commands.models.delete(OWNER, name, force=True)
    world.models.remove(name)
    world.endpoints = {id: model for id, model in world.endpoints.items() if model != name}


async def _delete_a_model_and_make_it_anew(commands: Management, world: World) -> None:
    name = world.model()
    await commands.models.delete(OWNER, name, force=True)
    await commands.models.create(OWNER, ModelSpec(name))
    world.models.append(world.models.pop(world.models.index(name)))
    world.endpoints = {id: model for id, model in world.endpoints.items() if model != name}


async def _add_an_endpoint(commands: Management, world: World) -> None:
    model, provider = world.model(), world.random.choice([ProviderKind.OPENAI, ProviderKind.DEMO])
    base = "https://api.example.com/v1" if provider is ProviderKind.OPENAI else ""
    spec = EndpointSpec(model, provider, world.random.choice(["mapped", "mapped-too", "unheard of"]), base)
    row = await commands.endpoints.create(OWNER, spec, NewCredential("sk-upstream" if base else None))
    world.endpoints[row.id] = model


async def _edit_an_endpoint(commands: Management, world: World) -> None:
    await commands.endpoints.patch(OWNER, world.endpoint(), {"priority": world.number(), "timeouts": Timeouts(1.5)})


async def _drain_an_endpoint(commands: Management, world: World) -> None:
    await commands.endpoints.drain(OWNER, world.endpoint(), draining=world.random.random() < 0.7)


async def _delete_an_endpoint(commands: Management, world: World) -> None:
    endpoint = world.endpoint()
    await commands.endpoints.delete(OWNER, endpoint, force=True)
    del world.endpoints[endpoint]


async def _edit_a_user(commands: Management, world: World) -> None:
    await commands.users.create(OWNER, UserSpec(world.new_name()))


CHANGES = [
    _create_a_model,
    _edit_a_model,
    _rename_an_alias,
    _name_another_model,
    _delete_a_model,
    _delete_a_model_and_make_it_anew,
    _edit_a_price,
    _take_a_price_back,
    _add_an_endpoint,
    _price_an_endpoint,
    _edit_an_endpoint,
    _drain_an_endpoint,
    _delete_an_endpoint,
    _edit_a_user,
]


@dataclass(slots=True)
class World:
    """What there is to be changed, and chance with a known seed."""

    random: Random
    models: list[str] = field(default_factory=list)
    endpoints: dict[str, str] = field(default_factory=dict)
    """Id → model."""
    names: Iterator[int] = field(default_factory=count)

    def model(self) -> str:
        return self.random.choice(self.models)

    def endpoint(self) -> str:
        return self.random.choice(sorted(self.endpoints))

    def new_name(self) -> str:
        return f"name-{next(self.names)}"

    def number(self) -> int:
        return self.random.randrange(1, 1000)

    def price(self) -> Price:
        return Price("", Rates(PicoUsd(self.number()), PicoUsd(self.number())))


async def _grown(commands: Management, world: World) -> None:
    for change in [_create_a_model] * 4 + [_add_an_endpoint] * 8 + [_name_another_model] * 3:
        await change(commands, world)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
async def test_what_one_change_renews_is_what_a_load_of_all_finds(
    engine: AsyncEngine, change: Callable[[Management, World], Awaitable[None]]
) -> None:
    gateway, world, store = open_gateway(engine), World(Random(change.__name__)), store_with(engine, HOUSE_KEY)
    await _grown(gateway.management, world)
    before = await store.load()

    await change(gateway.management, world)
    renewed = await store.renewed(before, before.revision)

    loaded = await store.load()
    assert (renewed.revision, list(renewed.models.items())) == (loaded.revision, list(loaded.models.items()))
    assert dict(renewed.names) == dict(loaded.names)
    unchanged = [name for name, model in before.models.items() if renewed.models.get(name) == model]
    assert all(renewed.models[name] is before.models[name] for name in unchanged)


@pytest.mark.parametrize("seed", range(3))
async def test_many_changes_renewed_a_few_at_a_time_are_what_a_load_of_all_finds(
    engine: AsyncEngine, seed: int
) -> None:
    gateway, world, store = open_gateway(engine), World(Random(seed)), store_with(engine, HOUSE_KEY)
    await _grown(gateway.management, world)
    catalog, since = await store.load(), 0
    for _ in range(12):
        since = catalog.revision
        for change in world.random.choices(CHANGES, k=world.random.randrange(1, 5)):
            if len(world.models) < 3:
                change = _create_a_model
            elif not world.endpoints:
                change = _add_an_endpoint
            await change(gateway.management, world)
        catalog = await store.renewed(catalog, since)

        loaded = await store.load()
        assert list(catalog.models.items()) == list(loaded.models.items())
        assert dict(catalog.names) == dict(loaded.names)


async def test_an_endpoint_that_was_left_out_is_so_until_it_can_be_used_or_goes(engine: AsyncEngine) -> None:
    gateway, store = open_gateway(engine), store_with(engine, HOUSE_KEY)
    commands = gateway.management
    spec = EndpointSpec("m", ProviderKind.OPENAI, "mapped", "https://api.example.com/v1")
    for name in ("m", "other"):
        await commands.models.create(OWNER, ModelSpec(name))
    mended, gone = [(await commands.endpoints.create(OWNER, spec, NewCredential("sk-upstream"))).id for _ in range(2)]
    other = await commands.endpoints.create(OWNER, replace(spec, model="other"), NewCredential("sk-upstream"))
    await gateway.execute("UPDATE endpoints SET credential_sealed = ''")
    catalog = await store.load()
    assert {each.endpoint_id for each in store.left_out} == {mended, gone, other.id}

    await commands.endpoints.patch(OWNER, mended, {}, NewCredential("sk-new"))
    await commands.endpoints.delete(OWNER, gone, force=True)
    catalog = await store.renewed(catalog, catalog.revision)

    assert [endpoint.id for endpoint in catalog.models["m"].endpoints] == [mended]
    assert [each.endpoint_id for each in store.left_out] == [other.id]


async def test_of_a_thousand_models_one_change_reads_one(engine: AsyncEngine, plant: SqlPlanter) -> None:
    """However many there are, a change is a handful of statements whose answers are about what changed."""
    gateway, store = open_gateway(engine), store_with(engine, HOUSE_KEY)
    async with transaction(engine) as connection:
        await connection.execute(text("INSERT INTO models (name) SELECT 'm' || n FROM generate_series(1, 1000) AS n"))
    before = await store.load()
    await gateway.management.models.patch(OWNER, "m500", {"context_window": 1})
    answered = list[int]()

    def note(*arguments: Any) -> None:
        answered.append(arguments[1].rowcount)

    event.listen(engine.sync_engine, "after_cursor_execute", note)
    renewed = await store.renewed(before, before.revision)

    assert sum(rows for rows in answered if rows > 0) < 10
    assert len(answered) < 10
    assert [name for name, model in renewed.models.items() if model is not before.models[name]] == ["m500"]


async def test_a_model_that_was_written_by_hand_is_found_with_the_next_change(
    engine: AsyncEngine, plant: SqlPlanter
) -> None:
    """Nobody noted it as a change; the gateway follows all the same, and shows what there is."""
    gateway, store = open_gateway(engine), store_with(engine, HOUSE_KEY)
    await gateway.management.models.create(OWNER, ModelSpec("before"))
    before = await store.load()
    await gateway.execute("INSERT INTO models (name) VALUES ('by-hand')")
    await gateway.management.models.create(OWNER, ModelSpec("after"))

    renewed = await store.renewed(before, before.revision)

    assert sorted(renewed.models) == ["after", "before", "by-hand"]
    assert renewed == await store.load()
