"""What every CatalogStore must do. A test module subclasses this and gives `catalogs` (whose price map knows the price of
`mapped` at OpenAI and of `mapped-too` at the demo) and `plant`."""

from __future__ import annotations

from dataclasses import replace

from app.domain.budget import Budget, PeriodKind
from app.domain.catalog import Endpoint, HealthCheck, HealthCheckKind, Model, ProviderKind, Strategy, Timeouts
from app.domain.limits import Limit, LimitKind
from app.domain.money import NanoUsd, PicoUsd
from app.domain.pricing import Price, Rates, Tier
from app.storage.ports import CatalogStore, ConfigChange
from tests.storage.planting import Planter

ID = "0192cccc-0000-7000-8000-00000000000{}"
MAPPED = Price("map:mapped", Rates(PicoUsd(1), PicoUsd(2)), source="price map")
MAPPED_TOO = Price("map:mapped-too", Rates(PicoUsd(3), PicoUsd(4)), source="price map")

MODEL = Model(
    "gpt-4",
    aliases=("gpt-four", "best"),
    strategy=Strategy.COST,
    fallbacks=("claude",),
    context_window_tokens=128_000,
    max_output_tokens=4_096,
    limits=(Limit(LimitKind.REQUESTS, 1_000, 60),),
    budgets=(Budget(PeriodKind.DAILY, None, NanoUsd(10**12)),),
)
FULL = Endpoint(
    ID.format(1),
    "gpt-4",
    ProviderKind.OPENAI,
    "mapped",
    "https://api.example.com/v1",
    credential="sk-upstream-ü",
    weight=3,
    priority=-1,
    max_concurrency=5,
    requests_per_minute=60,
    tokens_per_minute=10**6,
    timeouts=Timeouts(1.5, 2, 3, 4),
    health_check=HealthCheck(HealthCheckKind.NONE, 5.5),
    is_draining=True,
)
BARE = Endpoint(ID.format(2), "gpt-4", ProviderKind.DEMO, "mapped-too", "")
PRICE = Price(
    ID.format(3),
    Rates(*map(PicoUsd, (2_500_000, 10_000_000, 1_250_000, 3_000_000, 5_000_000, 11_000_000, 7, 0))),
    tiers=(Tier(128_000, Rates(PicoUsd(1), PicoUsd(2))), Tier(200_000, Rates(PicoUsd(3), PicoUsd(4), PicoUsd(5)))),
    request=PicoUsd(10**9),
    image=PicoUsd(2**60),
)


class CatalogStoreConformance:
    async def test_a_new_database_has_an_empty_catalog_and_a_revision(self, catalogs: CatalogStore) -> None:
        catalog = await catalogs.load()
        assert dict(catalog.models) == {}
        assert catalog.revision == await catalogs.revision() > 0

    async def test_a_model_reads_as_it_was_registered(self, catalogs: CatalogStore, plant: Planter) -> None:
        await plant.model(MODEL)
        await plant.price(PRICE, price_id=PRICE.id, model="gpt-4")
        await plant.endpoint(FULL)
        await plant.endpoint(BARE)
        found = (await catalogs.load()).models["gpt-4"]
        assert found.created_at_s > 0
        assert replace(found, created_at_s=0) == replace(MODEL, price=PRICE, endpoints=(FULL, BARE))

    async def test_names_and_aliases_lead_to_the_model(self, catalogs: CatalogStore, plant: Planter) -> None:
        await plant.model(MODEL)
        assert dict((await catalogs.load()).names) == {"gpt-4": "gpt-4", "gpt-four": "gpt-4", "best": "gpt-4"}

    async def test_the_newest_price_holds(self, catalogs: CatalogStore, plant: Planter) -> None:
        await plant.model(MODEL)
        await plant.endpoint(FULL)
        for number in (4, 6, 5):
            price = Price(ID.format(number), Rates(PicoUsd(number), PicoUsd(0)))
            await plant.price(price, price_id=price.id, model="gpt-4")
        cheap = Price(ID.format(7), Rates(PicoUsd(0), PicoUsd(0)))
        await plant.price(cheap, price_id=cheap.id, model="gpt-4", endpoint_id=FULL.id)
        model = (await catalogs.load()).models["gpt-4"]
        assert model.price is not None
        assert model.price.id == ID.format(5)
        assert model.endpoints[0].price == cheap

    async def test_without_a_price_of_its_own_a_model_costs_what_the_price_map_says(
        self, catalogs: CatalogStore, plant: Planter
    ) -> None:
        await plant.model(MODEL)
        await plant.endpoint(FULL)
        await plant.endpoint(BARE)
        model = (await catalogs.load()).models["gpt-4"]
        assert model.price == MAPPED
        assert [model.price_at(endpoint) for endpoint in model.endpoints] == [MAPPED, MAPPED_TOO]

    async def test_a_price_taken_back_leads_back_to_the_price_map(self, catalogs: CatalogStore, plant: Planter) -> None:
        await plant.model(MODEL)
        await plant.endpoint(FULL)
        await plant.price(PRICE, price_id=ID.format(3), model="gpt-4")
        await plant.price(None, price_id=ID.format(4), model="gpt-4")
        assert (await catalogs.load()).models["gpt-4"].price == MAPPED

    async def test_what_nobody_has_a_price_for_has_none(self, catalogs: CatalogStore, plant: Planter) -> None:
        await plant.model(MODEL)
        await plant.endpoint(replace(FULL, upstream_model="unheard of"))
        await plant.model(Model("lonely"))
        models = (await catalogs.load()).models
        assert models["gpt-4"].price is None
        assert models["lonely"].price is None

    async def test_changes_come_in_order_and_only_the_new_ones(self, catalogs: CatalogStore, plant: Planter) -> None:
        before = await catalogs.revision()
        assert await catalogs.changes_since(before) == []
        first, second = await plant.change("key", "k'1"), await plant.change("catalog", "gpt-4")
        changes = [ConfigChange(first, "key", "k'1"), ConfigChange(second, "catalog", "gpt-4")]
        assert await catalogs.changes_since(before) == changes
        assert await catalogs.changes_since(first) == changes[1:]
        assert await catalogs.revision() == second == (await catalogs.load()).revision

    async def test_a_database_that_was_restored_says_so(self, catalogs: CatalogStore, plant: Planter) -> None:
        now = await plant.change("key", "k1")
        (change,) = await catalogs.changes_since(now + 5)
        assert change.revision == now
        assert await catalogs.changes_since(now) == []

    async def test_changes_of_today_are_kept_and_of_older_ones_the_newest(
        self, catalogs: CatalogStore, plant: Planter
    ) -> None:
        before = await catalogs.revision()
        first, second = await plant.change("user", "ann"), await plant.change("user", "bob")
        await catalogs.forget_old_changes()
        assert [change.revision for change in await catalogs.changes_since(before)] == [first, second]

        await plant.age_changes(days=2)
        await catalogs.forget_old_changes()
        assert [change.revision for change in await catalogs.changes_since(before)] == [second]
