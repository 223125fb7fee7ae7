"""Each fault happens on the wire as its name says, seen with a bare socket."""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
import time
import zlib

import pytest

from tests.kit.invoice import Usage
from tests.kit.raw_http import RawConnection, exchange, request_bytes
from tests.kit.scenario import RawPiece, Scenario
from tests.kit.upstream import ScriptedUpstream
from tests.kit_selftest.chat import CHAT, chat_body, chat_request, chat_stream, chat_text, post_chat

STREAM = chat_request(stream=True)


def last_request(**fields: object) -> bytes:
    """The connection ends with its answer: no silence has to tell that it was all."""
    body = chat_body(**fields)  # type: ignore[arg-type]
    return request_bytes("POST", CHAT, headers={"Connection": "close"}, json_body=body)


async def streamed_bytes(up: ScriptedUpstream) -> bytes:
    return await exchange(up.port, last_request(stream=True))


# ------------------------------------------------------------------ cuts


async def test_close_after_chunks_aborts_the_chunked_body() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(close_after_chunks=3, completion_tokens=8))
        async with chat_stream(up, include_usage=True) as stream:
            events = await stream.rest()
        [line] = (await up.settled()).lines
    assert stream.is_complete is False
    assert len(events) == 1 + 3
    assert "[DONE]" not in events[-1].data
    assert (line.outcome, line.chunks_delivered, line.usage_due, line.usage_reported) == ("cut", 3, Usage(10, 3), None)
    assert line.hung_up_at is None, "it was our cut, not the peer's"


async def test_close_after_chunks_with_close_framing_looks_like_a_whole_body() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(close_after_chunks=3, framing="close"))
        async with chat_stream(up) as stream:
            events = await stream.rest()
    assert stream.head.header("transfer-encoding") is None
    assert stream.head.header("connection") == "close"
    assert stream.is_complete is True
    assert len(events) == 1 + 3


async def test_close_after_no_chunk_sends_headers_only() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(close_after_chunks=0))
        got = await streamed_bytes(up)
    assert got.startswith(b"HTTP/1.1 200")
    assert got.endswith(b"\r\n\r\n")


async def test_reset_after_chunks_is_a_reset_and_the_chunks_arrive_before_it() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(reset_after_chunks=2))
        async with RawConnection(up.port) as connection:
            await connection.send(STREAM)
            got = bytearray()
            with pytest.raises(ConnectionResetError):
                await connection.receive_rest(into=got)
    assert got.count(b"data: ") == 1 + 2


async def test_a_reset_waits_for_a_slow_reader_to_have_it_all() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(giant_line_bytes=400_000, reset_after_chunks=1))
        async with RawConnection(up.port, receive_buffer_bytes=8_192) as connection:
            await connection.send(STREAM)
            got = bytearray(await connection.receive_slowly(100_000, bytes_per_second=2_000_000))
            with pytest.raises(ConnectionResetError):
                await connection.receive_rest(into=got)
    assert got.count(b"x") >= 400_000


async def test_half_an_event_goes_out_before_the_cut() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(close_after_chunks=2, half_event=True, framing="close"))
        got = await streamed_bytes(up)
    last = got.rpartition(b"\n\n")[2]
    assert last.startswith(b"data: {")
    assert b"}]}" not in last


async def test_a_stall_keeps_the_connection_open_and_silent() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(stall_after_chunks=2))
        async with chat_stream(up) as stream:
            assert len(await stream.take(3)) == 3
            stream.connection._timeout_s = 0.1
            with pytest.raises(TimeoutError):
                await stream.take(1)
            [line] = up.invoice().lines
            assert line.outcome == "in_flight"
        [line] = (await up.settled()).lines
    assert line.outcome == "client_hung_up"


@pytest.mark.parametrize(("fault", "sees_headers"), [("hang_before_headers", False), ("hang_after_headers", True)])
@pytest.mark.parametrize("is_stream", [False, True])
async def test_hanging_shows_headers_or_nothing(fault: str, sees_headers: bool, is_stream: bool) -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario.from_json({fault: True}))
        async with RawConnection(up.port) as connection:
            await connection.send(chat_request(stream=is_stream))
            if sees_headers:
                await connection.receive_until(b"\r\n\r\n")
            await up.requests_seen(1)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await connection.receive()


async def test_accept_and_close_sends_no_byte() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(accept_and_close=True))
        async with RawConnection(up.port) as connection:
            await connection.send(chat_request())
            assert await connection.receive_rest() == b""


async def test_accept_and_reset_sends_no_byte_but_a_reset() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(accept_and_reset=True))
        async with RawConnection(up.port) as connection:
            await connection.send(chat_request())
            with pytest.raises(ConnectionResetError):
                await connection.receive()


