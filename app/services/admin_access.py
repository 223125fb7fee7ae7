"""Who an admin credential belongs to. Nothing is cached: a revoked token ends with the next request.

Wrong tokens are counted for the network they come from. From the thirtieth or so on, what comes from there is compared with the digests
of all administrators, which are read four times a second at most, and only what is among them is looked up; from the three hundredth
on, whatever is not is told to stay away (429). So a flood of guesses costs few statements, and a token that is one of ours is heard
from anywhere, at any time.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from app.clock import Clock
from app.domain.access import BOOTSTRAP, Actor, Role
from app.exceptions import DependencyUnavailable, InvalidApiKey
from app.services.api_key import ADMIN_TOKEN_PREFIX, Redigest, digest_of, is_same_secret
from app.services.strangers import Strangers
from app.storage.management_ports import AdminRow, ManagementStore

KNOWN_FOR_S = 0.25
"""Time between two readings of all digests, which is what a flood of invented tokens costs. A token made a moment ago waits for the
next one."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose token it is. `admin_id` is None for the owner by `ADMIN_TOKEN`, who has no row."""

    actor: Actor
    admin_id: str | None = None


class AdminAccess:
    def __init__(
        self,
        store: ManagementStore,
        clock: Clock,
        pepper: bytes,
        bootstrap_token: str | None,
        older_peppers: tuple[bytes, ...] = (),
        redigest: Redigest | None = None,
    ) -> None:
        """`redigest` is told of a digest under an older pepper, and what it is under the present one."""
        self.bootstrap_token = bootstrap_token
        self._store = store
        self._clock = clock
        self._peppers = (pepper, *older_peppers)
        self._redigest = redigest
        self._strangers = Strangers(clock)
        self._known: frozenset[bytes] = frozenset()
        self._known_at_s = float("-inf")
        self._learning = asyncio.Lock()

    async def identify(self, authorization: str | None, *, address: str | None) -> Actor:
        """The administrator behind an `Authorization` header.

        Raises: InvalidApiKey, the same for a missing, malformed, unknown, expired or revoked token and for a user's key;
        a malformed one without a look-up. TooManyFailures where that address has shown too many.
        """
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise InvalidApiKey  # nothing was shown, so nothing was guessed
        try:
            if self._strangers.is_suspect(address) and not await self.is_known(token):
                raise InvalidApiKey
            return (await self.holder_of(token, address=address)).actor
        except InvalidApiKey:
            self._strangers.note(address)
            raise

    async def holder_of(self, token: str, *, address: str | None) -> Holder:
        """Whose token it is. Raises: InvalidApiKey, as `identify`."""
        if self.is_bootstrap(token):
            return Holder(Actor(BOOTSTRAP, Role.OWNER, address))
        digests = self.digests_of(token)
        if not digests:
            raise InvalidApiKey
        row = await self._row_of(digests)
        if row is None or not row.is_active_at(self._clock.now()):
            raise InvalidApiKey
        actor = Actor(row.spec.name, row.spec.role, address, row.spec.expires_at, row.id)
        return Holder(actor, row.id)

    def is_bootstrap(self, token: str) -> bool:
        return bool(self.bootstrap_token) and is_same_secret(token, self.bootstrap_token or "")

    def digests_of(self, token: str) -> list[bytes]:
        """The present one first; empty when it cannot be a token of ours."""
        found = [digest_of(token, pepper, ADMIN_TOKEN_PREFIX) for pepper in self._peppers]
        return [digest for digest in found if digest is not None]

    async def is_known(self, token: str) -> bool:
        """Whether a token like this was ever given out here, at the cost of a few statements a second, however often it is asked."""
        if self.is_bootstrap(token):
            return True
        digests = self.digests_of(token)
        if not digests:
            return False
        arrived_s = self._clock.monotonic()
        if self._known.isdisjoint(digests):
            async with self._learning:  # whoever waits here is content with the list that the first of them reads
                if self._known_at_s < arrived_s:
                    await self._clock.sleep(max(0.0, self._known_at_s + KNOWN_FOR_S - arrived_s))
                    self._known_at_s = self._clock.monotonic()
                    async with self._store.reading() as reader:
                        self._known = await reader.token_digests()
        return not self._known.isdisjoint(digests)

    async def _row_of(self, digests: list[bytes]) -> AdminRow | None:
        async with self._store.reading() as reader:
            found = [(each, await reader.admin_by_digest(each)) for each in digests]
        present = digests[0]
        for digest, row in found:
            if row is not None:
                if digest != present and self._redigest is not None:
                    with suppress(DependencyUnavailable):  # the next use tries again
                        await self._redigest(digest, present)
                return row
        return None
