"""Who is calling: credentials resolved to identities, from memory once known.

A known identity is served without SQL, also while PostgreSQL is away; a change of configuration drops what it touched (see
`app.services.catalog`), so nothing here grows stale by time. The memory is keyed by the credential's full digest and bounded.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, tzinfo

from app.clock import Clock
from app.domain.identity import Identity, PaymentStatus, payment_expired, require_may_call
from app.exceptions import DependencyUnavailable, GatewayError, InvalidApiKey
from app.services.api_key import digest_of
from app.storage.ports import KeyStore

PAYING = (PaymentStatus.ACTIVE, PaymentStatus.TRIAL)

CAPACITY = 20_000
"""Identities kept: about 2 KB each, so 40 MB at the most."""


@dataclass(slots=True)
class _LookUp:
    """A look-up under way. Whoever waits for it takes its failure over: asking in turn would make each wait for all before him."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    failure: GatewayError | None = None


class Identities:
    def __init__(
        self,
        *,
        store: KeyStore,
        pepper: bytes,
        clock: Clock,
        zone: tzinfo,
        on_expired: Callable[[str], None],
        capacity: int = CAPACITY,
    ) -> None:
        self._store = store
        self._pepper = pepper
        self._clock = clock
        self._zone = zone
        self._on_expired = on_expired
        self._capacity = capacity
        self._known: OrderedDict[bytes, Identity] = OrderedDict()
        self._by_ref: defaultdict[tuple[str, str], set[bytes]] = defaultdict(set)
        self._loading: dict[bytes, _LookUp] = {}
        self._changes = 0
        self._used: dict[str, datetime] = {}

    async def of_key(self, secret: str, *, address: str | None) -> Identity:
        """The identity behind an API key, if it may call now.

        Raises: InvalidApiKey, PaymentExpired, UserSuspended, IpNotAllowed, and DependencyUnavailable when the key is not known
        here and the database cannot be asked: that is no reason to call a key invalid.
        """
        digest = digest_of(secret, self._pepper)
        if digest is None:
            raise InvalidApiKey
        identity = self._known.get(digest)
        if identity is None:
            identity = await self._loaded(digest)
        else:
            self._known.move_to_end(digest)
        self._require_may_call(identity, address)
        return identity

    async def write_used(self) -> None:
        """Store when keys were last used since this was last done."""
        used, self._used = self._used, {}
        if used:
            try:
                await self._store.mark_used(list(used.items()))
            except DependencyUnavailable:
                self._used = used | self._used
                raise

    def forget(self, kind: str, ref: str) -> None:
        """Drop what a change has touched. `kind` is user, key or app; anything else touches no identity."""
        self._changes += 1
        for digest in self._by_ref.pop((kind, ref), ()):
            self._drop(digest)

    def forget_all(self) -> None:
        self._changes += 1
        self._known.clear()
        self._by_ref.clear()

    def __len__(self) -> int:
        return len(self._known)

    def _require_may_call(self, identity: Identity, address: str | None) -> None:
        now = self._clock.now()
        today = now.astimezone(self._zone).date()
        user = identity.user
        if user.payment_status in PAYING and payment_expired(user, today):
            self._on_expired(user.oid)
        require_may_call(identity, now=now, today=today, address=address)
        if identity.key:
            self._used[identity.key.id] = now

    async def _loaded(self, digest: bytes) -> Identity:
        """One look-up for all calls that miss at once; when it fails, it has failed for all of them."""
        look_up = self._loading.setdefault(digest, _LookUp())
        try:
            async with look_up.lock:
                known = self._known.get(digest)
                if known is not None:
                    return known
                if look_up.failure is not None:
                    raise look_up.failure
                changes_before = self._changes
                try:
                    identity = await self._store.identity_of_key(digest)
                    if identity is None:
                        raise InvalidApiKey
                except GatewayError as error:
                    look_up.failure = error
                    raise
                # A change that came in between may be about this very identity: use what was read, but do not keep it.
                if self._changes == changes_before:
                    self._keep(digest, identity)
                return identity
        finally:
            if self._loading.get(digest) is look_up:
                del self._loading[digest]

    def _keep(self, digest: bytes, identity: Identity) -> None:
        self._known[digest] = identity
        for ref in _refs(identity):
            self._by_ref[ref].add(digest)
        while len(self._known) > self._capacity:
            self._drop(next(iter(self._known)))

    def _drop(self, digest: bytes) -> None:
        identity = self._known.pop(digest, None)
        for ref in _refs(identity) if identity else ():
            digests = self._by_ref.get(ref)
            if digests is not None:
                digests.discard(digest)
                if not digests:
                    del self._by_ref[ref]


def _refs(identity: Identity) -> list[tuple[str, str]]:
    refs = [("user", identity.user.oid)]
    if identity.key:
        refs.append(("key", identity.key.id))
    if identity.app:
        refs.append(("app", identity.app.id))
    return refs
