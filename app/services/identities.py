"""Who is calling: credentials resolved to identities, from memory once known.

A known identity is served without SQL, also while PostgreSQL is away; a change of configuration drops what it touched (see
`app.services.catalog`), so nothing here grows stale by time. The memory is bounded, and holds no
credential: it is keyed by a digest under a key that only this process ever had. (Not by the one that the database has: OpenSSL takes 4 µs
for that, BLAKE2 less than one, and every call asks.)

An app shows three things: a secret, its id, and the user on whose behalf it calls. What was found good together is remembered
together, under one digest over all three. Whatever else is shown is looked up, so a wrong secret takes as long as an unknown app.
"""

from __future__ import annotations

import asyncio
import hmac
import os
from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date, datetime, tzinfo
from hashlib import blake2b

from app.clock import Clock
from app.domain.identity import (
    APP_ID_PATTERN,
    OID_PATTERN,
    AppCredential,
    Identity,
    PaymentStatus,
    User,
    payment_day,
    payment_expired,
    require_app_may_call,
    require_inside,
    require_may_call,
)
from app.exceptions import (
    DependencyUnavailable,
    Forbidden,
    GatewayError,
    InvalidApiKey,
    InvalidRequest,
    PaymentExpired,
    UserUnknown,
)
from app.services.api_key import APP_SECRET_PREFIX, Redigest, digest_of, imported_digest_of, is_same_secret
from app.services.strangers import ENDED_WEIGHT, Strangers
from app.storage.ports import KeyStore, RegisteredApp

Load = Callable[[], Awaitable[Identity]]
CreateUser = Callable[[str, str], Awaitable[None]]
"""Create this user, whom this app is the first to name; one who is there already is left alone."""

PAYING = (PaymentStatus.ACTIVE, PaymentStatus.TRIAL)

CAPACITY = 20_000
"""Identities kept: about 2 KB each, so 40 MB at the most."""


