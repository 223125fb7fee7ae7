"""Following the configuration: swapped whole when a newer one can be loaded, kept when not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest

from app.domain.catalog import EMPTY, Catalog
from app.domain.identity import Identity
from app.exceptions import DependencyUnavailable
from app.services import catalog as catalog_module
from app.services.api_key import NewKey, new_key, pepper_of
from app.services.catalog import CatalogFollower
from app.services.identities import Identities
from app.storage.ports import ConfigChange, RegisteredApp
from tests.calls import a_key, a_model, a_user, an_identity
from tests.kit.clock import ManualClock

PEPPER = pepper_of("a-secret-key-that-only-these-tests-know")


class FakeStore:
    """The configuration as SQL holds it: a catalog, its revision, and what changed since."""

    def __init__(self) -> None:
        self.changes: list[ConfigChange] = []
        self.models = [a_model("first")]
        self.is_away = False
        self.is_broken = False
        self.loads = 0
        self.renewals: list[int] = []
        """The revision that each began at."""
        self.asked = asyncio.Condition()
        self.times_asked = 0

    @property
    def revision_now(self) -> int:
        return self.changes[-1].revision if self.changes else 0

    def change(self, kind: str, ref: str) -> int:
        self.changes.append(ConfigChange(self.revision_now + 1, kind, ref))
        return self.revision_now

    def register(self, name: str) -> int:
        self.models.append(a_model(name))
        return self.change("catalog", name)

    async def load(self) -> Catalog:
        if self.is_away:
            raise DependencyUnavailable("database")
        if self.is_broken:
            raise ValueError("a row that cannot be understood")
        self.loads += 1
        return Catalog.of(self.revision_now, self.models)

    async def renewed(self, catalog: Catalog, since: int) -> Catalog:
        if self.is_broken:
            raise ValueError("a row that cannot be understood")
        self.renewals.append(since)
        return catalog.renewed(self.revision_now, self.models)

    async def revision(self) -> int:
        return self.revision_now

    async def changes_since(self, revision: int) -> list[ConfigChange]:
        async with self.asked:
            self.times_asked += 1
            self.asked.notify_all()
        if self.is_away:
            raise DependencyUnavailable("database")
        if self.revision_now < revision:
            return [ConfigChange(self.revision_now, "database", "")]
        return [change for change in self.changes if change.revision > revision]

    async def forget_old_changes(self) -> None:
        del self.changes[:-1]

    async def until_asked_again(self, times: int) -> None:
        async with self.asked:
            goal = self.times_asked + times
            await asyncio.wait_for(self.asked.wait_for(lambda: self.times_asked >= goal), 10)


class FakeKeyStore:
    def __init__(self) -> None:
        self.rows: dict[bytes, Identity] = {}
        self.look_ups = 0

    async def identity_of_key(self, digest: bytes) -> Identity | None:
        self.look_ups += 1
        return self.rows.get(digest)

    async def registered_app(self, app_id: str, user_oid: str) -> RegisteredApp | None:
        return None

    async def create_user(self, oid: str, app_id: str) -> None: ...

    async def identities_of_keys(self, digests: Sequence[bytes]) -> dict[bytes, Identity]:
        found = {digest: await self.identity_of_key(digest) for digest in digests}
        return {digest: identity for digest, identity in found.items() if identity is not None}

    async def mark_expired(self, user_oid: str) -> None: ...

    async def mark_used(self, used: Sequence[tuple[str, datetime]]) -> None: ...


async def nothing(_: str) -> None:
    """Nobody expires here."""


class House:
    def __init__(self) -> None:
        self.store = FakeStore()
        self.keys = FakeKeyStore()
        self.identities = Identities(
            store=self.keys,
            pepper=PEPPER,
            clock=ManualClock(),
            zone=UTC,
            on_expired=lambda _: None,
            until_stored=nothing,
            create_user=self.keys.create_user,
        )
        self.swapped: list[Catalog] = []
        self.follower = CatalogFollower(store=self.store, identities=self.identities, on_swap=self.swapped.append)

    async def known_key(self, oid: str) -> NewKey:
        key = new_key(PEPPER)
        self.keys.rows[key.digest] = an_identity(a_user(oid=oid), key=a_key(id=f"key of {oid}"))
        await self.identities.of_key(key.secret, address=None)
        return key

    def names(self) -> list[str]:
        return list(self.follower.current.models)


@pytest.fixture
def house() -> House:
    return House()


@asynccontextmanager
async def following(house: House) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(house.follower.follow())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_before_the_first_load_there_is_an_empty_catalog_and_it_says_so(house: House) -> None:
    assert house.follower.current is EMPTY
    assert not house.follower.is_loaded


async def test_a_load_swaps_the_catalog_and_drops_all_identities(house: House) -> None:
    await house.known_key("alice")

    await house.follower.load()

    assert house.names() == ["first"]
    assert house.follower.is_loaded
    assert house.swapped == [house.follower.current]
    assert len(house.identities) == 0


async def test_a_first_load_that_fails_leaves_it_unloaded_and_the_next_refresh_loads(house: House) -> None:
    house.store.is_away = True
    with pytest.raises(DependencyUnavailable):
        await house.follower.refresh()
    assert not house.follower.is_loaded
    house.store.is_away = False

    await house.follower.refresh()

    assert house.names() == ["first"]


async def test_a_refresh_without_changes_swaps_nothing(house: House) -> None:
    await house.follower.load()
    before = house.follower.current

    await house.follower.refresh()

    assert house.follower.current is before
    assert house.store.loads == 1


async def test_a_change_of_the_catalog_swaps_it_whole(house: House) -> None:
    await house.follower.load()
    before = house.follower.current
    house.store.register("second")

    await house.follower.refresh()

    assert house.names() == ["first", "second"]
    assert list(before.models) == ["first"]
    assert house.follower.current.revision == 1
    assert (house.store.loads, house.store.renewals) == (1, [0])


async def test_a_change_of_a_user_drops_his_identities_without_loading_the_catalog(house: House) -> None:
    await house.follower.load()
    alice, bob = await house.known_key("alice"), await house.known_key("bob")
    house.keys.look_ups = 0
    house.store.change("user", "alice")

    await house.follower.refresh()
    await house.identities.of_key(bob.secret, address=None)
    assert house.keys.look_ups == 0
    await house.identities.of_key(alice.secret, address=None)

    assert house.keys.look_ups == 1
    assert house.store.loads == 1


async def test_a_catalog_that_cannot_be_loaded_leaves_the_old_one_and_is_tried_again(house: House) -> None:
    await house.follower.load()
    house.store.register("second")
    house.store.is_broken = True
    with pytest.raises(ValueError, match="cannot be understood"):
        await house.follower.refresh()
    assert house.names() == ["first"]
    house.store.is_broken = False

    await house.follower.refresh()

    assert house.names() == ["first", "second"]


async def test_who_is_further_behind_than_changes_are_kept_reads_all_anew(house: House) -> None:
    await house.follower.load()
    alice = await house.known_key("alice")
    house.store.change("user", "alice")
    house.store.register("second")
    house.store.change("user", "bob")
    await house.store.forget_old_changes()
    house.keys.look_ups = 0

    await house.follower.refresh()
    await house.identities.of_key(alice.secret, address=None)

    assert house.names() == ["first", "second"]
    assert house.keys.look_ups == 1
    assert house.follower.revision == 3


async def test_a_change_of_ones_own_is_taken_over_at_once_and_only_if_it_is_new(house: House) -> None:
    await house.follower.load()
    revision = house.store.register("second")

    await house.follower.catch_up(revision)
    await house.follower.catch_up(revision)

    assert house.names() == ["first", "second"]
    assert house.store.times_asked == 1


async def test_changes_made_at_once_are_read_once_by_whoever_comes_first(house: House) -> None:
    await house.follower.load()
    revisions = [house.store.register(f"model {number}") for number in range(20)]

    await asyncio.gather(*map(house.follower.catch_up, revisions))

    assert len(house.names()) == 21
    assert house.store.renewals == [0]
    assert house.store.times_asked == 1


async def test_what_was_read_with_an_earlier_change_is_not_read_again(house: House) -> None:
    await house.follower.load()
    house.store.register("second")
    seen = house.store.changes[:]
    house.store.register("third")  # committed between the two statements of one look
    all_changes, house.store.changes = house.store.changes, seen
    renewed = house.store.renewed

    async def with_the_third(catalog: Catalog, since: int) -> Catalog:
        house.store.changes = all_changes
        return await renewed(catalog, since)

    house.store.renewed = with_the_third  # type: ignore[method-assign]
    await house.follower.refresh()
    assert (house.follower.revision, house.follower.current.revision) == (1, 2)

    await house.follower.refresh()

    assert house.follower.revision == 2
    assert house.store.renewals == [0]


async def test_what_is_read_after_its_message_is_kept_when_the_change_is_taken_over(house: House) -> None:
    await house.follower.load()
    bob = await house.known_key("bob")
    first, second = house.store.change("user", "alice"), house.store.change("user", "bob")
    house.follower.heard(first, "user", "alice")
    alice = await house.known_key("alice")
    house.keys.look_ups = 0

    await house.follower.refresh()
    await house.identities.of_key(alice.secret, address=None)
    assert house.keys.look_ups == 0
    await house.identities.of_key(bob.secret, address=None)

    assert house.keys.look_ups == 1
    assert house.follower.revision == second


async def test_a_database_that_was_restored_to_what_it_was_is_read_anew(house: House) -> None:
    """Keys that were made since are gone, and what comes is counted from an earlier revision on."""
    await house.follower.load()
    backup = (house.store.changes[:], house.store.models[:])
    for number in range(3):
        house.store.register(f"model {number}")
    await house.follower.refresh()
    alice = await house.known_key("alice")
    house.store.changes, house.store.models = backup
    house.keys.look_ups = 0

    await house.follower.refresh()
    await house.identities.of_key(alice.secret, address=None)

    assert (house.names(), house.follower.revision, house.keys.look_ups) == (["first"], 0, 1)
    house.store.register("second")
    await house.follower.refresh()
    assert house.names() == ["first", "second"]


async def test_a_message_about_what_was_taken_over_already_asks_for_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_module, "POLL_S", 3600.0)
    await house.follower.load()
    async with following(house):
        await house.store.until_asked_again(1)
        revision = house.store.change("user", "alice")
        await house.follower.catch_up(revision)
        asked = house.store.times_asked

        house.follower.heard(revision, "user", "alice")
        await asyncio.sleep(0.1)

        assert house.store.times_asked == asked


async def test_many_messages_in_a_row_are_looked_for_together(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "POLL_S", 3600.0)
    monkeypatch.setattr(catalog_module, "GATHER_S", 0.2)
    await house.follower.load()
    async with following(house):
        await house.store.until_asked_again(1)
        for number in range(100):
            house.store.register(f"model {number}")
            house.follower.heard(house.store.revision_now, "catalog", f"model {number}")
            await asyncio.sleep(0.001)
        async with asyncio.timeout(10):
            while house.follower.revision < 100:
                await asyncio.sleep(0.01)

    assert len(house.names()) == 101
    assert len(house.store.renewals) < 50


async def test_before_the_first_load_there_is_nothing_to_catch_up_with(house: House) -> None:
    await house.follower.catch_up(5)

    assert not house.follower.is_loaded
    assert house.store.loads == 0


async def test_a_message_makes_the_follower_look_at_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "POLL_S", 3600.0)
    await house.follower.load()
    async with following(house):
        await house.store.until_asked_again(1)
        house.store.register("second")
        looked = asyncio.create_task(house.store.until_asked_again(1))
        await asyncio.sleep(0)
        house.follower.poke()
        await looked
        await asyncio.wait_for(house.follower.catch_up(1), 10)

        assert house.names() == ["first", "second"]


async def test_a_lost_message_is_made_good_by_asking_regularly(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "POLL_S", 0.001)
    await house.follower.load()
    async with following(house):
        await house.store.until_asked_again(1)
        house.store.register("second")
        await house.store.until_asked_again(2)

        assert house.names() == ["first", "second"]


async def test_the_follower_outlives_an_absence_of_the_store(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "POLL_S", 0.001)
    await house.follower.load()
    house.store.is_away = True
    async with following(house) as task:
        await house.store.until_asked_again(3)
        house.store.register("second")
        house.store.is_away = False
        await house.store.until_asked_again(2)

        assert house.names() == ["first", "second"]
        assert not task.done()


async def test_what_a_message_names_is_dropped_at_once_also_while_the_database_is_slow(house: House) -> None:
    await house.follower.load()
    key = await house.known_key("alice")
    other = await house.known_key("bob")
    house.keys.look_ups = 0

    house.follower.heard(1, "user", "alice")
    for each in (key, other):
        await house.identities.of_key(each.secret, address=None)

    assert house.keys.look_ups == 1