@pytest.mark.parametrize(("mode", "ending"), [("close", "eof"), ("reset", "reset"), ("ignore", "silence")])
async def test_a_connection_can_fail_before_any_request(mode: str, ending: str) -> None:
    async with ScriptedUpstream() as up:
        up.script(on_connect=mode)  # type: ignore[arg-type]
        async with RawConnection(up.port, timeout_s=0.1 if mode == "ignore" else 10) as connection:
            try:
                seen = "eof" if await connection.receive() == b"" else "bytes"
            except TimeoutError:
                seen = "silence"
            except ConnectionResetError:
                seen = "reset"
    assert seen == ending
    assert up.invoice().lines == ()


async def test_close_after_answer_leaves_a_stale_connection() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(close_after_answer=True))
        async with RawConnection(up.port) as connection:
            await connection.send(chat_request())
            answer = await connection.response()
            assert answer.is_complete
            assert answer.header("connection") is None, "not announced"
            assert await connection.receive() == b""


@pytest.mark.parametrize("lie", [50, -50])
async def test_a_lying_content_length_is_off_by_that_much(lie: int) -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(lying_content_length=lie))
        got = await exchange(up.port, last_request())
    head, _, body = got.partition(b"\r\n\r\n")
    assert b"content-length: %d" % (len(body) + lie) in head


async def test_drop_connections_ends_idle_ones() -> None:
    async with ScriptedUpstream() as up, RawConnection(up.port) as connection:
        await connection.send(chat_request())
        await connection.response()
        up.drop_connections()
        assert await connection.receive() == b""
        assert up.invoice().connections_open == 0


# ------------------------------------------------------------------ what is in the stream


async def test_an_error_event_ends_the_stream() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(error_event_after_chunks=2, error_code="overloaded"))
        async with chat_stream(up) as stream:
            openai = await stream.rest()
        async with chat_stream(up, path="/v1/messages") as stream:
            anthropic = await stream.rest()
        outcomes = up.invoice().outcomes()
    assert len(openai) == 1 + 2 + 1
    assert json.loads(openai[-1].data)["error"]["code"] == "overloaded"
    assert anthropic[-1].name == "error"
    assert json.loads(anthropic[-1].data)["error"]["type"] == "overloaded"
    assert stream.is_complete
    assert outcomes == {"failed_midstream": 2}


async def test_an_error_event_can_be_the_first_one() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(error_event_after_chunks=0, error_body='{"error":{"code":503,"message":"busy"}}'))
        async with chat_stream(up) as stream:
            events = await stream.rest()
    assert [json.loads(event.data)["error"]["code"] for event in events] == [503]


async def test_garbage_and_unknown_events_stand_between_good_chunks() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(chunks=4, garbage_after_chunks=(1, 3), unknown_event_after_chunks=2))
        async with chat_stream(up) as stream:
            events = await stream.rest()
    data = [event.data for event in events]
    assert [i for i, text in enumerate(data) if text == "{not json}"] == [2, 6]
    assert [event.name for event in events if event.name] == ["stub.unheard_of"]
    assert data[-1] == "[DONE]"


async def test_comments_alone_keep_coming() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(comments_every_ms=5))
        began = time.time()
        async with chat_stream(up) as stream:
            comments = [await anext(stream) for _ in range(4)]
    assert {event.comment for event in comments} == {"ping"}
    assert comments[-1].at - began >= 0.014


async def test_comments_can_be_counted_and_then_end() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(comments_every_ms=1, comments_count=3))
        async with chat_stream(up) as stream:
            assert await stream.rest() == []
    assert len(stream.events) == 3
    assert stream.is_complete


async def test_an_endless_stream_goes_on_until_the_caller_leaves() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(endless=True, chunks=2, completion_tokens=2, gap_ms=1))
        async with chat_stream(up) as stream:
            await stream.take(60)
        [line] = (await up.settled()).lines
    assert line.chunks_delivered >= 59
    assert line.usage_due.completion_tokens == line.chunks_delivered
    assert line.outcome == "client_hung_up"


@pytest.mark.parametrize(
    ("missing", "field"), [({"finish_reason": None}, '"finish_reason":"stop"'), ({"done_marker": False}, "[DONE]")]
)
async def test_finish_reason_and_end_marker_can_be_missing(missing: dict[str, object], field: str) -> None:
    async with ScriptedUpstream() as up:
        async with chat_stream(up) as stream:
            assert field in "".join(event.data for event in await stream.rest())
        up.script(Scenario.from_json(missing))
        async with chat_stream(up) as stream:
            assert field not in "".join(event.data for event in await stream.rest())
    assert stream.is_complete