@dataclass(slots=True)
class _LookUp:
    """A look-up under way. Whoever waits for it takes its failure over: asking in turn would make each wait for all before him."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    failure: GatewayError | None = None


class _Ended(InvalidApiKey):
    """The credential is known and was good once: revoked, expired, or rotated away. Answered as one that never was."""


class Identities:
    def __init__(
        self,
        *,
        store: KeyStore,
        pepper: bytes,
        clock: Clock,
        zone: tzinfo,
        on_expired: Callable[[str], None],
        until_stored: Callable[[str], Awaitable[None]],
        create_user: CreateUser,
        shared_secret: str = "",
        grace_days: int = 0,
        capacity: int = CAPACITY,
        older_peppers: Sequence[bytes] = (),
        redigest: Redigest | None = None,
        accepts_imported: bool = False,
    ) -> None:
        """`older_peppers` are those of `SECRET_KEY_PREVIOUS`: what they still find is handed to `redigest`. With `accepts_imported`
        keys that another gateway issued are looked up, too."""
        self._store = store
        self._pepper = pepper
        self._older_peppers = tuple(older_peppers)
        self._redigest = redigest
        self._accepts_imported = accepts_imported
        self._clock = clock
        self._zone = zone
        self._on_expired = on_expired
        self._until_stored = until_stored
        self._create_user = create_user
        self._strangers = Strangers(clock)
        self._shared_secret = shared_secret
        self._grace_days = grace_days
        self._capacity = capacity
        self._own_key = os.urandom(32)
        self._known: OrderedDict[bytes, Identity] = OrderedDict()
        self._by_ref: defaultdict[tuple[str, str], set[bytes]] = defaultdict(set)
        self._loading: dict[bytes, _LookUp] = {}
        self._changes = 0
        self._used: dict[str, datetime] = {}

    async def of(self, credential: str | AppCredential, *, address: str | None) -> Identity:
        """The identity behind an API key, or behind an app's secret and the user it names, if it may call now.

        Raises: as `of_key` and `of_app`; TooManyFailures where that address has shown too many bad ones.
        """
        try:
            if isinstance(credential, str):
                return await self.of_key(credential, address=address)
            return await self.of_app(credential, address=address)
        except _Ended:
            self._strangers.note(address, ENDED_WEIGHT)
            raise
        except InvalidApiKey:
            self._strangers.note(address)
            raise

    async def of_key(self, secret: str, *, address: str | None) -> Identity:
        """Raises: InvalidApiKey, PaymentExpired, UserSuspended, IpNotAllowed, and DependencyUnavailable when the key is not known
        here and the database cannot be asked: that is no reason to call a key invalid.
        """
        return await self._callable(self._place_of(secret), lambda: self._owner_of(secret, address), address)

    async def of_app(self, shown: AppCredential, *, address: str | None) -> Identity:
        """Raises: InvalidApiKey, the same for a secret that is wrong, absent or another app's and for an app that nobody registered;
        AppInactive, IpNotAllowed, InvalidRequest (the user's id is malformed), UserUnknown, UserSuspended, PaymentExpired, and
        DependencyUnavailable as for a key.
        """
        # As no header can imitate: none holds a line's end.
        joined = f"app\n{shown.secret}\n{shown.app_id}\n{shown.user_oid}"
        return await self._callable(self._place_of(joined), lambda: self._behalf_of(shown, address), address)

    def require_may_act(self, identity: Identity, *, address: str | None) -> None:
        """Whether an administrator may make a call as this identity now: the same checks. Raises: as `of_key`."""
        self._require_may_call(identity, address)

    async def write_used(self) -> None:
        """Store when keys were last used since this was last done."""
        used, self._used = self._used, {}
        if used:
            try:
                await self._store.mark_used(list(used.items()))
            except (DependencyUnavailable, asyncio.CancelledError):
                self._used = used | self._used
                raise

    def forget(self, kind: str, ref: str) -> None:
        """Drop what a change has touched. `kind` is user, key or app; anything else touches no identity."""
        self._changes += 1
        for place in self._by_ref.pop((kind, ref), ()):
            self._drop(place)

    def forget_all(self) -> None:
        self._changes += 1
        self._known.clear()
        self._by_ref.clear()

    def __len__(self) -> int:
        return len(self._known)

    async def _callable(self, place: bytes, load: Load, address: str | None) -> Identity:
        identity = self._known.get(place)
        if identity is None:
            identity = await self._loaded(place, load)
        else:
            self._known.move_to_end(place)
        try:
            self._require_may_call(identity, address)
        except Forbidden as error:
            error.refused_to = identity
            if isinstance(error, PaymentExpired):
                await self._until_stored(identity.user.oid)
            raise
        except InvalidApiKey:
            raise _Ended from None
        return identity

    def _require_may_call(self, identity: Identity, address: str | None) -> None:
        now = self._clock.now()
        today = self._payment_day(now)
        user = identity.user
        if user.payment_status in PAYING and payment_expired(user, today):
            self._on_expired(user.oid)
        require_may_call(identity, now=now, today=today, address=address)
        if identity.key:
            self._used[identity.key.id] = now

    def _payment_day(self, now: datetime) -> date:
        return payment_day(now, self._zone, self._grace_days)

    def _place_of(self, shown: str) -> bytes:
        """Where in memory the identity is that was found for what is shown now."""
        return blake2b(shown.encode("utf-8", "surrogatepass"), digest_size=32, key=self._own_key).digest()

    def _key_digest(self, secret: str, pepper: bytes) -> bytes | None:
        digest = digest_of(secret, pepper)
        if digest is None and self._accepts_imported:
            digest = imported_digest_of(secret, pepper)
        return digest

    async def _owner_of(self, secret: str, address: str | None) -> Identity:
        """By the digest under the present pepper, and if there is none of it, under those before. Raises: InvalidApiKey."""
        digest = self._key_digest(secret, self._pepper)
        if digest is None:
            raise InvalidApiKey
        try:
            return await self._looked_up(digest, address)
        except InvalidApiKey:
            if not self._older_peppers:
                raise
        for pepper in self._older_peppers:
            old = self._key_digest(secret, pepper)
            if old is not None:
                with suppress(InvalidApiKey):
                    identity = await self._looked_up(old, address)
                    await self._follow(old, digest)
                    return identity
        raise InvalidApiKey

    async def _looked_up(self, digest: bytes, address: str | None) -> Identity:
        """Raises: InvalidApiKey."""
        if self._strangers.is_suspect(address):
            return await self._strangers.looked_up(digest, address, self._store.identities_of_keys)
        identity = await self._store.identity_of_key(digest)
        if identity is None:
            raise InvalidApiKey
        return identity

    async def _follow(self, old: bytes, new: bytes) -> None:
        """Store the digest under the present pepper. If that fails, the call goes on, and the next one tries again."""
        if self._redigest is not None:
            try:
                await self._redigest(old, new)
            except DependencyUnavailable:
                self._changes += 1  # so that the identity is not kept, and looked up again

    async def _behalf_of(self, shown: AppCredential, address: str | None) -> Identity:
        """The app and the user it names. A user is created only for an app that may call now, from where it calls."""
        is_shared = bool(self._shared_secret) and is_same_secret(shown.secret, self._shared_secret)
        own = None if is_shared else digest_of(shown.secret, self._pepper, APP_SECRET_PREFIX)
        if (own is None and not is_shared) or not APP_ID_PATTERN.fullmatch(shown.app_id):
            raise InvalidApiKey
        if self._strangers.is_suspect(address):
            await self._strangers.turn(address)
        now = self._clock.now()
        oid = shown.user_oid if OID_PATTERN.fullmatch(shown.user_oid) else ""
        found = await self._store.registered_app(shown.app_id, oid)
        if found is None:
            raise InvalidApiKey
        app = replace(found.app, secret_ends_at=await self._secret_ends_at(found, shown.secret, own, now))
        try:
            require_app_may_call(app, now=now)
            require_inside(app.allowed_networks, address)
        except Forbidden as error:
            error.refused_to = Identity(found.user or _unknown_user(oid), app=app) if oid else None
            raise
        if not oid:
            raise InvalidRequest(
                "'X-User-Oid' must be 1 to 200 visible ASCII characters without spaces.", param="X-User-Oid"
            )
        user = found.user
        if user is None and found.may_create_users:
            await self._create_user(oid, app.id)
            found = await self._store.registered_app(app.id, oid)
            user = found.user if found is not None else None
        if user is None:
            unknown = UserUnknown()
            unknown.refused_to = Identity(_unknown_user(oid), app=app)
            raise unknown
        return Identity(user, app=app)

    async def _secret_ends_at(
        self, found: RegisteredApp, secret: str, own: bytes | None, now: datetime
    ) -> datetime | None:
        """Raises: InvalidApiKey."""
        stored = {each.digest for each in found.secrets}
        if own is not None and own not in stored:
            for pepper in self._older_peppers:
                old = digest_of(secret, pepper, APP_SECRET_PREFIX)
                if old in stored:
                    ends_at = _require_secret(found, old, now)
                    await self._follow(old, own)
                    return ends_at
        return _require_secret(found, own, now)

    async def _loaded(self, place: bytes, load: Load) -> Identity:
        """One look-up for all calls that miss at once; when it fails, it has failed for all of them."""
        look_up = self._loading.setdefault(place, _LookUp())
        try:
            async with look_up.lock:
                known = self._known.get(place)
                if known is not None:
                    return known
                if look_up.failure is not None:
                    raise look_up.failure
                changes_before = self._changes
                try:
                    identity = await load()
                except GatewayError as error:
                    look_up.failure = error
                    raise
                # A change that came in between may be about this very identity: use what was read, but do not keep it.
                if self._changes == changes_before:
                    self._keep(place, identity)
                return identity
        finally:
            if self._loading.get(place) is look_up:
                del self._loading[place]

    def _keep(self, place: bytes, identity: Identity) -> None:
        self._known[place] = identity
        for ref in _refs(identity):
            self._by_ref[ref].add(place)
        while len(self._known) > self._capacity:
            self._drop(next(iter(self._known)))

    def _drop(self, place: bytes) -> None:
        identity = self._known.pop(place, None)
        for ref in _refs(identity) if identity else ():
            places = self._by_ref.get(ref)
            if places is not None:
                places.discard(place)
                if not places:
                    del self._by_ref[ref]


def _require_secret(found: RegisteredApp, own: bytes | None, now: datetime) -> datetime | None:
    """When the secret that was shown ends; `own` is its digest, None where it was the shared one.

    Raises: InvalidApiKey when the app does not take it (any more).
    """
    if own is None:
        if found.own_secret_only:
            raise InvalidApiKey
        return None
    for secret in found.secrets:
        if hmac.compare_digest(secret.digest, own) and (secret.ends_at is None or secret.ends_at > now):
            return secret.ends_at
    raise InvalidApiKey


def _unknown_user(oid: str) -> User:
    """Whom an app has named and nobody has registered: the record of its refusal says so."""
    return User(oid, PaymentStatus.ACTIVE, None)


def _refs(identity: Identity) -> list[tuple[str, str]]:
    refs = [("user", identity.user.oid)]
    if identity.key:
        refs.append(("key", identity.key.id))
    if identity.app:
        refs.append(("app", identity.app.id))
    return refs
