"""Who an admin credential belongs to. Nothing is cached: a revoked token ends with the next request."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

from app.clock import Clock
from app.domain.access import BOOTSTRAP, Actor, Role
from app.exceptions import DependencyUnavailable, InvalidApiKey
from app.services.api_key import ADMIN_TOKEN_PREFIX, Redigest, digest_of, is_same_secret
from app.storage.management_ports import AdminRow, ManagementStore


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose token it is. `admin_id` is None for the owner by `ADMIN_TOKEN`, who has no row."""

    actor: Actor
    admin_id: str | None = None


@dataclass(frozen=True, slots=True)
class AdminAccess:
    store: ManagementStore
    clock: Clock
    pepper: bytes = field(repr=False)
    bootstrap_token: str | None = field(repr=False)
    older_peppers: tuple[bytes, ...] = field(default=(), repr=False)
    redigest: Redigest | None = None
    """Told of a digest under an older pepper, and what it is under the present one."""

    async def identify(self, authorization: str | None, *, address: str | None) -> Actor:
        """The administrator behind an `Authorization` header.

        Raises: InvalidApiKey, the same for a missing, malformed, unknown, expired or revoked token and for a user's key;
        a malformed one without a look-up.
        """
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise InvalidApiKey
        return (await self.holder_of(token, address=address)).actor

    async def holder_of(self, token: str, *, address: str | None) -> Holder:
        """Whose token it is. Raises: InvalidApiKey, as `identify`."""
        if self.is_bootstrap(token):
            return Holder(Actor(BOOTSTRAP, Role.OWNER, address))
        digests = self.digests_of(token)
        if not digests:
            raise InvalidApiKey
        row = await self._row_of(digests)
        if row is None or not row.is_active_at(self.clock.now()):
            raise InvalidApiKey
        actor = Actor(row.spec.name, row.spec.role, address, row.spec.expires_at)
        return Holder(actor, row.id)

    def is_bootstrap(self, token: str) -> bool:
        return bool(self.bootstrap_token) and is_same_secret(token, self.bootstrap_token or "")

    def digests_of(self, token: str) -> list[bytes]:
        """The present one first; empty when it cannot be a token of ours."""
        found = [digest_of(token, pepper, ADMIN_TOKEN_PREFIX) for pepper in (self.pepper, *self.older_peppers)]
        return [digest for digest in found if digest is not None]

    async def token_digests(self) -> frozenset[bytes]:
        async with self.store.reading() as reader:
            return await reader.token_digests()

    async def _row_of(self, digests: list[bytes]) -> AdminRow | None:
        async with self.store.reading() as reader:
            found = [(each, await reader.admin_by_digest(each)) for each in digests]
        present = digests[0]
        for digest, row in found:
            if row is not None:
                if digest != present and self.redigest is not None:
                    with suppress(DependencyUnavailable):  # the next use tries again
                        await self.redigest(digest, present)
                return row
        return None
