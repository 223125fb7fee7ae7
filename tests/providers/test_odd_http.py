"""Answers that are legal HTTP but odd, and answers that are none: what becomes of them over real sockets."""

from __future__ import annotations

import asyncio
import socket
import time
from asyncio import AbstractEventLoopPolicy, DefaultEventLoopPolicy
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic

import pytest
import uvloop

from app.domain.egress import LAPTOP
from app.providers.http1 import MAX_HEAD_BYTES, Connection
from app.providers.transport import Deadlines, ExchangeFailed, Outgoing, Transport
from tests.kit.stalls import require_close_to, stalled_s

OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"Content-Length: 5\r\n\r\nhello"
STREAMED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
PAUSE_S = 0.02
"""Between two segments: they reach the client apart."""


@pytest.fixture(scope="module", params=[DefaultEventLoopPolicy, uvloop.EventLoopPolicy], ids=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> AbstractEventLoopPolicy:
    policy: AbstractEventLoopPolicy = request.param()
    return policy


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    client = Transport(LAPTOP)
    yield client
    await client.close()


Answering = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Server:
    """A server that answers by hand; `requests` are the bodies it was sent."""

    url: str = ""
    connections: int = 0
    requests: list[bytes] = field(default_factory=list)


async def request_read(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return await reader.readexactly(length)


@asynccontextmanager
async def serving(answering: Answering, *, host: str = "127.0.0.1") -> AsyncIterator[Server]:
    server = Server()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        try:
            while True:
                server.requests.append(await request_read(reader))
                await answering(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    listener = await asyncio.start_server(connected, host, 0)
    server.url = f"http://{host}:{listener.sockets[0].getsockname()[1]}/v1"
    async with listener:
        yield server


def saying(*segments: bytes, then_close: bool = False, pause_s: float = PAUSE_S) -> Answering:
    async def answering(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for segment in segments:
            writer.write(segment)
            await writer.drain()
            await asyncio.sleep(pause_s if len(segments) > 1 else 0)
        if then_close:
            writer.close()

    return answering


def asked(url: str, *, first_s: float = 5, between_s: float = 5, total_s: float = 20, body: bytes = b"{}") -> Outgoing:
    return Outgoing("POST", url, Deadlines(5, first_s, between_s, monotonic() + total_s), {}, body)


async def fetched(transport: Transport, url: str, **limits: float) -> bytes:
    async with transport.opened(asked(url, **limits)) as exchange:  # type: ignore[arg-type]
        return await exchange.read_all()


async def failure(transport: Transport, url: str, **limits: float) -> ExchangeFailed:
    with pytest.raises(ExchangeFailed) as caught:
        await fetched(transport, url, **limits)
    return caught.value


# ── Framing ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_chunks_size_that_comes_alone_is_not_the_end_of_the_body(transport: Transport) -> None:
    """Many servers write a chunk's size, its bytes and its end apart."""
    segments = (
        STREAMED,
        b"6",
        b"\r\n",
        b"hello ",
        b"\r",
        b"\n",
        b"5;name=value\r\n",
        b"world",
        b"\r\n",
        b"0",
        b"\r\n\r\n",
    )
    async with serving(saying(*segments)) as server:
        assert await fetched(transport, server.url) == b"hello world"
        assert await fetched(transport, server.url) == b"hello world"
        assert server.connections == 1


async def test_a_chunks_size_that_comes_alone_is_not_the_end_of_a_stream(transport: Transport) -> None:
    async with serving(
        saying(STREAMED, b"5\r\n", b"hello", b"\r\n5", b"\r\nworld\r\n", b"0\r\nX-Trailer: t", b"\r\n\r\n")
    ) as server:
        async with transport.opened(asked(server.url)) as exchange:
            assert [chunk async for chunk in exchange.chunks()] == [b"hello", b"world"]


async def test_every_byte_in_a_segment_of_its_own(transport: Transport) -> None:
    whole = STREAMED + b"6\r\nhello \r\n5\r\nworld\r\n0\r\nX-Trailer: t\r\n\r\n"
    async with serving(saying(*(whole[i : i + 1] for i in range(len(whole))), pause_s=0.002)) as server:
        assert await fetched(transport, server.url) == b"hello world"


ODD = {
    "spaces behind a chunk's size": STREAMED + b"5   \r\nhello\r\n0  \r\n\r\n",
    "leading zeros of a size": STREAMED + b"0000005\r\nhello\r\n0000\r\n\r\n",
    "capital hexadecimal": STREAMED + b"5\r\nhello\r\n0\r\n\r\n",
    "extensions, quoted": STREAMED + b'5;a="b;c";d\r\nhello\r\n0;last\r\n\r\n',
    "trailers": STREAMED + b"5\r\nhello\r\n0\r\nX-A: 1\r\nServer-Timing: x\r\n\r\n",
    "lines that end in LF": b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
    "no reason": b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello",
    "a reason in latin-1": b"HTTP/1.1 200 Tr\xe8s bien\r\nContent-Length: 5\r\n\r\nhello",
    "no space behind a colon": b"HTTP/1.1 200 OK\r\nContent-Length:5\r\nX:\r\n\r\nhello",
    "many early answers": b"HTTP/1.1 102 Processing\r\n\r\n" * 50 + HELLO,
    "100 Continue unasked": b"HTTP/1.1 100 Continue\r\n\r\n" + HELLO,
    "early hints with a length": b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + HELLO,
    "an encoding that packs nothing": OK + b"Content-Encoding: utf-8\r\nContent-Length: 5\r\n\r\nhello",
    "identity": OK + b"Content-Encoding: Identity\r\nContent-Length: 5\r\n\r\nhello",
    "30 KB of headers": OK + b"X-Big: " + b"a" * 30_000 + b"\r\nContent-Length: 5\r\n\r\nhello",
    "200 headers": OK + b"".join(b"X-%d: 1\r\n" % i for i in range(200)) + b"Content-Length: 5\r\n\r\nhello",
}


@pytest.mark.parametrize("name", ODD)
async def test_what_is_odd_and_clear_is_taken(transport: Transport, name: str) -> None:
    async with serving(saying(ODD[name])) as server:
        assert await fetched(transport, server.url) == b"hello"


@pytest.mark.parametrize(
    "head", [OK, b"HTTP/1.0 200 OK\r\n", OK + b"Connection: close\r\n", b"HTTP/1.0 200 OK\r\nConnection: close\r\n"]
)
async def test_a_body_may_end_with_its_connection(transport: Transport, head: bytes) -> None:
    async with serving(saying(head + b"\r\nhel", b"lo", then_close=True)) as server:
        assert await fetched(transport, server.url) == b"hello"
        assert await fetched(transport, server.url) == b"hello"
        assert server.connections == 2


async def test_of_two_answers_in_a_row_over_http_1_0_each_is_read_as_it_is(transport: Transport) -> None:
    head = b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello"
    async with serving(saying(head)) as server:
        assert [await fetched(transport, server.url) for _ in range(2)] == [b"hello"] * 2
        assert server.connections == 1


BROKEN = {
    "a size that is none": STREAMED + b"5\r\nhello\r\nxyz\r\n",
    "a negative size": STREAMED + b"-5\r\nhello\r\n",
    "a size beyond all numbers": STREAMED + b"fffffffffffffffff\r\nhello",
    "a size in another notation": STREAMED + b"0x5\r\nhello\r\n0\r\n\r\n",
    "bytes behind a chunk": STREAMED + b"5\r\nhelloworld\r\n0\r\n\r\n",
    "a header without a colon": OK + b"Content-Length: 5\r\nNonsense\r\n\r\nhello",
    "a header without a name": OK + b": x\r\nContent-Length: 5\r\n\r\nhello",
    "a space before the colon": OK + b"Content-Length : 5\r\n\r\nhello",
    "NUL in a header": OK + b"X-A: a\x00b\r\nContent-Length: 5\r\n\r\nhello",
    "two lengths": OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "a length and chunks": OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "a length in words": OK + b"Content-Length: five\r\n\r\nhello",
    "a length beyond all numbers": OK + b"Content-Length: 99999999999999999999999\r\n\r\nhello",
    "HTTP/2": b"HTTP/2 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "HTTP/2's own bytes": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + b"\x00" * 18,
    "a TLS alert": b"\x15\x03\x03\x00\x02\x02\x28",
    "an endless head": OK + b"X: " + b"a" * (MAX_HEAD_BYTES + 1),
    "endless early answers": b"HTTP/1.1 102 Processing\r\n\r\n" * (MAX_HEAD_BYTES // 25),
    "endless trailers": STREAMED + b"5\r\nhello\r\n0\r\n" + b"X-A: 1\r\n" * (MAX_HEAD_BYTES // 4),
    "an endless trailer": STREAMED + b"5\r\nhello\r\n0\r\nX-A: " + b"a" * (MAX_HEAD_BYTES * 2),
    "an endless extension": STREAMED + b"5;" + b"a" * (MAX_HEAD_BYTES * 2),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_what_is_no_answer_is_never_taken_for_one(transport: Transport, name: str) -> None:
    async with serving(saying(BROKEN[name], then_close=True)) as server:
        fault = await failure(transport, server.url)
    assert fault.reason in ("bad_http", "connection_lost", "body_too_large")
    assert fault.is_sent


@pytest.mark.parametrize("encoding", [b"gzip", b"br", b"zstd", b"deflate", b"x-gzip", b"identity, GZIP", b"dcb"])
async def test_t080_what_is_packed_is_refused_before_it_is_read(transport: Transport, encoding: bytes) -> None:
    async with serving(saying(OK + b"Content-Encoding: " + encoding + b"\r\nContent-Length: 5\r\n\r\nhello")) as server:
        assert (await failure(transport, server.url)).reason == "encoded_answer"


@pytest.mark.parametrize("status", [204, 304])
async def test_a_status_without_a_body_has_none_whatever_its_headers_say(transport: Transport, status: int) -> None:
    async with serving(saying(b"HTTP/1.1 %d X\r\nETag: 1\r\n\r\n" % status)) as server:
        assert [await fetched(transport, server.url) for _ in range(2)] == [b"", b""]
        assert server.connections == 1


# ── Time ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_framing_without_a_byte_of_the_body_is_no_progress(transport: Transport) -> None:
    """Trailers that trickle in keep nobody waiting beyond the deadline between two pieces."""
    trickle = (b"X-%d: 1\r\n" % number for number in range(1000))
    async with serving(saying(STREAMED, b"5\r\nhello\r\n", b"0\r\n", *trickle)) as server:
        began = monotonic()
        fault = await failure(transport, server.url, between_s=0.4)
    assert (fault.reason, fault.is_timeout) == ("between_tokens_timeout", True)
    assert monotonic() - began - stalled_s(began) < 4


async def test_t074_a_head_that_comes_late_leaves_less_time_for_the_first_byte(transport: Transport) -> None:
    """One deadline from the request to the first byte of the body: a head is no answer."""

    async def late(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.9)
        writer.write(STREAMED)
        await asyncio.sleep(30)

    async with serving(late) as server:
        began = monotonic()
        fault = await failure(transport, server.url, first_s=1.0)
        taken_s = monotonic() - began
    assert fault.reason == "first_token_timeout"
    require_close_to(taken_s, 1.0)


# ── Kept connections ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_kept_connection_is_not_used_longer_than_its_server_says(transport: Transport) -> None:
    answer = OK + b"Keep-Alive: timeout=1, max=100\r\nContent-Length: 5\r\n\r\nhello"
    async with serving(saying(answer)) as server:
        for _ in range(3):
            assert await fetched(transport, server.url) == b"hello"
        assert server.connections == 3


async def test_a_connection_that_closes_just_as_it_is_used_is_replaced_and_the_request_sent_once(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upstream gave up waiting in the very moment in which the request left: nobody there has read a byte of it."""
    monkeypatch.setattr(Connection, "is_stale", lambda _: False)  # its close is still on the way when we look
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(5)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    read: list[bytes] = []

    def serve_one() -> socket.socket:
        connection, _ = listener.accept()
        read.append(connection.recv(65536))
        connection.sendall(HELLO)
        return connection

    served = asyncio.create_task(asyncio.to_thread(serve_one))
    assert await fetched(transport, url) == b"hello"
    first = await served
    again = asyncio.create_task(asyncio.to_thread(serve_one))
    await asyncio.sleep(0)
    first.shutdown(socket.SHUT_RDWR)
    first.close()  # no turn of the loop between this and the next request
    async with transport.opened(asked(url)) as exchange:
        assert await exchange.read_all() == b"hello"
        assert exchange.is_fresh
    (await again).close()
    listener.close()
    assert len(read) == 2


async def test_a_kept_connection_whose_upstream_took_the_request_and_closed_is_not_asked_again(
    transport: Transport,
) -> None:
    """It may have acted on it: whether to ask again is for others to say, who know what it may cost."""
    answers = iter([HELLO])

    async def once(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = next(answers, None)
        if answer is None:
            writer.close()
        else:
            writer.write(answer)

    async with serving(once) as server:
        assert await fetched(transport, server.url) == b"hello"
        fault = await failure(transport, server.url)
        assert (fault.reason, fault.is_sent) == ("connection_lost", True)
        assert (len(server.requests), server.connections) == (2, 1)


# ── Names ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Names:
    """A name server by script: what each look-up gives, in order; the last one stays."""

    def __init__(self, *script: list[str] | OSError | float) -> None:
        self._script = list(script)
        self.asked = 0

    def __call__(self, host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        self.asked += 1
        step = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        if isinstance(step, float):
            time.sleep(step)
            step = self._script.pop(0) if len(self._script) > 1 else ["127.0.0.1"]
        if isinstance(step, OSError):
            raise step
        assert isinstance(step, list)
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (ip, port, 0, 0)) if ":" in ip
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port))
            for ip in step
        ]  # fmt: skip

    def put_up(self, monkeypatch: pytest.MonkeyPatch, *, ttl_s: float = 0.0) -> None:
        monkeypatch.setattr("app.providers.transport.socket.getaddrinfo", self)
        monkeypatch.setattr("app.providers.transport.DNS_TTL_S", ttl_s)


NOT_KNOWN = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


def by_name(server: Server) -> str:
    return server.url.replace("127.0.0.1", "upstream.test")


CLOSING = OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello"


async def test_t106_a_name_server_that_fails_now_and_then_is_bridged_by_what_it_said_last(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names(["127.0.0.1"], NOT_KNOWN)
    async with serving(saying(CLOSING)) as server:
        names.put_up(monkeypatch)
        assert [await fetched(transport, by_name(server)) for _ in range(3)] == [b"hello"] * 3
    assert names.asked == 3


async def test_t106_a_name_server_that_became_slow_holds_nobody_up_who_has_an_address(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names(["127.0.0.1"], 3.0, ["127.0.0.1"])
    async with serving(saying(CLOSING)) as server:
        names.put_up(monkeypatch)
        assert await fetched(transport, by_name(server)) == b"hello"
        began = monotonic()
        assert await fetched(transport, by_name(server)) == b"hello"
    assert monotonic() - began - stalled_s(began) < 2


async def test_t040_a_name_that_turns_to_a_forbidden_address_is_not_bridged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rebinding: the new answer counts, and it is refused."""
    names = Names(["127.0.0.1"], ["169.254.169.254"])
    transport = Transport(LAPTOP)
    async with serving(saying(CLOSING)) as server:
        names.put_up(monkeypatch)
        assert await fetched(transport, by_name(server)) == b"hello"
        fault = await failure(transport, by_name(server))
        assert (fault.reason, fault.is_blocked, server.connections) == ("endpoint_blocked", True, 1)
    await transport.close()


async def test_a_host_that_moved_is_found_after_one_failure(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names(["127.0.0.2"], ["127.0.0.1"])
    async with serving(saying(CLOSING)) as server:
        names.put_up(monkeypatch, ttl_s=30.0)
        assert (await failure(transport, by_name(server))).reason == "connect_failed"
        assert await fetched(transport, by_name(server)) == b"hello"


@pytest.mark.parametrize("dead", ["::1", "100::1", "127.0.0.2"])
async def test_a_dead_first_address_does_not_hide_the_second(
    transport: Transport, monkeypatch: pytest.MonkeyPatch, dead: str
) -> None:
    """Refused, without a route, or on a machine that knows no IPv6 at all."""
    names = Names([dead, "127.0.0.1"])
    async with serving(saying(CLOSING)) as server:
        names.put_up(monkeypatch, ttl_s=30.0)
        began = monotonic()
        assert await fetched(transport, by_name(server)) == b"hello"
    assert monotonic() - began - stalled_s(began) < 3


async def test_a_first_address_that_swallows_everything_costs_a_moment(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(saying(CLOSING)) as server:
        port = int(server.url.rpartition(":")[2].partition("/")[0])
        with socket.socket() as full:
            full.bind(("127.0.0.3", port))
            full.listen(0)
            fillers = [socket.socket() for _ in range(4)]
            for filler in fillers:  # its queue is full: further attempts are not even refused
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.3", port))
            names = Names(["127.0.0.3", "127.0.0.1"])
            names.put_up(monkeypatch, ttl_s=30.0)
            assert await fetched(transport, by_name(server)) == b"hello"
            for filler in fillers:
                filler.close()
