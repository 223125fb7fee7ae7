"""What happens to endpoints, told to the other processes at once and kept for people.

1. The balancer says when a breaker changes here; administrators and checks say what they did. Each becomes an event, and what other
   processes should act upon becomes a message. Neither is waited for by whoever says it.
2. One chore sends messages, another one writes events; each copes with its own store being away. Messages that cannot be sent are
   dropped: by the time Redis is back they are old, and every process goes by what it sees itself.
3. What others say is a hint. Only a *first* opening is passed on: a process that has seen for itself that an endpoint answers is not
   talked out of it again by one that cannot reach it, so states do not flip to and fro between them.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Final
from uuid import uuid4

import msgspec

from app.clock import Clock
from app.domain.alerts import rfc3339
from app.domain.breaker import NEEDS_SOMEBODY, BreakerState, Change, Fault
from app.exceptions import DependencyUnavailable
from app.services.live_endpoint import LiveEndpoint, Mishap
from app.storage.alert_ports import WebhookSender
from app.storage.endpoint_ports import EndpointEvent, EndpointEventStore, EndpointNews, EventKind
from app.telemetry import logger

MAX_KEPT: Final = 10_000
"""Events that wait for PostgreSQL; beyond it the oldest are dropped. An hour of a very bad day."""
MAX_UNSENT: Final = 1_000
BATCH: Final = 200
MAX_ALERTS: Final = 100
ALERT_PAUSES_S: Final = (0.0, 1.0, 5.0, 30.0, 120.0)
"""Before each sending of one alert: a receiver that restarts is back by then."""
KEPT: Final = timedelta(days=90)
"""A season: long enough to compare an outage with the one before."""
QUIET_S: Final = 1.0
"""An endpoint that stays open for longer, again and again (every call under way is told "too many requests"), is told of so often."""


class News(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message between processes."""

    source: str
    kind: str
    """opened, closed, reset or checked"""
    endpoint_id: str
    fault: str | None = None
    open_s: float = 0.0
    is_ok: bool = True
    reason: str | None = None
    took_ms: int = 0


_ALERTS: Final = {
    Fault.CREDENTIAL: EventKind.CREDENTIAL_REFUSED,
    Fault.CERTIFICATE: EventKind.CERTIFICATE_REFUSED,
}
"""What somebody is told of, by what opened the endpoint."""
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(News).decode


