"""Providers that LiteLLM translates, each against a server that speaks its wire format: what a call comes to, whoever serves it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from app.dialects.messages import Messages
from app.domain.call import Quality
from app.domain.catalog import Endpoint, ProviderKind, Timeouts
from app.domain.egress import EgressPolicy
from app.domain.pricing import Usage
from app.exceptions import FailureKind, UpstreamTruncated
from app.providers.litellm import LiteLLMProvider
from tests.kit.scenario import RawPiece, Scenario, ToolCall
from tests.kit.stalls import stalled_s
from tests.kit.upstream import ScriptedUpstream
from tests.providers.test_litellm import A_TOOL, LOOPBACK, Told, a_meter, attempt, endpoint_at, failed

KEY = "sk-canary-7f3a9c"
AWS = json.dumps({"aws_access_key_id": "AKIDEXAMPLE", "aws_secret_access_key": KEY, "aws_region_name": "us-east-1"})


@dataclass(frozen=True, slots=True)
class Family:
    name: str
    model: str
    path: str = ""
    credential: str = KEY
    counts_cached: bool = False

    def at(self, upstream: ScriptedUpstream, **changes: Any) -> Endpoint:
        base = upstream.base_url.removesuffix("/v1") + self.path
        return endpoint_at(
            upstream, **{"upstream_model": self.model, "api_base": base, "credential": self.credential, **changes}
        )


FAMILIES = (
    Family("anthropic", "anthropic/claude-x", counts_cached=True),
    Family("gemini", "gemini/gemini-2.5-pro", "/v1beta", counts_cached=True),
    Family("bedrock", "bedrock/anthropic.claude-3-5-sonnet-20240620-v1:0", credential=AWS, counts_cached=True),
    Family("cohere", "cohere_chat/command-r-plus", "/v2/chat"),
)
each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


@pytest.fixture
async def provider() -> AsyncIterator[LiteLLMProvider]:
    provider = LiteLLMProvider(LOOPBACK)
    await provider.prepare()
    yield provider
    await provider.close()


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as upstream:
        yield upstream


def arguments_in(told: Told) -> Any:
    calls = [
        call for event in told.events[:-1] for c in event["choices"] for call in c["delta"].get("tool_calls") or []
    ]
    assert calls[0]["function"]["name"] == "f"
    return msgspec.json.decode("".join(call["function"].get("arguments") or "" for call in calls))


@each_family
async def test_a_whole_answer_has_openais_shape_and_the_providers_figures(
    provider: LiteLLMProvider, upstream: ScriptedUpstream, family: Family
) -> None:
    upstream.script(Scenario(text="Hello there.", prompt_tokens=20, completion_tokens=8, cached_tokens=5))

    told = await attempt(provider, family.at(upstream), max_tokens=50)

    assert told.failure is None, told.failure
    assert told.json["choices"][0]["message"]["content"] == "Hello there."
    assert told.json["choices"][0]["finish_reason"] == "stop"
    assert told.meter.usage == Usage(20, 8, cached_tokens=5 if family.counts_cached else 0)
    assert (told.meter.quality, told.meter.finish_reason) == (Quality.EXACT, "stop")
    (line,) = upstream.invoice().lines
    shown = str(line.headers) + line.query
    assert ("AKIDEXAMPLE" if family.name == "bedrock" else KEY) in shown
    assert family.name != "bedrock" or KEY not in shown


@each_family
async def test_a_stream_is_openais_stream_and_ends_as_the_provider_ended_it(
    provider: LiteLLMProvider, upstream: ScriptedUpstream, family: Family
) -> None:
    upstream.script(Scenario(prompt_tokens=20))

    told = await attempt(provider, family.at(upstream), stream=True, stream_options={"include_usage": True})

    assert told.failure is None, (told.failure, told.body)
    assert told.text == "w0 w1 w2 w3 w4 w5 w6 w7 "
    assert told.events[-1] == "[DONE]"
    assert told.events[-2]["usage"]["completion_tokens"] == 8
    assert told.meter.usage == Usage(20, 8)
    assert (told.meter.quality, told.meter.finish_reason) == (Quality.EXACT, "stop")


@each_family
@pytest.mark.parametrize("is_stream", [False, True])
async def test_tool_calls_come_back_as_openais(
    provider: LiteLLMProvider, upstream: ScriptedUpstream, family: Family, is_stream: bool
) -> None:
    upstream.script(Scenario(tool_call=ToolCall("f", '{"a": [1, "ü"]}'), finish_reason="tool_calls"))

    told = await attempt(provider, family.at(upstream), tools=[A_TOOL], stream=is_stream)

    assert told.failure is None, told.failure
    if is_stream:
        arguments = arguments_in(told)
    else:
        call = told.json["choices"][0]["message"]["tool_calls"][0]["function"]
        assert call["name"] == "f"
        arguments = msgspec.json.decode(call["arguments"])
    assert arguments == {"a": [1, "ü"]}
    assert told.meter.finish_reason == "tool_calls"


@each_family
@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_tool_result_goes_to_the_provider(
    provider: LiteLLMProvider, upstream: ScriptedUpstream, family: Family, is_stream: bool
) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": "SYSTEM-WORD"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "RESULT-WORD"},
    ]
    told = await attempt(provider, family.at(upstream), messages=messages, tools=[A_TOOL], stream=is_stream)

    assert told.failure is None, told.failure
    sent = upstream.invoice().lines[0].text
    assert "SYSTEM-WORD" in sent
    assert "RESULT-WORD" in sent


@each_family
@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("status", "is_caller_fault"),
    [(400, True), (401, False), (403, False), (404, True), (429, False), (500, False), (503, False)],
)
async def test_t062_t063_t064_t068_a_refusal_is_one_request_and_keeps_its_number_and_no_secret(
    provider: LiteLLMProvider,
    upstream: ScriptedUpstream,
    family: Family,
    status: int,
    is_caller_fault: bool,
    is_stream: bool,
) -> None:
    upstream.script(Scenario(status=status, error_message=f"Too many words for {KEY} at https://x.test/?key={KEY}"))

    failure = await failed(provider, family.at(upstream), stream=is_stream)

    assert (failure.kind, failure.reason, failure.upstream_status) == (
        FailureKind.NO_ANSWER,
        f"status_{status}",
        status,
    )
    assert (failure.is_caller_fault, failure.is_endpoint_fault) == (is_caller_fault, not is_caller_fault)
    assert len(upstream.invoice().lines) == 1
    assert (failure.upstream_message or "").startswith("Too many words")
    assert KEY not in f"{failure!r} {failure.error.message}"


@each_family
@pytest.mark.parametrize(
    "scenario",
    [
        Scenario(chunks=6, close_after_chunks=3, framing="close"),
        Scenario(chunks=6, close_after_chunks=3),
        Scenario(chunks=6, reset_after_chunks=3),
        Scenario(chunks=3, finish_reason=None, done_marker=False, usage="missing"),
    ],
    ids=["fin", "aborted", "reset", "no-finish"],
)
async def test_t070_an_ending_that_no_provider_sent_is_a_truncation(
    provider: LiteLLMProvider, upstream: ScriptedUpstream, family: Family, scenario: Scenario
) -> None:
    upstream.script(scenario)

    told = await attempt(provider, family.at(upstream), stream=True)

    assert told.text == "w0 w1 w2 "
    assert b'"finish_reason":"stop"' not in told.body
    assert b"[DONE]" not in told.body
    assert told.failure is not None
    assert told.failure.kind is FailureKind.ANSWER_BEGUN
    assert isinstance(told.failure.error, UpstreamTruncated)
    assert told.meter.quality is Quality.PARTIAL
    assert told.meter.delivered_tokens == 3


@each_family
async def test_t073_an_error_within_a_stream_ends_it(
    provider: LiteLLMProvider, upstream: ScriptedUpstream, family: Family
) -> None:
    upstream.script(Scenario(chunks=6, error_event_after_chunks=3, error_message="over the top"))

    told = await attempt(provider, family.at(upstream), stream=True)

    assert told.text == "w0 w1 w2 "
    assert b"[DONE]" not in told.body
    assert told.failure is not None
    assert told.failure.kind is FailureKind.ANSWER_BEGUN


@each_family
@pytest.mark.parametrize("is_stream", [False, True])
async def test_t074_silence_ends_at_the_first_token_deadline(
    provider: LiteLLMProvider, upstream: ScriptedUpstream, family: Family, is_stream: bool
) -> None:
    upstream.script(Scenario(hang_after_headers=True))
    timeouts = Timeouts(connect_s=10, first_token_s=0.3, between_tokens_s=10, total_s=30, unary_s=0.3)

    failure = await failed(provider, family.at(upstream, timeouts=timeouts), stream=is_stream)

    assert (failure.kind, failure.reason) == (FailureKind.NO_ANSWER, "first_token_timeout")
    assert (await upstream.settled()).lines[0].outcome == "client_hung_up"


@each_family
async def test_an_answer_that_reached_its_limit_says_so(
    provider: LiteLLMProvider, upstream: ScriptedUpstream, family: Family
) -> None:
    upstream.script(Scenario(finish_reason="length"))
    for is_stream in (False, True):
        told = await attempt(provider, family.at(upstream), stream=is_stream, max_tokens=8)
        assert told.failure is None
        assert told.meter.finish_reason == "length"


@each_family
@pytest.mark.parametrize("is_stream", [False, True])
async def test_t079_t080_bombs_and_giants_are_dropped_at_the_cap(
    provider: LiteLLMProvider, upstream: ScriptedUpstream, family: Family, is_stream: bool
) -> None:
    upstream.script(Scenario(gzip_bomb_bytes=100 << 20))
    failure = await failed(provider, family.at(upstream), stream=is_stream)
    assert (failure.kind, failure.reason) == (FailureKind.NO_ANSWER, "encoded_answer")
    assert upstream.invoice().lines[0].header("accept-encoding") == "identity"

    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\ndata: "
    giant = RawPiece(head + b"x" * (2 << 20 if is_stream else 80 << 20))
    upstream.script(Scenario(raw_stream=(giant,), raw_whole=True))
    failure = await failed(provider, family.at(upstream), stream=is_stream)
    assert failure.reason in ("event_too_large", "body_too_large", "bad_event")


@each_family
@pytest.mark.parametrize("is_stream", [False, True])
async def test_t117_t118_leaving_closes_the_connection_within_a_second(
    provider: LiteLLMProvider, upstream: ScriptedUpstream, family: Family, is_stream: bool
) -> None:
    upstream.script(Scenario(endless=True, gap_ms=20) if is_stream else Scenario(hang_before_headers=True))
    task = asyncio.create_task(attempt(provider, family.at(upstream), stream=is_stream))
    await (upstream.chunks_sent(3) if is_stream else upstream.requests_seen(1))

    left = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert (await upstream.settled()).lines[0].outcome == "client_hung_up"
    assert time.monotonic() - left - stalled_s(left) < 1


@each_family
async def test_t041_a_redirect_is_not_followed(
    provider: LiteLLMProvider, upstream: ScriptedUpstream, family: Family
) -> None:
    async with ScriptedUpstream() as elsewhere:
        upstream.script(Scenario(redirect_location=f"{elsewhere.base_url}/messages"))
        for is_stream in (False, True):
            failure = await failed(provider, family.at(upstream), stream=is_stream)
            assert (failure.reason, failure.is_endpoint_fault) == ("redirect", True)
        assert elsewhere.invoice().connections_accepted == 0


@each_family
async def test_t040_the_egress_guard_holds(upstream: ScriptedUpstream, family: Family) -> None:
    guarded = LiteLLMProvider(EgressPolicy.parse(""))
    try:
        for host in ("127.0.0.1", "localhost"):
            base = f"http://{host}:{upstream.port}{family.path}"
            for is_stream in (False, True):
                failure = await failed(guarded, family.at(upstream, api_base=base), stream=is_stream)
                assert (failure.kind, failure.reason) == (FailureKind.NOTHING_SENT, "endpoint_blocked")
    finally:
        await guarded.close()
    assert upstream.invoice().connections_accepted == 0


# ── Messages, told in chat ────────────────────────────────────────────────────────────────────────────────────────────

SIGNED = {"type": "thinking", "thinking": "hm", "signature": "c2lnbmVk"}
SIGNED_EVENTS: list[dict[str, Any]] = [
    {
        "type": "message_start",
        "message": {"id": "m", "role": "assistant", "usage": {"input_tokens": 9, "output_tokens": 1}},
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": "", "signature": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "c2lnbmVk"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Hello."}},
    {"type": "content_block_stop", "index": 1},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
    {"type": "message_stop"},
]


NEWER = Family("bedrock", "bedrock/anthropic.claude-sonnet-4-20250514-v1:0", credential=AWS)
"""The older Claudes there have no cache."""


@pytest.mark.parametrize("is_stream", [False, True])
async def test_claudes_signed_thinking_goes_through_litellm_and_back(
    provider: LiteLLMProvider, upstream: ScriptedUpstream, is_stream: bool
) -> None:
    """Without it Claude refuses the turn after a tool was called, and without its signature too."""
    whole = {"id": "m", "type": "message", "role": "assistant", "model": "x", "stop_reason": "end_turn"} | {
        "content": [SIGNED, {"type": "text", "text": "Hello."}],
        "usage": {"input_tokens": 9, "output_tokens": 5},
    }
    events = "".join(f"event: {each['type']}\ndata: {json.dumps(each)}\n\n" for each in SIGNED_EVENTS)
    upstream.script(
        Scenario(raw_stream=(RawPiece(events.encode()),)) if is_stream else Scenario(raw_body=json.dumps(whole))
    )
    sent = {
        "model": "m",
        "max_tokens": 2000,
        "stream": is_stream,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "tools": [{"name": "f", "input_schema": {"type": "object", "properties": {}}}],
        "messages": [
            {"role": "user", "content": "Look."},
            {"role": "assistant", "content": [SIGNED, {"type": "tool_use", "id": "t1", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "sunny"}]},
        ],
    }
    dialect, call = Messages().towards(ProviderKind.LITELLM, Messages().read(json.dumps(sent).encode()))
    endpoint = FAMILIES[0].at(upstream)
    deadline_s = time.monotonic() + 60

    async with provider.opened(
        call, endpoint, dialect, a_meter(call), max_tokens=None, deadline_s=deadline_s
    ) as answer:
        body = answer.body + b"".join([chunk async for chunk in answer.chunks or _nothing()])

    (line,) = upstream.invoice().lines
    assert json.loads(line.body)["messages"][1]["content"][0] == SIGNED
    assert b"c2lnbmVk" in body
    if is_stream:
        deltas = [json.loads(event.partition(b"data: ")[2]).get("delta", {}) for event in body.split(b"\n\n") if event]
        said = [(each["type"], each.get("signature")) for each in deltas if "type" in each]
        assert said == [("thinking_delta", None), ("signature_delta", "c2lnbmVk"), ("text_delta", None)]
    else:
        assert json.loads(body)["content"] == [SIGNED, {"type": "text", "text": "Hello."}]


@pytest.mark.parametrize(("family", "marks"), [(FAMILIES[0], 3), (FAMILIES[1], 0), (NEWER, 3), (FAMILIES[3], 0)])
async def test_marks_for_a_cache_go_to_claude_and_make_no_request_elsewhere(
    provider: LiteLLMProvider, upstream: ScriptedUpstream, family: Family, marks: int
) -> None:
    """An agent's prompt is some ten times as dear without them."""
    upstream.script(Scenario())
    mark = {"cache_control": {"type": "ephemeral"}}
    long = "Be kind. " * 2000
    sent = {
        "model": "m",
        "max_tokens": 200,
        "system": [{"type": "text", "text": long, **mark}],
        "tools": [{"name": "f", "input_schema": {"type": "object", "properties": {}}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": long, **mark}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": long, **mark}]},
        ],
    }
    dialect, call = Messages().towards(ProviderKind.LITELLM, Messages().read(json.dumps(sent).encode()))

    async with provider.opened(
        call, family.at(upstream), dialect, a_meter(call), max_tokens=None, deadline_s=time.monotonic() + 60
    ) as answer:
        assert answer.body

    (line,) = upstream.invoice().lines
    assert line.body.count(b"cache_control") + line.body.count(b"cachePoint") == marks


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield
