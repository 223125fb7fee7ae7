"""The server's side of HTTP, as `python -m app serve` runs it: a small application behind it says what it was given."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import uvicorn
from starlette.types import Message, Receive, Scope, Send

from app.http_protocol import HEAD_BYTES, HttpProtocol

BODY = b'{"model": "m"}'
HEAD = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % len(BODY)


class Impatient(HttpProtocol):
    """For heads that do not end: on a busy machine one that does may take as long."""

    head_s = 0.5


class LessImpatient(HttpProtocol):
    head_s = 2.0


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """The body, after as many parts as the caller named in the path: `/stream` sends it in two."""
    body = b""
    while True:
        message: Message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    headers = [] if scope["path"] == "/stream" else [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body[:3], "more_body": True})
    await send({"type": "http.response.body", "body": body[3:]})


@asynccontextmanager
async def serving(http: type[HttpProtocol]) -> AsyncIterator[int]:
    """Its port."""
    config = uvicorn.Config(
        echo, host="127.0.0.1", port=0, http=http, lifespan="off", log_config=None, server_header=False
    )
    server = uvicorn.Server(config)
    served = asyncio.create_task(server._serve())
    while not server.started:
        await asyncio.sleep(0.005)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await served


@pytest.fixture
async def port() -> AsyncIterator[int]:
    async with serving(HttpProtocol) as number:
        yield number


@pytest.fixture
async def impatient_port() -> AsyncIterator[int]:
    async with serving(Impatient) as number:
        yield number


async def said(port: int, *pieces: bytes, within_s: float = 10.0) -> bytes:
    """All that the server sends until it closes; pieces are sent one after the other."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(within_s):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.01)
            return await reader.read()
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def split(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(status.split(" ")[1]), headers, body


CLOSING = b"Connection: close\r\n\r\n"
UNREADABLE = {
    "no HTTP": b"hello\r\n\r\n",
    "an unknown method": b"FOO / HTTP/1.1\r\nHost: x\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 3\r\n\r\n" + BODY,
    "a length and chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + BODY,
    "a folded header": HEAD + b"A: b\r\n c\r\n\r\n" + BODY,
    "a NUL": HEAD + b"A: \0\r\n\r\n" + BODY,
    "bare line feeds": HEAD.replace(b"\r", b"") + b"\n" + BODY,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "an address beyond any": b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("name", UNREADABLE)
async def test_what_cannot_be_read_as_http_is_refused_in_the_error_shape(port: int, name: str) -> None:
    status, headers, body = split(await said(port, UNREADABLE[name]))

    error = json.loads(body)["error"]
    assert (status, error["code"], error["type"]) == (400, "invalid_request", "invalid_request_error")
    assert error["request_id"] == headers["x-request-id"] == headers["request-id"]
    assert (headers["content-type"], headers["connection"]) == ("application/json", "close")


@pytest.mark.parametrize("spelling", [b"Upgrade: h2c", b"upgrade: h2c", b"Upgrade: TLS/1.0"])
async def test_an_offer_of_another_protocol_costs_a_request_nothing(port: int, spelling: bytes) -> None:
    """Java's own client offers HTTP/2 with every request, and sends its body at once."""
    offer = (
        b"Connection: Upgrade, HTTP2-Settings\r\n"
        + spelling
        + b"\r\nHTTP2-Settings: AAMAAABk\r\nConnection: close\r\n\r\n"
    )
    for pieces in ((HEAD + offer + BODY,), (HEAD + offer, BODY)):
        status, _, body = split(await said(port, *pieces))
        assert (status, body) == (200, BODY)


async def test_a_client_of_http_1_0_is_sent_no_chunks(port: int) -> None:
    asked = b"POST /stream HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(BODY)
    status, headers, body = split(await said(port, asked + BODY))
    assert (status, body) == (200, BODY)
    assert "transfer-encoding" not in headers
    newer = asked.replace(b"1.0\r\n", b"1.1\r\nHost: x\r\nConnection: close\r\n")
    assert split(await said(port, newer + BODY))[1]["transfer-encoding"] == "chunked"


@pytest.mark.parametrize("begun", [b"", HEAD], ids=["nothing", "half a head"])
async def test_t138_a_head_that_does_not_end_is_given_up(impatient_port: int, begun: bytes) -> None:
    assert await said(impatient_port, begun) == b""


async def test_t138_a_head_that_ended_leaves_the_body_to_the_applications_own_deadline() -> None:
    async with serving(LessImpatient) as port:
        with pytest.raises(TimeoutError):
            await said(port, HEAD + CLOSING, within_s=3.0)


async def test_a_second_head_on_a_kept_connection_must_end_too() -> None:
    async with serving(LessImpatient) as port:
        answer = await said(port, HEAD + b"\r\n" + BODY, b"GET /again HTTP/1.1\r\nHost")
    assert split(answer)[0] == 200


async def test_a_slow_head_that_arrives_in_time_is_served(port: int) -> None:
    whole = HEAD + CLOSING + BODY
    status, _, body = split(await said(port, whole[:10], whole[10:30], whole[30:]))
    assert (status, body) == (200, BODY)


async def test_a_head_without_an_end_is_not_gathered_for_ever(port: int) -> None:
    line = b"X-A: " + b"y" * 1000 + b"\r\n"
    pieces = [line * 50] * (HEAD_BYTES // (50 * len(line)) + 2)
    try:
        answer = await said(port, HEAD, *pieces)
    except ConnectionError:
        return  # closed while more was being sent
    status, _, body = split(answer)
    assert (status, json.loads(body)["error"]["code"]) == (431, "headers_too_large")
