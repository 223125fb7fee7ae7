"""T110: a model that nobody knows the price of is named in the log, once."""

from __future__ import annotations

from typing import cast

from structlog.testing import capture_logs

from app.domain.catalog import Catalog, Model
from app.services.catalog import CatalogFollower
from app.services.identities import Identities
from app.storage.ports import CatalogStore
from tests import calls


class Store:
    def __init__(self, *models: Model) -> None:
        self.models = models

    async def load(self) -> Catalog:
        return Catalog.of(1, self.models)


class Forgetful:
    def forget_all(self) -> None:
        """There is nothing to forget."""


async def test_a_model_without_a_price_is_named_once_and_again_after_it_had_one() -> None:
    unpriced, priced = calls.a_model("new"), calls.a_model("new", price=calls.PRICE)
    store = Store(unpriced, calls.a_model("known", price=calls.PRICE))
    follower = CatalogFollower(store=cast(CatalogStore, store), identities=cast(Identities, Forgetful()))
    with capture_logs() as logged:
        await follower.load()
        await follower.load()
        store.models = (priced,)
        await follower.load()
        store.models = (unpriced,)
        await follower.load()
    assert [(line["event"], line["model"]) for line in logged] == [("price_unknown", "new")] * 2
