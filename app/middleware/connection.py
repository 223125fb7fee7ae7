"""The HTTP server's connection, which takes in those behind it (`app/doorway.py`) and has an ear for overload (`early_refusal.py`).

Without it (another server) calls are refused by the ordinary way, for several times as much.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from starlette.types import Send
from uvicorn._types import HTTPScope
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from app.doorway import STATE as DOORWAY
from app.doorway import Doorway
from app.drain import LAST_IN_S
from app.http_protocol import HttpProtocol
from app.middleware.early_refusal import IS_REFUSED, EarlyRefusals, Refusal
from app.middleware.early_refusal import STATE as EARLY_REFUSALS


class Connection(HttpProtocol):
    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._early: EarlyRefusals | None = app_state.get(EARLY_REFUSALS)
        self._doorway: Doorway | None = app_state.get(DOORWAY)
        self._refused_s = float("-inf")
        """When a call was refused early last."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        early, doorway = self._early, self._doorway
        room = early.room_beside(len(self.connections)) if early is not None else 0
        if early is not None and room < 0:
            transport.write(early.at_the_door(self.server_state.default_headers))
            transport.close()
        # Behind TLS the server has more to do with a connection than this could tell; there each waits for its turn.
        if doorway is not None and self.server is not None and self.scheme == "http":
            doorway.take_in(self._behind, self.server[1], room=room)

    def _behind(self) -> Connection:
        """For one that was behind this one at the door, with nobody behind it."""
        connection = Connection(self.config, self.server_state, self.app_state)
        connection._doorway = None
        return connection

    def data_received(self, data: bytes) -> None:
        early = self._early
        if (
            early is None
            or not early.is_refusing
            or not self._awaits_a_request()
            or (call := early.call_in(data)) is None
        ):
            super().data_received(data)
        elif not early.refuses():
            self._read(data, is_refused=False)
        elif (refusal := early.of(data, call, self.server_state.default_headers)) is None:
            self._read(data, is_refused=True)
        else:
            self._refuse_early(refusal)

    def _refuse_early(self, refusal: Refusal) -> None:
        self._disarm()
        self.transport.write(refusal.answer)
        self.server_state.total_requests += 1
        if refusal.closes:
            self.transport.close()
        elif self.timeout_keep_alive_task is None:
            self._keep_alive_for(self.timeout_keep_alive)
        else:
            # A timer for each refusal would cost as much as to make its answer: the one that runs looks for itself.
            self._refused_s = self.loop.time()

    def timeout_keep_alive_handler(self) -> None:
        left_s = self._refused_s + self.timeout_keep_alive - self.loop.time()
        if left_s > 0:
            self._keep_alive_for(left_s)
        else:
            super().timeout_keep_alive_handler()

    def _keep_alive_for(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def shutdown(self) -> None:
        """Leave. Of one that was just taken in the request may be here and not read: it has a moment, for nobody will ask again."""
        if cast("HTTPScope | None", self.scope) is None:
            self.loop.call_later(LAST_IN_S, super().shutdown)
        else:
            super().shutdown()

    def _awaits_a_request(self) -> bool:
        """Whether nothing of a request has come yet that is not answered, and what was answered was taken by the client."""
        if self.transport.is_closing() or self.flow.write_paused:
            return False
        # Both are None before the first request, whatever their types say.
        cycle, scope = cast("RequestResponseCycle | None", self.cycle), cast("HTTPScope | None", self.scope)
        if cycle is None:
            return scope is None
        return cycle.response_complete and not cycle.more_body and cycle.scope is scope

    def _read(self, data: bytes, *, is_refused: bool) -> None:
        """The ordinary way, with a word on what was decided."""
        ours, self.app_state = self.app_state, {**self.app_state, IS_REFUSED: is_refused}
        try:
            super().data_received(data)
        finally:
            self.app_state = ours


def given_to(send: Send) -> None:
    """Have a uvicorn that was started by hand (`uvicorn app.main:app`) make its connections of this kind too.

    `send` is what it gave the application to answer its start with. One that was told to use another implementation of HTTP, or to bound
    its connections itself, keeps to that; other servers know nothing of this.
    """
    config = getattr(getattr(send, "__self__", None), "config", None)
    if isinstance(config, Config) and config.http in ("auto", "httptools") and config.limit_concurrency is None:
        config.http_protocol_class = Connection