# ------------------------------------------------------------------ odd but legal

TEXT = "Grüße, 世界 🚀 and plain text"


@pytest.mark.parametrize(
    "oddity",
    [
        {"crlf": True}, {"no_space_after_data": True}, {"multiline_data": True}, {"bom": True},
        {"one_byte_segments": True}, {"utf8_split": True}, {"events_per_segment": 5}, {"role_only_first": False},
        {"crlf": True, "multiline_data": True, "bom": True, "no_space_after_data": True, "utf8_split": True},
        {"framing": "close", "one_byte_segments": True, "crlf": True},
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/responses"])
async def test_odd_framing_carries_the_same_text(oddity: dict[str, object], path: str) -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario.from_json({"text": TEXT, "chunks": 6} | oddity))
        async with chat_stream(up, path=path) as stream:
            payloads = [event.json() for event in await stream.rest() if not event.is_done_marker]
    if path == CHAT:
        assert chat_text(payloads) == TEXT
    else:
        parts = []
        for payload in payloads:
            assert isinstance(payload, dict)
            if payload["type"] == "content_block_delta":
                parts.append(payload["delta"]["text"])
            elif payload["type"] == "response.output_text.delta":
                parts.append(payload["delta"])
        assert "".join(parts) == TEXT
    assert stream.is_complete


async def test_the_oddities_are_truly_on_the_wire() -> None:
    async def body(**oddity: object) -> bytes:
        up.script(Scenario.from_json({"text": TEXT, "chunks": 2, "framing": "close"} | oddity))
        return (await streamed_bytes(up)).partition(b"\r\n\r\n")[2]

    async with ScriptedUpstream() as up:
        assert b"}\r\n\r\ndata" in await body(crlf=True)
        assert b"\ndata:{" in await body(no_space_after_data=True)
        assert b'\ndata:  "choices": [' in await body(multiline_data=True)
        assert (await body(bom=True)).startswith(b"\xef\xbb\xbfdata")
        assert "世".encode() in await body()


async def test_one_byte_segments_are_one_byte_http_chunks() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(chunks=1, one_byte_segments=True))
        got = await streamed_bytes(up)
    body = got.partition(b"\r\n\r\n")[2]
    assert body.startswith(b"1\r\nd\r\n1\r\na\r\n1\r\nt\r\n")


async def test_utf8_split_never_leaves_a_character_whole() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(text=TEXT, chunks=1, utf8_split=True))
        got = await streamed_bytes(up)
    assert "世".encode() not in got
    assert b"\xe4\r\n" in got


async def test_events_share_a_segment_as_told() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(chunks=8, events_per_segment=4, role_only_first=False))
        got = await streamed_bytes(up)
    lines = got.partition(b"\r\n\r\n")[2].split(b"\r\n")
    events_per_chunk = [line.count(b'"content"') for line in lines if b'"content"' in line]
    assert events_per_chunk == [4, 4]


async def test_segments_stop_at_the_next_fault() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(chunks=8, events_per_segment=5, close_after_chunks=7))
        async with chat_stream(up) as stream:
            assert len(await stream.rest()) == 1 + 7


# ------------------------------------------------------------------ sizes


async def test_a_giant_line_has_no_newline_inside() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(giant_line_bytes=1_000_000, chunks=2))
        async with chat_stream(up) as stream:
            events = await stream.rest()
        [line] = up.invoice().lines
    giant = next(event for event in events if len(event.data) > 1_000_000)
    assert giant.raw.count(b"\n") == 2
    assert json.loads(giant.data)["choices"][0]["delta"]["content"] == "x" * 1_000_000
    assert (line.outcome, line.chunks_delivered) == ("ok", 2)


async def test_a_giant_body_is_valid_json_of_that_size() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(giant_body_bytes=3_000_001))
        answer = await post_chat(up)
    parsed = answer.json()
    assert isinstance(parsed, dict)
    assert len(parsed["choices"][0]["message"]["content"]) == 3_000_001


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_gzip_bomb_is_small_on_the_wire_and_large_unpacked(is_stream: bool) -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(gzip_bomb_bytes=20_000_000))
        answer = await post_chat(up, stream=is_stream)
    assert answer.header("content-encoding") == "gzip"
    assert len(answer.body) < 100_000
    assert len(gzip.decompress(answer.body)) > 20_000_000
    assert zlib.decompressobj(31).decompress(answer.body, 6) == (b"data: " if is_stream else b'{"id":')


# ------------------------------------------------------------------ statuses, headers, raw


