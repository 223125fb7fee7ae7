"""The raw client sends what it was given and reads what came, without repairing either."""

from __future__ import annotations

import json
import time

from tests.kit.raw_http import (
    RawConnection,
    SseEvent,
    SseStream,
    call,
    chunked,
    exchange,
    request_bytes,
)
from tests.kit.scenario import RawPiece, Scenario
from tests.kit.upstream import ScriptedUpstream
from tests.kit_selftest.chat import chat_request


def test_a_request_is_built_byte_for_byte() -> None:
    built = request_bytes(
        "POST",
        "/a?b",
        headers=[("X-A", "1"), ("x-a", "2\r\nInjected: yes"), ("Content-Length", "999")],
        body=b"hi",
        host=None,
    )
    assert built == b"POST /a?b HTTP/1.1\r\nX-A: 1\r\nx-a: 2\r\nInjected: yes\r\nContent-Length: 999\r\n\r\nhi"


def test_a_body_gets_its_length_unless_it_is_chunked() -> None:
    assert b"Content-Length: 2\r\n" in request_bytes("POST", "/", json_body={})
    assert b"Content-Length" not in request_bytes(
        "POST", "/", headers={"Transfer-Encoding": "chunked"}, body=chunked(b"x")
    )
    assert chunked(b"abc", b"d") == b"3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n"


async def stream_of(raw: bytes) -> list[SseEvent]:
    async with ScriptedUpstream() as up:
        up.script(Scenario(raw_stream=tuple(RawPiece(raw[i : i + 3]) for i in range(0, len(raw), 3))))
        async with SseStream.opened(up.port, chat_request(stream=True)) as stream:
            return [event async for event in stream]


async def test_events_are_cut_by_the_standard() -> None:
    raw = "\ufeffdata: a\ndata:b\n\n: note\n\nevent: x\r\ndata: {\u2028}\r\n\r\n:c\ndata: last\nid: 7\n\n".encode()
    events = await stream_of(raw)
    assert [(event.name, event.data, event.comment) for event in events] == [
        ("", "a\nb", None), ("", "", "note"), ("x", "{\u2028}", None), ("", "last", None),
    ]  # fmt: skip


async def test_events_carry_their_time_of_arrival() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(raw_stream=(RawPiece(b"data: 1\n\n"), RawPiece(b"data: 2\n\n", pause_ms=40))))
        began = time.time()
        async with SseStream.opened(up.port, chat_request(stream=True)) as stream:
            first, second = await stream.rest()
    assert began < first.at < second.at < time.time()
    assert second.at - began >= 0.03


async def test_an_unfinished_event_makes_a_stream_incomplete() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(raw_stream=(RawPiece(b"data: 1\n\ndata: 2"),)))
        async with SseStream.opened(up.port, chat_request(stream=True)) as stream:
            assert [event.data for event in await stream.rest()] == ["1"]
    assert stream.is_complete is False


async def test_a_request_can_be_sent_a_few_bytes_at_a_time() -> None:
    async with ScriptedUpstream() as up, RawConnection(up.port) as connection:
        started = time.monotonic()
        await connection.send_slowly(chat_request(), piece_bytes=40, pause_s=0.005)
        answer = await connection.response()
    assert answer.status == 200
    assert time.monotonic() - started >= 0.02


async def test_a_slow_reader_reads_at_its_rate() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(giant_body_bytes=100_000))
        async with RawConnection(up.port) as connection:
            await connection.send(chat_request())
            started = time.monotonic()
            got = await connection.receive_slowly(20_000, bytes_per_second=100_000)
    assert len(got) == 20_000
    assert time.monotonic() - started >= 0.19


async def test_leaving_by_reset_is_seen_as_a_hang_up() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(endless=True, gap_ms=1))
        async with SseStream.opened(up.port, chat_request(stream=True)) as stream:
            await stream.take(3)
            stream.reset()
            [line] = (await up.settled()).lines
    assert line.outcome == "client_hung_up"


async def test_a_head_request_has_no_body_to_wait_for() -> None:
    async with ScriptedUpstream() as up:
        answer = await call(up.port, "HEAD", "/v1/models")
        raw = await exchange(up.port, request_bytes("HEAD", "/v1/models", headers={"Connection": "close"}))
    assert (answer.status, answer.body) == (200, b"")
    assert raw.endswith(b"\r\n\r\n"), "the upstream does not send one either"


async def test_malformed_bytes_reach_the_server() -> None:
    async with ScriptedUpstream() as up:
        got = await exchange(up.port, b"NOT HTTP\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 400")
    assert json.loads(got.partition(b"\r\n\r\n")[2])["error"]["message"] == "not an HTTP/1.1 request line"
