"""The outermost layer, pure ASGI: the request id, the error boundary, and the two ways in.

Paths of the data plane go straight to their handlers, with nothing between (the framework's own machinery costs as much CPU as all
the rest of a proxied call); everything else goes to the FastAPI application inside. Either way the request has an id of ours, and
whatever goes wrong comes back as JSON in the shape of its route.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.domain.ids import RANDOM_BYTES, uuid7
from app.doorway import STATE as DOORWAY
from app.doorway import Doorway
from app.drain import Departure
from app.exceptions import Draining, GatewayError, InternalError, MethodNotAllowed, Overloaded
from app.middleware import connection
from app.middleware.early_refusal import IS_REFUSED, EarlyRefusals
from app.middleware.early_refusal import STATE as EARLY_REFUSALS
from app.middleware.exchange import Exchange
from app.middleware.route import Route
from app.services.overload import Overload
from app.telemetry import error_answered, logger

DRAWN_AT_ONCE = 400
"""4 KB of random bytes: 2.3 µs of a call become 0.2."""


class GatewayMiddleware:
    def __init__(
        self,
        app: ASGIApp,
        *,
        routes: Mapping[str, Route],
        prefixes: tuple[Route, ...],
        is_draining: Callable[[], bool],
        departure: Departure,
        overload: Overload,
        doorway: Doorway,
        now_ms: Callable[[], int],
        write_stall_s: float = 60.0,
        has_proxies: bool = False,
    ) -> None:
        """`now_ms`: since 1970, by the clock that all processes agree on. `has_proxies`:
        somebody in front is trusted to say where a request comes from."""
        self._app = app
        self._now_ms = now_ms
        self._routes = routes
        self._prefixes = prefixes
        self._is_draining = is_draining
        self._write_stall_s = write_stall_s
        self._departure = departure
        self._has_proxies = has_proxies
        self._random = _drawn(RANDOM_BYTES)
        self._overload = overload
        self._doorway = doorway
        self._early = EarlyRefusals(overload, routes=routes, prefixes=prefixes, is_leaving=lambda: departure.is_leaving)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan" and "state" in scope:
                scope["state"] |= {EARLY_REFUSALS: self._early, DOORWAY: self._doorway}
                connection.given_to(send)
            await self._app(scope, receive, send)
            return
        now_ms = self._now_ms()
        request_id = uuid7(now_ms, next(self._random))
        self._departure.last_request_ms = now_ms
        if self._departure.is_leaving:
            send = _closing(send)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        if not self._has_proxies:
            _doubt_claimed_address(scope)
        route, argument = self._found(scope["path"])
        if route is None:
            await self._app(scope, receive, _with_request_id(send, request_id))
        else:
            exchange = Exchange(scope, receive, send, request_id, argument, write_stall_s=self._write_stall_s)
            await self._answer(route, exchange, state.get(IS_REFUSED))

    def _found(self, path: str) -> tuple[Route | None, str]:
        """The route of a path, with and without its `/v1`, and the argument where the path ends in one."""
        if path.startswith("/v1/"):
            path = path[3:]
        route = self._routes.get(path)
        if route is not None:
            return route, ""
        argument = ""
        for candidate in self._prefixes:
            if path.startswith(candidate.prefix) and len(path) > len(candidate.prefix):
                route, argument = candidate, path[len(candidate.prefix) :]
        return route or self._routes.get(_tidied(path)), argument

    async def _answer(self, route: Route, exchange: Exchange, is_refused: bool | None) -> None:
        """Run a handler. Errors it lets through are answered here, unless its answer had begun.

        `is_refused`: whether there is no room for a call, where that is decided already.
        """
        overload = self._overload
        overload.inside += 1
        try:
            handler = route.handlers.get(exchange.method)
            if handler is None:
                raise MethodNotAllowed(", ".join(route.handlers))
            if self._is_draining():
                raise Draining
            if exchange.method == "POST" and (overload.refuses() if is_refused is None else is_refused):
                raise Overloaded(retry_after_s=overload.retry_after_s())
            await handler(exchange)
        except GatewayError as error:
            error_answered(error)
            await exchange.send_error(error, route.error_body)
        except Exception:  # noqa: BLE001 - the error boundary
            logger.exception("unexpected_error", request_id=exchange.request_id, path=exchange.path)
            internal = InternalError()
            error_answered(internal)
            await exchange.send_error(internal, route.error_body)
        finally:
            overload.inside -= 1


def _drawn(size: int) -> Iterator[bytes]:
    """Random bytes for ever, drawn for many at once: each draw is a system call. The first is made with the first request, so no two
    processes share one."""
    while True:
        pool = os.urandom(DRAWN_AT_ONCE * size)
        for start in range(0, len(pool), size):
            yield pool[start : start + size]


def _tidied(path: str) -> str:
    """A path as it was meant: clients join a base address and a path with a slash too many, or with the base's `/v1` twice."""
    parts = [part for part in path.split("/") if part]
    while parts[:1] == ["v1"]:
        parts.pop(0)
    return "/" + "/".join(parts)


def _doubt_claimed_address(scope: Scope) -> None:
    """Forget an address that is the client's own word. A bare `uvicorn app.main:app` takes what anybody on its own machine writes into
    `X-Forwarded-For` for where he is, and the true one is lost by then; a loopback address is what he has anyway."""
    client = scope.get("client")
    if not client or client[0].startswith("127.") or client[0] == "::1":
        return
    for name, value in scope["headers"]:
        if name == b"x-forwarded-for" and client[0].encode() in value:
            scope["client"] = None


def _closing(send: Send) -> Send:
    """Nobody is to keep a connection to a process that is leaving."""

    async def send_closing(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        await send(message)

    return send_closing


def _with_request_id(send: Send, request_id: str) -> Send:
    value = request_id.encode()

    async def send_with_id(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers: list[tuple[bytes, bytes]] = list(message.get("headers", ()))
            present: set[bytes] = {name for name, _ in headers}
            for name in (b"x-request-id", b"request-id"):
                if name not in present:
                    headers.append((name, value))
            message = {**message, "headers": headers}
        await send(message)

    return send_with_id
