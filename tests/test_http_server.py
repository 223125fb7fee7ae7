"""The server's own way of writing an answer writes what uvicorn writes, for whatever an application sends; only the head waits."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from app.http_server import HttpServer

REQUESTS = (
    b"GET /some/path?a=b HTTP/1.1\r\nHost: x\r\n\r\n",
    b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /p%C3%A4th HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody",
    b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab",
    b"GET / HTTP/1.0\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n",
)
NAMES = (
    b"content-length",
    b"Content-Length",
    b"transfer-encoding",
    b"connection",
    b"x-a",
    b"X-B",
    b"bad name",
    b"x\r\ny",
    b"",
)
VALUES = (
    b"0",
    b"3",
    b"chunked",
    b"Chunked",
    b"close",
    b"keep-alive, Close",
    b"a\tb",
    b"\xe4",
    b"a\r\nx: y",
    b"a\x00",
    b"a\nb",
    b"\x7f",
)


class Wire:
    """A transport that keeps what was written."""

    def __init__(self) -> None:
        self.written = b""
        self.writes = 0
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.written += data
        self.writes += 1

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def get_extra_info(self, name: str) -> Any:
        return None

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def sending(messages: list[Message], seen: list[Any]) -> ASGIApp:
    """An application that takes its request in, then sends these messages, whatever they are."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(
            {name: scope[name] for name in ("method", "path", "raw_path", "query_string", "http_version", "headers")}
        )
        seen.append(await receive())
        for message in messages:
            try:
                await send(message)
            except RuntimeError as error:
                seen.append(str(error))
                raise

    return app


async def exchanged(server: type[HttpToolsProtocol], request: bytes, messages: list[Message]) -> tuple[Wire, list[Any]]:
    seen: list[Any] = []
    config = Config(sending(messages, seen), lifespan="off", log_config=None, access_log=False, server_header=False)
    config.load()
    state = ServerState()
    state.default_headers = [(b"date", b"today")]
    wire = Wire()
    protocol = server(config, state, {})
    protocol.connection_made(wire)  # type: ignore[arg-type]
    protocol.data_received(request)
    while state.tasks:
        await asyncio.wait(state.tasks)
        await asyncio.sleep(0)
    protocol.connection_lost(None)
    return wire, seen


starts = st.fixed_dictionaries(
    {
        "type": st.just("http.response.start"),
        "status": st.sampled_from([200, 204, 304, 404, 599]),
        "headers": st.lists(st.tuples(st.sampled_from(NAMES[:6]), st.sampled_from(VALUES[:8])), max_size=4),
    }
)
bodies = st.fixed_dictionaries(
    {"type": st.just("http.response.body")},
    optional={"body": st.sampled_from([b"", b"abc", b"x" * 100]), "more_body": st.booleans()},
)


@settings(max_examples=300, deadline=None)
@given(request=st.sampled_from(REQUESTS), start=starts, parts=st.lists(bodies, min_size=1, max_size=4))
def test_an_answer_is_written_as_uvicorn_writes_it(request: bytes, start: Message, parts: list[Message]) -> None:
    if any(value not in (b"0", b"3") for name, value in start["headers"] if name.lower() == b"content-length"):
        return  # a length that is no number: uvicorn's ValueError is ours, and says nothing about what is written

    async def both() -> None:
        theirs, they_saw = await exchanged(HttpToolsProtocol, request, [start, *parts])
        ours, we_saw = await exchanged(HttpServer, request, [start, *parts])
        # Where an application fails at the first part, uvicorn's head was out already, and ours had waited.
        has_failed = any(isinstance(each, str) for each in we_saw)
        assert ours.written == theirs.written or (has_failed and theirs.written.startswith(ours.written))
        assert ours.is_closed == theirs.is_closed
        assert we_saw == they_saw

    asyncio.run(both())


@pytest.mark.parametrize(
    "headers",
    [[(name, b"v")] for name in (b"bad name", b"x\r\ny", b"x:y")]
    + [[(b"x-a", value)] for value in (b"a\r\nx: y", b"a\x00", b"a\nb", b"a\rb", b"\x7f", b"\r\n")],
)
async def test_a_header_that_could_become_two_is_never_written(headers: list[tuple[bytes, bytes]]) -> None:
    start = {"type": "http.response.start", "status": 200, "headers": headers}
    body = {"type": "http.response.body", "body": b"abc"}

    for server in (HttpToolsProtocol, HttpServer):
        wire, seen = await exchanged(server, REQUESTS[0], [start, body])
        assert seen[-1].startswith("Invalid HTTP header")
        assert b"x: y" not in wire.written
        assert wire.is_closed


async def test_head_and_body_leave_in_one_write() -> None:
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]}

    wire, _ = await exchanged(HttpServer, REQUESTS[0], [start, {"type": "http.response.body", "body": b"abc"}])

    assert wire.writes == 1
    assert wire.written.endswith(b"\r\n\r\nabc")


@pytest.mark.parametrize("message", [{"type": "http.response.body"}, {"type": "http.response.trailers"}])
async def test_what_is_no_beginning_of_an_answer_is_refused(message: Message) -> None:
    for server in (HttpToolsProtocol, HttpServer):
        _, seen = await exchanged(server, REQUESTS[0], [message])
        assert seen[-1].startswith("Expected ASGI message 'http.response.start'")


async def test_nothing_is_sent_behind_the_end_of_an_answer() -> None:
    start: Message = {"type": "http.response.start", "status": 200, "headers": []}
    body: Message = {"type": "http.response.body", "body": b"abc"}

    for server in (HttpToolsProtocol, HttpServer):
        wire, seen = await exchanged(server, REQUESTS[0], [start, body, body])
        assert seen[-1].startswith("Unexpected ASGI message")
        assert wire.written.endswith(b"3\r\nabc\r\n0\r\n\r\n")


async def test_a_name_that_nobody_knew_is_looked_at_every_time_once_too_many_are_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.http_server.MAX_NAMES", 0)
    start = {"type": "http.response.start", "status": 200, "headers": [(b"X-Never-Seen", b"v")]}

    wire, _ = await exchanged(HttpServer, REQUESTS[0], [start, {"type": "http.response.body"}])

    assert b"x-never-seen: v\r\n" in wire.written
