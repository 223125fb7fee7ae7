"""Calls that may be sent again: the same `Idempotency-Key` of the same caller is answered once by an upstream, and then from memory.

1. Who comes first takes the key. Others who bring it while he is being served are told so (409); their request must be the same (400).
2. An answer that came whole is kept for a day, sealed, because what models say is nobody else's to read. A repeat is given it again: it
   asks no upstream and costs nothing.
3. Everything else (a refusal, a failure, a caller who hung up) frees the key: a repeat is then a new call.
4. Without the counter store nothing can be promised, so a call that asks for the promise is refused (503).
"""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import msgspec

from app.domain.identity import Identity
from app.exceptions import Conflict, DependencyUnavailable, IdempotencyInFlight, InvalidRequest
from app.storage.management_ports import Sealer
from app.storage.ports import CallRepeatStore
from app.storage.sealing import CannotUnseal

HEADER: Final = "Idempotency-Key"
KEPT_MS: Final = 24 * 3600 * 1000
HELD_MS: Final = 15 * 60 * 1000
"""How long a key stays taken by a call whose process died: longer than any call may last."""
MAX_ANSWER_BYTES: Final = 1024 * 1024
"""Of an answer that is kept: a thousand of them are a gigabyte of the counter store's memory."""
_KEY: Final = re.compile(r"[!-~]{1,255}")


class KeptAnswer(msgspec.Struct, frozen=True, array_like=True):
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes | None
    """None: it was too large to be kept."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A key that the bearer of this has taken."""

    name: str
    digest: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(KeptAnswer).decode


class CallRepeats:
    def __init__(self, *, store: CallRepeatStore, sealer: Sealer) -> None:
        self._store = store
        self._sealer = sealer

    async def begun(self, identity: Identity, key: str, request: bytes) -> Claim | KeptAnswer:
        """Take the key, or find what was answered to it. `request` is all that makes the request what it is.

        Raises: InvalidRequest (a key that is none, or was sent with another request), IdempotencyInFlight, Conflict,
        DependencyUnavailable.
        """
        if not _KEY.fullmatch(key):
            raise InvalidRequest(f"'{HEADER}' must be 1 to 255 visible ASCII characters.", param=HEADER)
        claim = Claim(_name(identity, key), hashlib.sha256(request).digest())
        known = await self._store.begin(claim.name, claim.digest, held_ms=HELD_MS)
        if known is None:
            return claim
        if known.digest != claim.digest:
            raise InvalidRequest(f"This '{HEADER}' was sent with another request before.", param=HEADER)
        if known.sealed is None:
            raise IdempotencyInFlight
        answer = self._opened(claim, known.sealed)
        if answer.body is None:
            raise Conflict(f"This request was answered, but its answer was larger than {MAX_ANSWER_BYTES} bytes.")
        return answer

    async def finish(self, claim: Claim, answer: KeptAnswer) -> None:
        """Keep what was answered. When the store is away by now, the key stays taken for a while: nobody is charged twice."""
        sealed = self._sealer.seal(_encode(answer).decode("latin-1"), endpoint_id=claim.name, host="")
        with suppress(DependencyUnavailable):
            await self._store.finish(claim.name, claim.digest, sealed, kept_ms=KEPT_MS)

    async def forget(self, claim: Claim) -> None:
        with suppress(DependencyUnavailable):
            await self._store.forget(claim.name)

    def _opened(self, claim: Claim, sealed: bytes) -> KeptAnswer:
        try:
            return _decode(self._sealer.open(sealed, endpoint_id=claim.name, host="").encode("latin-1"))
        except (CannotUnseal, msgspec.MsgspecError) as error:
            raise Conflict(f"This request was answered, but its answer cannot be shown again: {error}.") from None


def _name(identity: Identity, key: str) -> str:
    """Whose key it is, and which; not to be read from the store."""
    app, own = identity.app, identity.key
    whose = own.id if own else f"{app.id if app else ''}\n{identity.user.oid}"
    return hashlib.sha256(f"{whose}\n{key}".encode("utf-8", "surrogatepass")).hexdigest()
