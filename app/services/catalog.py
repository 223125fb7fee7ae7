"""This process's view of the configuration: one immutable catalog, swapped whole when a newer revision can be loaded.

A change is told by a message and, should that be lost, found by asking for the revision once a second. What a change touched is
dropped from memory before the new revision counts as seen. Of the catalog only what changed is read and made anew; the rest is shared
with the one before. A catalog that cannot be loaded leaves the old one in place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

from app.domain.catalog import EMPTY, Catalog, Model
from app.exceptions import DependencyUnavailable
from app.services.identities import Identities
from app.storage.ports import CatalogStore, ConfigChange
from app.telemetry import CONFIG_FAILING, CONFIG_LAG_SECONDS, CONFIG_REVISION, logger

POLL_S = 1.0
GATHER_S = 0.025
"""Between two looks that messages ask for: a hundred changes a second are read forty times at most. The first is looked for at
once, and what a message names is dropped from memory without any look."""


async def _nobody(_: Sequence[ConfigChange]) -> None:
    """Is told of changes, and does nothing."""


class CatalogFollower:
    def __init__(
        self, *, store: CatalogStore, identities: Identities, on_swap: Callable[[Catalog], None] = lambda _: None
    ) -> None:
        self._store = store
        self._identities = identities
        self._on_swap = on_swap
        self._wakeup = asyncio.Event()
        self._seen = 0
        self._refreshing = asyncio.Lock()
        self._dropped: set[int] = set()
        """Revisions not taken over yet whose message was heard: what they touched and was read since is of after the change."""
        self._unpriced: set[str] = set()
        """Models without a price that the log already names."""
        self.on_changes: Callable[[Sequence[ConfigChange]], Awaitable[None]] = _nobody
        """Is told of what changed, once it holds here. What it raises has the changes taken over again at the next look."""
        self.current: Catalog = EMPTY
        self.loaded = asyncio.Event()

    @property
    def revision(self) -> int:
        """The newest revision of the configuration that this process has taken over."""
        return self._seen

    @property
    def is_loaded(self) -> bool:
        return self.loaded.is_set()

    def poke(self) -> None:
        """A message says that something changed."""
        self._wakeup.set()

    def heard(self, revision: int, kind: str, ref: str) -> None:
        """A message says what changed: it is dropped from memory at once, and all else is asked for. Without a revision it says
        only that something did; of one that was taken over already, as every change of this process's own, nothing is asked."""
        if kind:
            self._identities.forget(kind, ref)
        if not 0 < revision <= self._seen:
            if kind:
                self._dropped.add(revision)
            self.poke()

    async def load(self) -> None:
        """Load the catalog as it stands. Raises: DependencyUnavailable."""
        catalog = await self._store.load()
        self._identities.forget_all()
        self._swap(catalog)
        self._seen = catalog.revision
        CONFIG_REVISION.set(self._seen)
        self.loaded.set()

    async def catch_up(self, revision: int) -> None:
        """Take over a change that this process made itself, before its answer is sent. Raises: DependencyUnavailable."""
        if self.is_loaded and self._seen < revision:
            async with self._refreshing:
                if self._seen < revision:  # or whoever was before us took it over as well
                    await self._refresh()

    async def refresh(self) -> None:
        """Take over what changed since the last look. Raises: DependencyUnavailable."""
        async with self._refreshing:
            await self._refresh()

    async def _refresh(self) -> None:
        if not self.is_loaded:
            await self.load()
            return
        changes = await self._store.changes_since(self._seen)
        if not changes:
            return
        has_gap = changes[0].revision != self._seen + 1
        if has_gap or any(change.kind == "secret_key" for change in changes):
            self._identities.forget_all()  # a secret key's, so that each credential's digest follows at its next use
        if has_gap:
            self._dropped.clear()  # a restored database gives their numbers to other changes
        for change in changes:
            if change.revision not in self._dropped:
                self._identities.forget(change.kind, change.ref)
        if has_gap or any(change.kind == "secret_key" for change in changes):
            self._swap(await self._store.load())
        elif any(change.kind == "catalog" and change.revision > self.current.revision for change in changes):
            self._swap(await self._store.renewed(self.current, self._seen))
        await self.on_changes(changes)
        self._seen = max(change.revision for change in changes)
        self._dropped = {revision for revision in self._dropped if revision > self._seen}
        CONFIG_REVISION.set(self._seen)
        for change in changes:
            CONFIG_LAG_SECONDS.observe(change.age_s)

    async def forget_old_changes(self) -> None:
        """For a chore. Raises: DependencyUnavailable."""
        await self._store.forget_old_changes()

    async def follow(self) -> None:
        """Refresh on every message and at least every `POLL_S`, for ever."""
        is_behind = False
        while True:
            try:
                self._wakeup.clear()
                await self.refresh()
                CONFIG_FAILING.set(0)
                if is_behind:
                    logger.info("configuration_followed_again", revision=self._seen)
                is_behind = False
            except DependencyUnavailable:
                if not is_behind:
                    logger.warning("configuration_not_followed", revision=self._seen)
                is_behind = True
                CONFIG_FAILING.set(1)
            except Exception:
                CONFIG_FAILING.set(
                    1
                )  # a configuration that nobody can read: the supervisor says so and tries again, the last one serves
                raise
            await self._next_look()

    async def _next_look(self) -> None:
        looked_s = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(POLL_S):
                await self._wakeup.wait()
        except TimeoutError:
            return
        await asyncio.sleep(looked_s + GATHER_S - asyncio.get_running_loop().time())

    def _swap(self, catalog: Catalog) -> None:
        before, self.current = self.current.models, catalog
        self._name_unpriced(model for model in catalog.models.values() if model is not before.get(model.name))
        self._on_swap(catalog)

    def _name_unpriced(self, changed: Iterable[Model]) -> None:
        """Tell once of every model that would serve calls for which nobody knows what they cost."""
        for model in changed:
            unpriced = [endpoint.id for endpoint in model.endpoints if model.price_at(endpoint) is None]
            if unpriced and model.name not in self._unpriced:
                logger.warning("price_unknown", model=model.name, endpoints=unpriced)
                self._unpriced.add(model.name)
            elif not unpriced:
                self._unpriced.discard(model.name)