async def test_an_error_status_has_the_protocols_shape() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(status=429, retry_after="7"))
        openai, anthropic = await post_chat(up), await post_chat(up, path="/v1/messages", stream=True)
        lines = up.invoice().lines
    assert (openai.status, openai.header("retry-after")) == (429, "7")
    assert json.loads(openai.body)["error"]["code"] == "rate_limit_exceeded"
    assert json.loads(anthropic.body)["error"]["type"] == "rate_limit_error"
    assert [(line.outcome, line.usage_due) for line in lines] == [("error", Usage())] * 2


@pytest.mark.parametrize("is_midstream", [False, True])
async def test_credentials_and_prompt_are_echoed_when_told(is_midstream: bool) -> None:
    async with ScriptedUpstream() as up:
        place = {"error_event_after_chunks": 1} if is_midstream else {"status": 401}
        up.script(Scenario.from_json({"echo_credentials": True, "echo_prompt": True} | place))
        answer = await post_chat(up, key="sk-to-be-leaked", stream=is_midstream)
    for leak in ("sk-to-be-leaked", "?key=sk-to-be-leaked", "Traceback", "hello"):
        assert leak in answer.text


async def test_a_redirect_points_where_told() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(redirect_location="http://127.0.0.1:1/elsewhere"))
        answer = await post_chat(up)
    assert (answer.status, answer.header("location")) == (307, "http://127.0.0.1:1/elsewhere")


@pytest.mark.parametrize("raw", ["", "<html>Bad Gateway</html>", '{"choices":[', "[]", '{"choices":[]}'])
@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_raw_body_is_sent_as_it_is(raw: str, is_stream: bool) -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(raw_body=raw, content_type="text/html"))
        answer = await post_chat(up, stream=is_stream)
    assert (answer.status, answer.text, answer.header("content-type")) == (200, raw, "text/html")


async def test_a_stream_can_be_answered_by_a_plain_completion() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(unary_despite_stream=True))
        answer = await post_chat(up, stream=True)
    assert answer.header("content-type") == "application/json"
    assert json.loads(answer.body)["object"] == "chat.completion"


async def test_headers_are_added_byte_for_byte() -> None:
    async with ScriptedUpstream() as up:
        up.script(
            Scenario(headers=(("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("X-Split", "one\r\nX-Injected: two")))
        )
        got = await exchange(up.port, last_request())
    assert b"\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-Split: one\r\nX-Injected: two\r\n" in got


async def test_a_recorded_stream_is_replayed_with_its_pauses() -> None:
    pieces = (RawPiece(b'data: {"a":'), RawPiece(b"1}\n\n", pause_ms=50), RawPiece(b"\xff\xfe"))
    async with ScriptedUpstream() as up:
        up.script(Scenario(raw_stream=pieces, framing="close"))
        started = time.monotonic()
        got = await streamed_bytes(up)
        [line] = up.invoice().lines
    assert got.partition(b"\r\n\r\n")[2] == b'data: {"a":1}\n\n\xff\xfe'
    assert time.monotonic() - started >= 0.05
    assert (line.outcome, line.usage_due) == ("ok", Usage(10, 8))


async def test_a_whole_raw_answer_has_no_head_of_ours() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(raw_stream=(RawPiece(b"HTTP/1.1 299 Odd\r\n\r\n\x00"),), raw_whole=True))
        assert await streamed_bytes(up) == b"HTTP/1.1 299 Odd\r\n\r\n\x00"


async def test_many_calls_at_once_have_a_line_each() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(gap_ms=1), by_model={"hang": Scenario(hang_before_headers=True)})
        requests = [last_request(model=f"m{i}", stream=i % 2 == 0) for i in range(60)]
        async with asyncio.TaskGroup() as group:
            for request in requests:
                group.create_task(exchange(up.port, request))
        invoice = await up.settled()
    assert sorted(line.model for line in invoice.lines) == sorted(f"m{i}" for i in range(60))
    assert invoice.outcomes() == {"ok": 60}
    assert invoice.connections_accepted == 60


async def test_tls_is_spoken_when_given_a_certificate(tls_server: ssl.SSLContext, tls_client: ssl.SSLContext) -> None:
    async with ScriptedUpstream(tls=tls_server) as up:
        async with RawConnection(up.port, tls=tls_client) as connection:
            await connection.send(chat_request())
            assert (await connection.response()).status == 200
        up.script(Scenario(reset_after_chunks=1))
        async with RawConnection(up.port, tls=tls_client) as connection:
            await connection.send(STREAM)
            assert (await connection.response()).is_complete is False
    assert up.origin.startswith("https://")
