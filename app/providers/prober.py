"""A free look at an endpoint: ask for its list of models, which costs nothing anywhere.

What it shows is whether somebody answers. A server without such a list says 404 or the like, and is there all the same; so is one that
finds our question wrong (400), or does not let this key list models (403). Not there is who cannot be connected to, says nothing in
time, breaks off, or answers 401 or 5xx.
"""

from __future__ import annotations

from time import monotonic
from typing import Final

from app.domain.catalog import Endpoint, ProviderKind
from app.providers.addresses import ANTHROPIC_VERSION, address_of
from app.providers.base import Seen
from app.providers.transport import Deadlines, ExchangeFailed, Outgoing, Transport

PATIENCE_S: Final = 4.0
"""A list of models comes within milliseconds; below the five seconds after which an elected process is thought gone."""
NOT_IMPLEMENTED: Final = 501


class UpstreamProber:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def can_look_at(self, endpoint: Endpoint) -> bool:
        """LiteLLM knows addresses of its own: where the operator named none, there is nothing to look at for free."""
        return endpoint.provider is not ProviderKind.DEMO and bool(endpoint.api_base)

    async def look_at(self, endpoint: Endpoint) -> Seen:
        """Never raises for what the endpoint or the network does."""
        began = monotonic()
        address = address_of(endpoint, "/models")
        headers = dict(address.credential(endpoint.credential))
        if endpoint.provider is ProviderKind.ANTHROPIC:
            headers["anthropic-version"] = ANTHROPIC_VERSION
        wait_s = min(PATIENCE_S, endpoint.timeouts.first_token_s)
        deadlines = Deadlines(min(PATIENCE_S, endpoint.timeouts.connect_s), wait_s, wait_s, began + PATIENCE_S)
        status, reason = None, None
        try:
            async with self._transport.opened(Outgoing("GET", address.url, deadlines, headers)) as exchange:
                status = exchange.status
        except ExchangeFailed as fault:
            reason = fault.reason
        if status is not None and status != 200:
            reason = f"status_{status}"
        is_ok = status is not None and status != 401 and (status < 500 or status == NOT_IMPLEMENTED)
        return Seen(is_ok, reason, status, round((monotonic() - began) * 1000))
