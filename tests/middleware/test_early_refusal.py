"""Refusing a call before it is read: the same answer as the ordinary way gives, and only to what is plainly one whole call. T136."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from app.dialects.messages import Messages
from app.dialects.openai_errors import error_body
from app.doorway import AT_ONCE, Doorway, Factory
from app.doorway import STATE as DOORWAY
from app.middleware.connection import Connection, given_to
from app.middleware.early_refusal import IS_REFUSED, STATE, EarlyRefusals
from app.middleware.exchange import Exchange
from app.middleware.route import Route
from app.services.overload import MANY_CALLS, PATIENCE_S, STALL_S, Overload
from tests.kit import raw_http
from tests.kit.certificates import make_certificate
from tests.kit.clock import ManualClock
from tests.kit.raw_http import RawConnection, request_bytes

BODY = b'{"model": "m"}'


async def never(exchange: Exchange) -> None:
    raise AssertionError(exchange.path)


ROUTES = {
    "/chat/completions": Route({"POST": never}, error_body),
    "/messages": Route({"POST": never}, Messages().error_body),
    "/models": Route({"GET": never}, error_body),
}
PREFIXES = (
    Route({"POST": never}, error_body, prefix="/openai/deployments/"),
    Route({"GET": never}, error_body, prefix="/usage/"),
)


def refusals(*, is_overloaded: bool = True, is_leaving: bool = False, max_connections: int = 100) -> EarlyRefusals:
    overload = Overload(ManualClock(), chance=lambda: 0.5, max_calls=1000, max_connections=max_connections)
    overload.inside = MANY_CALLS
    if is_overloaded:
        for _ in range(math.ceil(PATIENCE_S / STALL_S)):
            overload.ticked(0.05, 1.0)
    return EarlyRefusals(overload, routes=ROUTES, prefixes=PREFIXES, is_leaving=lambda: is_leaving)


def call(path: str = "/v1/chat/completions", body: bytes = BODY, **headers: str) -> bytes:
    own = {name.replace("_", "-"): value for name, value in headers.items()}
    return request_bytes("POST", path, headers={"Content-Length": str(len(body)), **own}) + body


@asynccontextmanager
async def serving(
    early: EarlyRefusals, *, http: Any = Connection, doorway: Doorway | None = None, **options: Any
) -> AsyncIterator[tuple[int, list[Any]]]:
    """uvicorn with our connections. Yields its port, and what its application heard decided of each request."""
    heard: list[Any] = []

    async def app(
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        if scope["type"] == "lifespan":
            scope["state"] |= {STATE: early, DOORWAY: doorway}
            given_to(send)  # type: ignore[arg-type]
            for kind in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{kind}.complete"})
            return
        heard.append(scope["state"].get(IS_REFUSED))
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    config = uvicorn.Config(app, host="127.0.0.1", port=0, http=http, lifespan="on", log_config=None, **options)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1], heard
    finally:
        server.should_exit = True
        await serving


async def test_a_call_is_refused_in_the_shape_of_its_route_and_its_connection_stays() -> None:
    async with serving(refusals()) as (port, heard), RawConnection(port) as connection:
        for path in ("/v1/chat/completions", "/chat/completions?beta=true", "/openai/deployments/m/chat/completions"):
            await connection.send(call(path))
            answer = await connection.response()
            assert answer.status == 503
            error = json.loads(answer.body)["error"]
            assert (error["code"], error["request_id"]) == ("overloaded", answer.header("x-request-id"))
            assert answer.header("x-request-id") == answer.header("request-id")
            assert (answer.header("retry-after"), answer.header("retry-after-ms")) == ("2", "2000")
            assert answer.header("date")
        await connection.send(call("/v1/messages", Connection="close"))
        answer = await connection.response()
        body = json.loads(answer.body)
        assert (body["type"], body["error"]["type"]) == ("error", "overloaded_error")
        assert body["request_id"] == answer.header("request-id")
        assert answer.header("connection") == "close"
    assert heard == []


@pytest.mark.parametrize(("http", "status"), [("auto", 503), ("httptools", 503), ("h11", 200)])
async def test_a_server_that_was_started_by_hand_refuses_early_too_unless_it_was_told_otherwise(
    http: str, status: int
) -> None:
    async with serving(refusals(), http=http) as (port, heard), RawConnection(port) as connection:
        await connection.send(call())
        assert (await connection.response()).status == status
    assert len(heard) == (status == 200)


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("another path", call("/v1/nothing")),
        ("another method", request_bytes("GET", "/v1/models")),
        ("a path that only GET knows", call("/v1/usage/1")),
        ("administration", call("/admin/api/keys")),
    ],
)
async def test_what_is_no_call_is_never_refused(name: str, raw: bytes) -> None:
    async with serving(refusals()) as (port, heard), RawConnection(port) as connection:
        await connection.send(raw)
        assert (await connection.response()).status == 200, name
    assert heard == [None]


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("chunks", call(body=b"", Transfer_Encoding="chunked").replace(b"Content-Length: 0\r\n", b"") + b"0\r\n\r\n"),
        ("no length", call(body=b"").replace(b"Content-Length: 0\r\n", b"")),
        ("an expectation", call(Expect="100-continue")),
        ("an upgrade", call(Connection="Upgrade", Upgrade="h2c")),
        ("two calls at once", call() * 2),
        ("HTTP/1.0", call().replace(b"HTTP/1.1", b"HTTP/1.0")),
        ("a length that is none", call().replace(b"Content-Length: 14", b"Content-Length: +14")),
        ("two lengths", call().replace(b"Content-Length: 14\r\n", b"Content-Length: 14\r\ncontent-length: 14\r\n")),
    ],
)
async def test_what_is_not_plainly_one_whole_call_is_read_and_comes_with_the_decision(name: str, raw: bytes) -> None:
    async with serving(refusals()) as (port, heard):
        await raw_http.exchange(port, raw.replace(b"Host:", b"X-Close: 1\r\nHost:"), timeout_s=1)
    assert all(each is True for each in heard[:1]), (name, heard)


async def test_a_body_that_comes_in_pieces_is_read_and_the_next_call_is_refused_early() -> None:
    async with serving(refusals()) as (port, heard), RawConnection(port) as connection:
        await connection.send(request_bytes("GET", "/v1/models"))
        await connection.response()  # the server reads from now on, and reads each piece before it reads the next
        raw = call(body=b" " * 1000)
        await connection.send(raw[:-500])
        await asyncio.sleep(0.05)
        await connection.send(raw[-500:])
        assert (await connection.response()).status == 200  # this application lets everything in
        await connection.send(call())
        assert (await connection.response()).status == 503
    assert heard == [None, True]


async def test_a_head_that_comes_in_pieces_is_left_to_the_ordinary_way() -> None:
    async with serving(refusals()) as (port, heard), RawConnection(port) as connection:
        await connection.send(request_bytes("GET", "/v1/models"))
        await connection.response()
        await connection.send(b"POST /v1/chat/comp")
        await asyncio.sleep(0.05)
        await connection.send(call().removeprefix(b"POST /v1/chat/comp"))
        assert (await connection.response()).status == 200
    assert heard == [None, None]


async def test_nothing_is_refused_while_the_loop_is_in_time_or_the_process_leaves() -> None:
    for early in (refusals(is_overloaded=False), refusals(is_leaving=True)):
        async with serving(early) as (port, heard), RawConnection(port) as connection:
            await connection.send(call())
            assert (await connection.response()).status == 200
        assert heard == [None]


async def test_a_connection_whose_calls_are_refused_is_kept_for_as_long_as_any_other() -> None:
    async with serving(refusals(), timeout_keep_alive=2) as (port, _), RawConnection(port) as connection:
        asked_s = 0.0
        for _ in range(2):
            asked_s = time.monotonic()
            await connection.send(call())
            assert (await connection.response()).status == 503
        (server_side,) = connections_of(port)
        server_side.timeout_keep_alive_handler()  # as if the time since the first one had passed
        with pytest.raises(EOFError):
            await connection.response()
        assert time.monotonic() - asked_s > 1.8


async def test_a_connection_that_there_is_no_room_for_is_refused_at_the_door() -> None:
    """T138."""
    async with serving(refusals(is_overloaded=False, max_connections=1)) as (port, heard), RawConnection(port) as first:
        await first.send(call())
        assert (await first.response()).status == 200
        async with RawConnection(port) as second:
            answer = await second.response()
            assert (answer.status, json.loads(answer.body)["error"]["code"]) == (503, "overloaded")
            assert answer.header("connection") == "close"
        await first.send(call())
        assert (await first.response()).status == 200
    assert heard == [None, None]


async def test_a_connection_that_was_just_taken_in_is_heard_when_the_server_leaves() -> None:
    async with serving(refusals(is_overloaded=False)) as (port, heard):
        async with RawConnection(port) as connection:
            while not connections_of(port):
                await asyncio.sleep(0.001)
            for each in connections_of(port):
                each.shutdown()
            await connection.send(call())
            assert (await connection.response()).status == 200
    assert heard == [None]


def connections_of(port: int) -> list[Connection]:
    return [each for each in gc.get_objects() if isinstance(each, Connection) and each.server == ("127.0.0.1", port)]


class Noting(Doorway):
    """Takes nobody in, and knows how often it was asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def take_in(self, make_connection: Factory, port: int | None, *, room: int = AT_ONCE) -> None:
        self.asked += 1


@pytest.mark.parametrize("is_tls", [False, True])
async def test_behind_tls_every_connection_is_the_servers_own(tmp_path: Path, is_tls: bool) -> None:
    """Taken in past the server it would be spoken to in plain text."""
    own, doorway = make_certificate(tmp_path), Noting()
    options = {"ssl_certfile": str(own.certificate), "ssl_keyfile": str(own.key)} if is_tls else {}
    async with serving(refusals(is_overloaded=False), doorway=doorway, **options) as (port, _):
        async with RawConnection(port, tls=own.client_context() if is_tls else None) as connection:
            await connection.send(call())
            assert (await connection.response()).status == 200

    assert doorway.asked == (0 if is_tls else 1)
