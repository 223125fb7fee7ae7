"""Requests that may be sent again: what was answered the first time is answered each time, and done only once.

An `Idempotency-Key` belongs to the administrator who sent it, for a day. The row that claims it is written before the request is worked
on, and its answer afterwards, sealed, because it may hold a secret that is shown once. A request that was refused has changed nothing:
its key is free again. One whose process died in between has perhaps been done: its key stays taken, and the caller is told to look.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from app.clock import Clock
from app.exceptions import Conflict, IdempotencyInFlight, InvalidRequest
from app.storage.management_ports import Repeatable, RepeatStore, Sealer
from app.storage.sealing import CannotUnseal

HEADER: Final = "Idempotency-Key"
KEPT: Final = timedelta(hours=24)
PATIENCE_S: Final = 3.0
"""Longer than any command takes that has a future; one whose process died never answers."""
LOOK_EVERY_S: Final = 0.05
_KEY: Final = re.compile(r"[!-~]{1,255}")


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: str = field(repr=False)
    etag: str | None = None
    """The version of what was made, as `If-Match` wants it."""
    is_repeat: bool = False


@dataclass(frozen=True, slots=True)
class Repeats:
    store: RepeatStore
    sealer: Sealer
    clock: Clock

    async def once(self, actor: str, key: str, request: bytes, work: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer of `work`, or what it answered before to the same key. `request` is all that makes it what it is.

        Raises: InvalidRequest (a key that is none, or was sent with another request), IdempotencyInFlight, Conflict, and what `work`
        raises.
        """
        if not _KEY.fullmatch(key):
            raise InvalidRequest(f"'{HEADER}' must be 1 to 255 visible ASCII characters.", param=HEADER)
        digest = hashlib.sha256(request).digest()
        known = await self._begun(actor, key, digest)
        if known is not None:
            if known.request_digest != digest:
                raise InvalidRequest(f"This '{HEADER}' was sent with another request before.", param=HEADER)
            if known.status is None or known.answer_sealed is None:
                raise IdempotencyInFlight
            etag, body = _parted(self._opened(known.answer_sealed, actor, key))
            return Answer(known.status, body, etag, is_repeat=True)
        try:
            answer = await work()
        except Exception:
            await self.store.forget(actor, key)
            raise
        if answer.status >= 300:
            await self.store.forget(actor, key)
        else:
            sealed = self.sealer.seal(_joined(answer), endpoint_id=_bound_to(actor, key), host="")
            await self.store.finish(actor, key, answer.status, sealed)
        return answer

    async def _begun(self, actor: str, key: str, digest: bytes) -> Repeatable | None:
        """Claim the key; None when that succeeds. Whoever repeats a request that is being worked on waits for its answer."""
        gives_up_s = self.clock.monotonic() + PATIENCE_S
        while True:
            now = self.clock.now()
            known = await self.store.begin(actor, key, digest, now, forgotten_before=now - KEPT)
            is_in_flight = known is not None and known.status is None and known.request_digest == digest
            if not is_in_flight or self.clock.monotonic() >= gives_up_s:
                return known
            await self.clock.sleep(LOOK_EVERY_S)

    async def forget_old(self) -> None:
        await self.store.forget_before(self.clock.now() - KEPT)

    def _opened(self, sealed: bytes, actor: str, key: str) -> str:
        try:
            return self.sealer.open(sealed, endpoint_id=_bound_to(actor, key), host="")
        except CannotUnseal as error:
            raise Conflict(f"This request was done, but its answer cannot be shown again: {error}.") from None


def _joined(answer: Answer) -> str:
    """What is kept: the entity tag in a line of its own, where there is one, and the body."""
    return answer.body if answer.etag is None else f"{answer.etag}\n{answer.body}"


def _parted(kept: str) -> tuple[str | None, str]:
    """Bodies are JSON objects or empty, so none begins with a quote, as entity tags do."""
    if not kept.startswith('"'):
        return None, kept
    etag, _, body = kept.partition("\n")
    return etag, body


def _bound_to(actor: str, key: str) -> str:
    return f"answer\n{actor}\n{key}"
