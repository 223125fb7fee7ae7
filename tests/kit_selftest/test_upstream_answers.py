"""The scripted upstream speaks the providers' protocols, and its invoice says what it served."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from tests.kit import upstream, wire
from tests.kit.invoice import Price, Usage
from tests.kit.processes import UpstreamProcess
from tests.kit.raw_http import RawConnection, SseStream, call, chunked, pipelined, request_bytes
from tests.kit.scenario import RawPiece, Scenario, ToolCall
from tests.kit.stalls import stalled_s
from tests.kit.upstream import ScriptedUpstream
from tests.kit_selftest.chat import chat_body, chat_request, chat_stream, chat_text, post_chat


async def test_a_chat_call_is_answered_and_invoiced() -> None:
    async with ScriptedUpstream() as up:
        up.script(
            Scenario(text="Hello there", prompt_tokens=12, completion_tokens=5, cached_tokens=4, reasoning_tokens=2)
        )
        answer = await post_chat(up, model="gpt-x", key="sk-secret")
        invoice = up.invoice()
    body = answer.json()
    assert isinstance(body, dict)
    assert (answer.status, body["model"], body["choices"][0]["message"]["content"]) == (200, "gpt-x", "Hello there")
    assert body["usage"] == {
        "prompt_tokens": 12,
        "completion_tokens": 5,
        "total_tokens": 17,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    [line] = invoice.lines
    assert answer.header("x-request-id") == f"req-stub-{line.number}"
    assert (line.model, line.outcome, line.status, line.is_stream) == ("gpt-x", "ok", 200, False)
    assert line.usage_reported == line.usage_due == Usage(12, 5, 4, 2)
    assert line.credential == "sk-secret"
    assert line.json() == chat_body(model="gpt-x")
    assert line.hung_up_at is None


async def test_a_stream_has_role_content_finish_usage_and_done_in_this_order() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(text="abcdefgh", chunks=4, completion_tokens=4))
        async with chat_stream(up, include_usage=True) as stream:
            events = await stream.rest()
        invoice = up.invoice()
    assert events[-1].is_done_marker
    payloads = [event.json() for event in events[:-1]]
    assert all(isinstance(payload, dict) for payload in payloads)
    assert chat_text(payloads) == "abcdefgh"
    first, *_, finish, usage = payloads
    assert isinstance(first, dict)
    assert isinstance(finish, dict)
    assert isinstance(usage, dict)
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 4
    [line] = invoice.lines
    assert (line.chunks_delivered, line.outcome, line.usage_reported) == (4, "ok", Usage(10, 4))
    assert stream.is_complete


async def test_usage_comes_only_when_it_was_asked_for() -> None:
    async with ScriptedUpstream() as up:
        async with chat_stream(up) as stream:
            events = await stream.rest()
        [line] = up.invoice().lines
    assert not any('"usage"' in event.data for event in events)
    assert line.usage_reported is None
    assert line.usage_due == Usage(10, 8)


@pytest.mark.parametrize(
    ("mode", "carrier"), [("in_content_chunk", "content"), ("on_finish_chunk", "finish"), ("every_chunk", "content")]
)
async def test_usage_can_ride_on_other_chunks(mode: str, carrier: str) -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario.from_json({"usage": mode, "chunks": 3, "completion_tokens": 3}))
        async with chat_stream(up, include_usage=True) as stream:
            payloads = [event.json() for event in await stream.rest() if not event.is_done_marker]
        [line] = up.invoice().lines
    carriers = [p for p in payloads if isinstance(p, dict) and p.get("usage") and p["choices"]]
    assert carriers
    last = carriers[-1]["choices"][0]
    assert (last["finish_reason"] is not None) == (carrier == "finish")
    assert line.usage_reported == Usage(10, 3)


@pytest.mark.parametrize("mode", ["missing", "negative", "strings", "floats", "nulls", "nan", "huge", "mismatched"])
@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_usage_that_lies_is_not_invoiced_as_reported(mode: str, is_stream: bool) -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario.from_json({"usage": mode}))
        if is_stream:
            async with chat_stream(up, include_usage=True) as stream:
                seen = " ".join(event.data for event in await stream.rest())
        else:
            seen = (await post_chat(up)).text
        [line] = up.invoice().lines
    assert line.usage_reported is None
    assert line.usage_due == Usage(10, 8)
    told = {
        "missing": "total_tokens", "negative": '"prompt_tokens":-10', "strings": '"prompt_tokens":"10"',
        "floats": '"prompt_tokens":10.5', "nulls": '"prompt_tokens":null', "nan": '"prompt_tokens":NaN',
        "huge": '"prompt_tokens":10000000000', "mismatched": '"total_tokens":25',
    }[mode]  # fmt: skip
    assert (told in seen) == (mode != "missing")
    assert told in line.usage_reported_raw or mode == "missing"


async def test_anthropic_streams_have_named_events_and_split_prompt_tokens() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(text="abcd", chunks=2, completion_tokens=6, cached_tokens=3, cache_write_tokens=2))
        async with chat_stream(up, path="/v1/messages", max_tokens=50) as stream:
            events = await stream.rest()
        unary = (await post_chat(up, path="/v1/messages")).json()
    assert [event.name for event in events] == [
        "message_start", "content_block_start", "ping", "content_block_delta", "content_block_delta",
        "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip
    start, delta = events[0].json(), events[-2].json()
    assert isinstance(start, dict)
    assert isinstance(delta, dict)
    assert isinstance(unary, dict)
    assert start["message"]["usage"]["input_tokens"] == 5
    assert delta["usage"] == unary["usage"]
    assert delta["usage"]["cache_read_input_tokens"] == 3
    assert delta["delta"]["stop_reason"] == "end_turn"
    assert unary["content"] == [{"type": "text", "text": "abcd"}]


async def test_anthropic_thinking_goes_before_the_text() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(text="answer", reasoning_text="thought", chunks=4, reasoning_tokens=4))
        async with chat_stream(up, path="/v1/messages") as stream:
            payloads = [event.json() for event in await stream.rest()]
    deltas = [p["delta"] for p in payloads if isinstance(p, dict) and p["type"] == "content_block_delta"]
    assert "".join(d.get("thinking", "") for d in deltas) == "thought"
    assert "".join(d.get("text", "") for d in deltas) == "answer"


async def test_responses_streams_are_numbered_and_end_with_the_whole_response() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(text="abcd", chunks=2, completion_tokens=2))
        async with chat_stream(up, path="/v1/responses", input="hi") as stream:
            payloads = [event.json() for event in await stream.rest()]
    numbers = [p["sequence_number"] for p in payloads if isinstance(p, dict)]
    assert numbers == list(range(len(payloads)))
    last = payloads[-1]
    assert isinstance(last, dict)
    assert last["type"] == "response.completed"
    assert last["response"]["output"][0]["content"][0]["text"] == "abcd"
    assert last["response"]["usage"]["output_tokens"] == 2


async def test_tool_calls_are_streamed_in_pieces_that_join_to_the_arguments() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(tool_call=ToolCall("weather", '{"city":"Zürich"}'), chunks=5))
        async with chat_stream(up) as stream:
            payloads = [event.json() for event in await stream.rest() if not event.is_done_marker]
    calls = [
        call
        for p in payloads
        if isinstance(p, dict)
        for choice in p["choices"]
        for call in choice["delta"].get("tool_calls", [])
    ]
    assert calls[0]["function"]["name"] == "weather"
    assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {"city": "Zürich"}
    assert isinstance(payloads[-1], dict)
    assert payloads[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_n_choices_cost_n_times_the_completion() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(chunks=2, completion_tokens=2))
        unary = (await post_chat(up, n=3)).json()
        async with chat_stream(up, n=3, include_usage=True) as stream:
            payloads = [event.json() for event in await stream.rest() if not event.is_done_marker]
    assert isinstance(unary, dict)
    assert len(unary["choices"]) == 3
    assert unary["usage"]["completion_tokens"] == 6
    assert isinstance(payloads[-1], dict)
    assert payloads[-1]["usage"]["completion_tokens"] == 6
    indices = [p["choices"][0]["index"] for p in payloads if isinstance(p, dict) and p["choices"]]
    assert set(indices) == {0, 1, 2}


async def test_max_tokens_is_obeyed_when_the_scenario_says_so() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(obey_max_tokens=True, completion_tokens=100, chunks=100))
        answer = (await post_chat(up, max_tokens=7)).json()
        async with chat_stream(up, max_completion_tokens=3) as stream:
            await stream.rest()
        first, second = up.invoice().lines
    assert isinstance(answer, dict)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert first.usage_due.completion_tokens == 7
    assert (second.usage_due.completion_tokens, second.chunks_delivered) == (3, 3)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/completions", {"model": "m", "prompt": "hi"}, "choices"),
        ("/v1/embeddings", {"model": "m", "input": ["a", "b"]}, "data"),
        ("/v1/responses", {"model": "m", "input": "hi"}, "output"),
        ("/v1/messages/count_tokens", {"model": "m", "messages": []}, "input_tokens"),
        ("/v1/images/generations", {"model": "m", "prompt": "x"}, "data"),
        ("/v1/moderations", {"model": "m", "input": "x"}, "results"),
        ("/v1/rerank", {"model": "m", "query": "x", "documents": []}, "results"),
        ("/openai/deployments/dep/chat/completions", {"messages": []}, "choices"),
    ],
)
async def test_the_other_protocols_answer(path: str, body: dict[str, object], field: str) -> None:
    async with ScriptedUpstream() as up:
        answer = await call(up.port, "POST", path, json_body=body)
        [line] = up.invoice().lines
    parsed = answer.json()
    assert isinstance(parsed, dict)
    assert answer.status == 200
    assert field in parsed
    assert line.model in ("m", "dep")
    if path == "/v1/embeddings":
        assert len(parsed["data"]) == 2


async def test_the_models_list_and_unknown_paths() -> None:
    async with ScriptedUpstream() as up:
        listed = (await call(up.port, "GET", "/v1/models")).json()
        one = (await call(up.port, "GET", "/v1/models/gpt-x")).json()
        unknown = await call(up.port, "GET", "/v1/nothing")
        outcomes = up.invoice().outcomes()
    assert isinstance(listed, dict)
    assert isinstance(one, dict)
    assert listed["object"] == "list"
    assert one["id"] == "gpt-x"
    assert unknown.status == 404
    assert outcomes == {"ok": 2, "not_found": 1}


async def test_scenarios_come_from_the_queue_then_the_model_then_the_default() -> None:
    async with ScriptedUpstream() as up:
        up.script(
            Scenario(text="default"),
            by_model={"a": Scenario(text="of a"), "/v1/models": Scenario(status=500)},
            queue=[Scenario(status=503), Scenario(text="queued")],
        )
        probe = await call(up.port, "GET", "/v1/models")
        statuses = [(await post_chat(up, model="a")).status for _ in range(3)]
        answers = [(await post_chat(up, model=model)).text for model in ("a", "b")]
    assert probe.status == 500, "a GET takes its path's scenario and leaves the queue alone"
    assert statuses == [503, 200, 200]
    assert "of a" in answers[0]
    assert "default" in answers[1]


async def test_required_keys_are_checked_in_every_header() -> None:
    good = [{"Authorization": "Bearer sk-good"}, {"x-api-key": "sk-good"}, {"api-key": "sk-good"}]
    carriers: list[dict[str, str]] = [*good, {"Authorization": "Bearer sk-bad"}, {}]
    async with ScriptedUpstream() as up:
        up.script(required_keys=["sk-good"])
        statuses = [
            (await call(up.port, "POST", "/v1/chat/completions", headers=headers, json_body=chat_body())).status
            for headers in carriers
        ]
        outcomes = up.invoice().outcomes()
    assert statuses == [200, 200, 200, 401, 401]
    assert outcomes == {"ok": 3, "unauthorized": 2}


async def test_a_body_of_the_wrong_types_is_refused_and_invoiced_as_such() -> None:
    async with ScriptedUpstream() as up:
        wrong = await call(up.port, "POST", "/v1/chat/completions", json_body={"model": 7})
        broken = await call(up.port, "POST", "/v1/chat/completions", body=b'{"model": "m"')
        outcomes = up.invoice().outcomes()
    assert (wrong.status, broken.status) == (400, 400)
    assert outcomes == {"bad_request": 2}


async def test_chunked_and_split_requests_are_read_whole() -> None:
    body = json.dumps(chat_body()).encode()
    head = request_bytes("POST", "/v1/chat/completions", headers={"Transfer-Encoding": "chunked"})
    framed = head + chunked(body[:10], body[10:11], body[11:])
    async with ScriptedUpstream() as up, RawConnection(up.port) as connection:
        for byte_range in (framed[:5], framed[5:90], framed[90:-3], framed[-3:]):
            await connection.send(byte_range)
            await asyncio.sleep(0)
        first = await connection.response()
        await connection.send(chat_request())
        second = await connection.response()
        lines = up.invoice().lines
    assert (first.status, second.status) == (200, 200)
    assert [line.body for line in lines] == [body, body]
    assert {line.connection for line in lines} == {1}, "both came on one kept-alive connection"


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with ScriptedUpstream() as up:
        up.script(by_model={"slow": Scenario(text="slow", delay_ms=30)})
        requests = [chat_request(model="slow"), chat_request(), chat_request(model="slow")]
        answers = await pipelined(up.port, requests)
    assert ["slow" in answer.text for answer in answers] == [True, False, True]


async def test_a_body_is_kept_up_to_its_cap_and_its_size_in_full() -> None:
    async with ScriptedUpstream(body_cap_bytes=100) as up:
        await post_chat(up, padding="x" * 5_000)
        [line] = up.invoice().lines
    assert len(line.body) == 100
    assert line.body_bytes > 5_000


async def test_pauses_are_kept() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(delay_ms=40, first_token_delay_ms=60, gap_ms=20, chunks=4))
        started = time.time()
        async with chat_stream(up) as stream:
            headers_s = stream.head.at - started
            events = await stream.rest()
        [line] = up.invoice().lines
    assert headers_s >= 0.04
    assert events[0].at - started >= 0.1
    assert events[4].at - started >= 0.1 + 0.055, "the last of the contents: three gaps after the first"
    assert line.first_byte_at is not None
    assert line.first_byte_at - line.arrived_at >= 0.04


async def test_a_hang_up_in_a_stream_is_dated_and_billed_up_to_there() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(chunks=1_000, completion_tokens=2_000, gap_ms=5))
        async with chat_stream(up, include_usage=True) as stream:
            await stream.take(4)
            left_at, left_s = time.time(), time.monotonic()
            await stream.hang_up()
            invoice = await up.settled()
        [line] = invoice.lines
    assert line.outcome == "client_hung_up"
    assert line.hung_up_at is not None
    assert -0.01 <= line.hung_up_at - left_at < 0.5 + stalled_s(left_s)
    assert 3 <= line.chunks_delivered < 1_000
    assert line.usage_due.completion_tokens == 2 * line.chunks_delivered
    assert line.usage_reported is None


async def test_a_hang_up_before_the_answer_is_invoiced_without_a_byte() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(hang_before_headers=True))
        async with RawConnection(up.port) as connection:
            await connection.send(chat_request())
            await up.requests_seen(1)
        [line] = (await up.settled()).lines
    assert (line.outcome, line.bytes_delivered, line.usage_due) == ("client_hung_up", 0, Usage())


async def test_what_a_slow_reader_has_not_taken_does_not_count_as_delivered() -> None:
    async with ScriptedUpstream() as up:
        up.script(Scenario(giant_body_bytes=50_000_000))
        async with RawConnection(up.port, receive_buffer_bytes=8_192) as connection:
            await connection.send(chat_request())
            await connection.receive_slowly(20_000, bytes_per_second=200_000)
            [line] = up.invoice().lines
    assert line.outcome == "in_flight"
    assert 20_000 <= line.bytes_delivered < 20_000_000, "back-pressure reached the upstream"


async def test_the_invoice_adds_up_to_money() -> None:
    price = Price(input_picousd=2_500_000, output_picousd=10_000_001, cached_input_picousd=1_250_000, request_nanousd=3)
    async with ScriptedUpstream() as up:
        up.script(
            Scenario(prompt_tokens=100, cached_tokens=40, completion_tokens=7),
            by_model={"free": Scenario(), "down": Scenario(status=500)},
        )
        for model in ("gpt", "gpt", "free", "down"):
            await post_chat(up, model=model)
        invoice = up.invoice()
    # 60 × 2,500,000 + 40 × 1,250,000 + 7 × 10,000,001 = 270,000,007 picodollars: 270,001 nanodollars, and 3 for the call.
    assert invoice.cost_nanousd({"gpt": price, "free": Price(0, 0)}) == 2 * 270_004
    assert invoice.usage_by_model()["gpt"] == Usage(200, 14, 80)
    assert invoice.of_model("down").usage_due() == Usage()
    with pytest.raises(KeyError):
        invoice.cost_nanousd({"gpt": price})


def test_a_price_in_dollars_per_million_tokens_is_the_same_number_of_millionths() -> None:
    assert Price.usd_per_mtok(3, 15).cost_nanousd(Usage(1_000_000, 1_000_000)) == 18_000_000_000


def test_a_usage_with_parts_larger_than_the_whole_has_no_cost() -> None:
    with pytest.raises(ValueError, match="parts exceed"):
        Price(1, 1).cost_nanousd(Usage(prompt_tokens=1, cached_tokens=2))


def test_scenarios_survive_json_and_misspelt_ones_do_not() -> None:
    scenario = Scenario(
        raw_stream=(RawPiece(b"\xff\x00", 5),),
        headers=(("a", "b"),),
        tool_call=ToolCall("f", "{}"),
        garbage_after_chunks=(1,),
    )
    assert Scenario.from_json(json.loads(json.dumps(scenario.to_json()))) == scenario
    assert Scenario().to_json() == {}
    with pytest.raises(ValueError, match="stall_after_chunk"):
        Scenario.from_json({"stall_after_chunk": 3})
    with pytest.raises(ValueError, match="half_event"):
        Scenario(half_event=True)


@pytest.mark.parametrize("protocol", ["chat", "completions", "messages", "responses"])
def test_every_stream_protocol_can_carry_a_giant_line(protocol: wire.Protocol) -> None:
    stream = wire.stream(wire.Shape(protocol, is_stream=True), Scenario(giant_line_bytes=1))
    assert stream.content[0].data.count(wire.GIANT_MARK.encode()) == 1


async def test_stopping_the_upstream_ends_what_is_running() -> None:
    async with RawConnectionTo() as (up, connection):
        await up.__aexit__(None, None, None)
        [line] = up.invoice().lines
        assert line.outcome == "stopped"
        with pytest.raises((EOFError, ConnectionError)):
            await connection.response()


class RawConnectionTo:
    """An upstream that hangs, and a connection with a call in flight; the test stops the upstream itself."""

    async def __aenter__(self) -> tuple[ScriptedUpstream, RawConnection]:
        self._up = await ScriptedUpstream().__aenter__()
        self._up.script(Scenario(hang_before_headers=True))
        self._connection = await RawConnection(self._up.port).__aenter__()
        await self._connection.send(chat_request())
        await self._up.requests_seen(1)
        return self._up, self._connection

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()


async def test_the_process_takes_the_same_script_and_gives_the_same_invoice() -> None:
    async with UpstreamProcess() as up:
        await up.script(Scenario(text="from afar"), by_model={"x": Scenario(status=503)}, required_keys=["sk-test"])
        good = await call(
            up.port, "POST", "/v1/chat/completions", headers={"api-key": "sk-test"}, json_body=chat_body()
        )
        bad = await call(
            up.port, "POST", "/v1/chat/completions", headers={"api-key": "sk-test"}, json_body=chat_body(model="x")
        )
        request = request_bytes(
            "POST", "/v1/chat/completions", headers={"api-key": "sk-test"}, json_body=chat_body(stream=True)
        )
        async with SseStream.opened(up.port, request) as stream:
            assert len(await stream.rest()) == 11
        invoice = await up.settled()
        totals = await up.totals()
        with pytest.raises(ValueError, match="unknown fields"):
            await up._control("POST", "script", {"default": {"stats": 1}})
        await up.reset()
        after = await up.invoice()
    assert "from afar" in good.text
    assert bad.status == 503
    assert [line.outcome for line in invoice.lines] == ["ok", "error", "ok"]
    assert invoice.lines[0].header("api-key") == "sk-test"
    assert invoice.usage_due() == Usage(20, 16)
    assert (totals.lines, totals.dropped_lines, totals.usage_by_model()) == ((), 3, invoice.usage_by_model())
    assert after.lines == ()


async def test_requests_past_the_line_cap_are_summed_without_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "LINE_CAP", 2)
    async with ScriptedUpstream() as up:
        for _ in range(5):
            await post_chat(up)
        invoice = up.invoice()
    assert (len(invoice.lines), invoice.dropped_lines, invoice.requests_by_model) == (2, 3, {"m": 5})
    assert invoice.usage_due() == Usage(50, 40)
    assert invoice.of_model("m").usage_due() == Usage(20, 16)
    with pytest.raises(ValueError, match="no line"):
        invoice.cost_nanousd({"m": Price(1, 1)})
