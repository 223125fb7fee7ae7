"""Who is calling: a known key, from memory. The floor is the one hash that cannot be spared, the process's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import blake2b
from uuid import uuid4

from app.clock import SystemClock
from app.domain.identity import Identity, Key, KeyStatus, PaymentStatus, User
from app.services.api_key import new_key
from app.services.identities import Identities
from app.storage.ports import RegisteredApp
from bench.measure import Ratio, in_turns

PEPPER = b"p" * 32
USER = User("alice", PaymentStatus.ACTIVE, None)
KEY = Key("", KeyStatus.ACTIVE, None, frozenset({"*"}))


class _Store:
    """Every key is Alice's. Asked once for each."""

    async def identity_of_key(self, digest: bytes) -> Identity | None:
        return Identity(USER, replace(KEY, id=str(uuid4())))

    async def identities_of_keys(self, digests: Sequence[bytes]) -> dict[bytes, Identity]:
        return {}

    async def registered_app(self, app_id: str, user_oid: str) -> RegisteredApp | None:
        return None

    async def mark_expired(self, user_oid: str) -> None: ...

    async def mark_used(self, used: Sequence[tuple[str, datetime]]) -> None: ...


async def identify(*, is_short: bool) -> Ratio:
    """With a thousand keys in use."""
    times = 2 if is_short else 50

    async def nobody(oid: str, app_id: str) -> None: ...

    async def at_once(oid: str) -> None: ...

    identities = Identities(
        store=_Store(),
        pepper=PEPPER,
        clock=SystemClock(),
        zone=UTC,
        on_expired=lambda _: None,
        until_stored=at_once,
        create_user=nobody,
    )
    keys = [new_key(PEPPER).secret for _ in range(1000)]

    async def known() -> int:
        for _ in range(times):
            for key in keys:
                await identities.of(key, address="127.0.0.1")
        return times * len(keys)

    async def hashed() -> int:
        for _ in range(times):
            for key in keys:
                blake2b(key.encode(), digest_size=32, key=PEPPER).digest()
        return times * len(keys)

    cost, floor = await in_turns(known, hashed)
    return Ratio("identify: the identity behind a known key", cost, "one BLAKE2 of the key", floor)