class EndpointEvents:
    def __init__(
        self,
        *,
        store: EndpointEventStore,
        news: EndpointNews,
        clock: Clock,
        process_id: str,
        webhook: WebhookSender | None = None,
    ) -> None:
        """`webhook` is sent what somebody has to act upon."""
        self._webhook = webhook
        self._alerts: asyncio.Queue[EndpointEvent] = asyncio.Queue(MAX_ALERTS)
        self._store = store
        self._news = news
        self._clock = clock
        self._process_id = process_id
        self._kept: deque[EndpointEvent] = deque(maxlen=MAX_KEPT)
        self._unsent: deque[News] = deque(maxlen=MAX_UNSENT)
        self._has_kept = asyncio.Event()
        self._has_unsent = asyncio.Event()
        self._noted_s: dict[str, float] = {}

    # ── What happens here ─────────────────────────────────────────────────────────────────────────────────────────────

    def changed(self, live: LiveEndpoint, change: Change, mishap: Mishap | None) -> None:
        """A breaker changed by what this process saw."""
        if change.after is BreakerState.CLOSED:
            self.note(live.id, live.endpoint.model, EventKind.CLOSED, reason=change.fault)
            self.tell("closed", live.id)
            return
        now_s = self._clock.monotonic()
        if change.before is BreakerState.OPEN and now_s - self._noted_s.get(live.id, float("-inf")) < QUIET_S:
            return
        self._noted_s[live.id] = now_s
        self._note_opening(live, change, mishap)
        if change.fault is Fault.BUSY or change.fault in NEEDS_SOMEBODY or change.streak == 1:
            self.tell("opened", live.id, fault=change.fault, open_s=round(change.open_s, 3))

    def note(
        self,
        endpoint_id: str,
        model: str,
        kind: EventKind,
        *,
        reason: str | None = None,
        message: str | None = None,
        upstream_status: int | None = None,
        open_s: float | None = None,
        once: str | None = None,
    ) -> None:
        """Keep an event."""
        self._kept.append(
            EndpointEvent(
                id=str(uuid4()),
                at=self._clock.now(),
                endpoint_id=endpoint_id,
                model=model,
                kind=kind,
                reason=None if reason is None else str(reason),
                message=message,
                upstream_status=upstream_status,
                open_s=None if open_s is None else round(open_s, 3),
                process=self._process_id,
                once=once,
            )
        )
        self._has_kept.set()

    def tell(
        self,
        kind: str,
        endpoint_id: str,
        *,
        fault: str | None = None,
        open_s: float = 0.0,
        is_ok: bool = True,
        reason: str | None = None,
        took_ms: int = 0,
    ) -> None:
        """Tell the other processes."""
        self._unsent.append(News(self._process_id, kind, endpoint_id, fault, open_s, is_ok, reason, took_ms))
        self._has_unsent.set()

    def _note_opening(self, live: LiveEndpoint, change: Change, mishap: Mishap | None) -> None:
        message, status = (mishap.message or mishap.reason, mishap.upstream_status) if mishap else (None, None)
        endpoint = live.endpoint
        logger.warning(
            "endpoint_opened",
            endpoint_id=live.id,
            model=endpoint.model,
            fault=change.fault,
            reason=mishap.reason if mishap else None,
            for_s=round(change.open_s, 1),
        )
        self.note(
            *(live.id, endpoint.model, EventKind.OPENED),
            reason=change.fault,
            message=message,
            upstream_status=status,
            open_s=change.open_s,
        )
        if change.fault in NEEDS_SOMEBODY:
            shown = endpoint.credential if change.fault is Fault.CREDENTIAL else endpoint.api_base
            digest = hashlib.sha256((shown or "").encode()).hexdigest()[:16]
            # One alert a day and credential (or address), whichever process sees it first.
            once = f"{change.fault}:{live.id}:{digest}:{self._clock.now():%Y-%m-%d}"
            self.note(
                *(live.id, endpoint.model, _ALERTS[change.fault]),
                reason=change.fault,
                message=message,
                upstream_status=status,
                once=once,
            )

    # ── Chores ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def send(self) -> None:
        """Send messages as they come, for ever."""
        while True:
            await self._has_unsent.wait()
            self._has_unsent.clear()
            while self._unsent:
                try:
                    await self._news.publish(_encode(self._unsent.popleft()))
                except DependencyUnavailable:
                    self._unsent.clear()
                    raise

    async def listen(self, heard: Callable[[News], None]) -> None:
        """Hand on what the others say, until the connection breaks. Raises: DependencyUnavailable."""

        def decoded(message: bytes) -> None:
            try:
                news = _decode(message)
            except msgspec.MsgspecError:
                return  # a version that says more than this one understands
            if news.source != self._process_id:
                heard(news)

        await self._news.listen(decoded)

    async def write(self) -> None:
        """Write events as they come, for ever. Raises: DependencyUnavailable; what is not written is kept."""
        while True:
            await self._has_kept.wait()
            await self.write_once()

    async def write_once(self) -> None:
        batch = [self._kept[i] for i in range(min(BATCH, len(self._kept)))]
        for event in await self._store.keep(batch):
            if event.kind in _ALERTS.values():
                logger.error(
                    f"endpoint_{event.kind}",
                    endpoint_id=event.endpoint_id,
                    model=event.model,
                    upstream_status=event.upstream_status,
                )
                if self._webhook is not None and not self._alerts.full():
                    self._alerts.put_nowait(event)
        for event in batch:
            if self._kept and self._kept[0] is event:
                self._kept.popleft()
        if not self._kept:
            self._has_kept.clear()

    async def alert(self) -> None:
        """Send the webhook what somebody has to act upon, for ever: a few times each; it stays in the list of alerts whatever comes."""
        while True:
            event = await self._alerts.get()
            for pause_s in ALERT_PAUSES_S:
                await self._clock.sleep(pause_s)
                if self._webhook is None or (await self._webhook.send(event.id, _alert_body(event))).is_delivered:
                    break

    async def forget_old(self) -> int:
        return await self._store.forget_before(self._clock.now() - KEPT)


def _alert_body(event: EndpointEvent) -> bytes:
    """The same bytes for the same alert, however often they are sent."""
    return _encode(
        {
            "type": f"endpoint_{event.kind}",
            "id": event.id,
            "at": rfc3339(event.at),
            "endpoint_id": event.endpoint_id,
            "model": event.model,
            "upstream_status": event.upstream_status,
            "message": event.message,
        }
    )
