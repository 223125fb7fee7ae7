"""Endpoints of provider `anthropic`: calls of its own protocol are relayed, bytes in, bytes out; others are translated by LiteLLM."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from app.dialects.base import Dialect
from app.dialects.messages import MessagesNative
from app.domain.call import Call, Meter
from app.domain.catalog import Endpoint
from app.providers.base import Answer, Provider
from app.providers.relay import RelayAttempt, outgoing_to
from app.providers.transport import Transport

VERSION = "2023-06-01"
"""Of the protocol, where the caller names none."""


class AnthropicProvider:
    """See `app.providers.base.Provider`."""

    def __init__(self, transport: Transport, translator: Provider) -> None:
        self._transport = transport
        self._translator = translator

    def opened(
        self,
        call: Call,
        endpoint: Endpoint,
        dialect: Dialect,
        meter: Meter,
        *,
        max_tokens: int | None,
        deadline_s: float,
    ) -> AbstractAsyncContextManager[Answer]:
        if not isinstance(dialect, MessagesNative):
            return self._translator.opened(call, endpoint, dialect, meter, max_tokens=max_tokens, deadline_s=deadline_s)
        url = f"{endpoint.api_base.rstrip('/').removesuffix('/v1')}/v1{dialect.upstream_path}"
        outgoing = outgoing_to(
            url, _headers_for(call, endpoint, meter), call, endpoint, dialect, max_tokens, deadline_s
        )
        return RelayAttempt(self._transport.opened(outgoing), call, dialect, meter, outgoing.deadlines)

    async def close(self) -> None:
        """Transport and translator are shared; who made them closes them."""


def _headers_for(call: Call, endpoint: Endpoint, meter: Meter) -> dict[str, str]:
    headers = {"anthropic-version": VERSION, **dict(call.headers)}
    if endpoint.credential:
        headers["x-api-key"] = endpoint.credential
    if meter.trace is not None:
        headers["traceparent"] = meter.trace.traceparent
    return headers
