"""Who an admin credential belongs to. Nothing is cached: a revoked token ends with the next request."""

from __future__ import annotations

from dataclasses import dataclass, field

from app.clock import Clock
from app.domain.access import BOOTSTRAP, Actor, Role
from app.exceptions import InvalidApiKey
from app.services.api_key import ADMIN_TOKEN_PREFIX, digest_of, is_same_secret
from app.storage.management_ports import ManagementStore


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
        digest = self.digest_of(token)
        if digest is None:
            raise InvalidApiKey
        async with self.store.reading() as reader:
            row = await reader.admin_by_digest(digest)
        if row is None or not row.is_active_at(self.clock.now()):
            raise InvalidApiKey
        actor = Actor(row.spec.name, row.spec.role, address, row.spec.expires_at)
        return Holder(actor, row.id)

    def is_bootstrap(self, token: str) -> bool:
        return bool(self.bootstrap_token) and is_same_secret(token, self.bootstrap_token or "")

    def digest_of(self, token: str) -> bytes | None:
        """None when it cannot be a token of ours."""
        return digest_of(token, self.pepper, ADMIN_TOKEN_PREFIX)

    async def token_digests(self) -> frozenset[bytes]:
        async with self.store.reading() as reader:
            return await reader.token_digests()
