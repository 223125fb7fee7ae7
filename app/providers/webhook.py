"""The webhook of the alerts: one signed POST, through the same guarded client as every call to an upstream."""

from __future__ import annotations

from time import monotonic

from app.clock import Clock
from app.domain.alerts import Sent, signature
from app.providers.transport import Deadlines, ExchangeFailed, Outgoing, Transport

CONNECT_S = 5.0
ANSWER_S = 8.0
TOTAL_S = 10.0
"""A receiver that needs longer has taken it in or is in trouble; either way it is sent again."""


class Webhook:
    """WebhookSender over HTTP. The receiver's answer is its status; its body is not read."""

    def __init__(self, transport: Transport, clock: Clock, *, url: str, secret: bytes) -> None:
        self._transport = transport
        self._clock = clock
        self._url = url
        self._secret = secret

    async def send(self, event_id: str, body: bytes) -> Sent:
        """POST the event, signed with the present time. Redirects are not followed: they count as not delivered."""
        headers = {
            "Content-Type": "application/json",
            "X-Antigravity-Event-Id": event_id,
            "X-Antigravity-Signature": signature(body, secret=self._secret, at_s=int(self._clock.now().timestamp())),
        }
        deadlines = Deadlines(CONNECT_S, ANSWER_S, ANSWER_S, monotonic() + TOTAL_S)
        try:
            async with self._transport.opened(Outgoing("POST", self._url, deadlines, headers, body)) as exchange:
                status = exchange.status
        except ExchangeFailed as failure:
            return Sent(None, failure.reason)
        return Sent(status, None if 200 <= status < 300 else f"status_{status}")
