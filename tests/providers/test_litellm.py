"""LiteLLM's SDK as a provider, shown on Anthropic's protocol: a scripted upstream for the faults, llama.cpp for a true answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from app.demo_server import DemoServer, DemoUpstream
from app.dialects.embeddings import Embeddings
from app.dialects.openai_chat import OpenAIChat
from app.domain.call import Call, Meter, Quality
from app.domain.catalog import Endpoint, ProviderKind, Timeouts
from app.domain.egress import EgressPolicy
from app.domain.identity import Identity, PaymentStatus, User
from app.domain.pricing import Usage
from app.exceptions import (
    AttemptFailed,
    EndpointBlocked,
    FailureKind,
    InvalidRequest,
    NoHealthyEndpoint,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamTruncated,
)
from app.providers.litellm import LiteLLMProvider
from tests.kit.scenario import Scenario, ToolCall
from tests.kit.stalls import stalled_s
from tests.kit.upstream import ScriptedUpstream

KEY = "sk-canary-7f3a9c"
DIALECT = OpenAIChat()
LOOPBACK = EgressPolicy.parse("loopback")
HELLO: Mapping[str, object] = {"model": "claude", "messages": [{"role": "user", "content": "hi"}]}
A_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


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


def endpoint_at(upstream: ScriptedUpstream, **changes: Any) -> Endpoint:
    return replace(
        Endpoint(
            id="e1",
            model="claude",
            provider=ProviderKind.LITELLM,
            upstream_model="anthropic/claude-x",
            api_base=upstream.base_url.removesuffix("/v1"),
            credential=KEY,
            timeouts=Timeouts(connect_s=2, first_token_s=10, between_tokens_s=10, total_s=30),
        ),
        **changes,
    )


def a_call(**fields: object) -> Call:
    return DIALECT.read(msgspec.json.encode({**HELLO, **fields}))


def a_meter(call: Call) -> Meter:
    return Meter(
        request_id="r1",
        client_request_id=None,
        identity=Identity(User("u1", PaymentStatus.ACTIVE, None)),
        call=call,
        created_at=datetime.now(UTC),
        started_s=time.monotonic(),
        answer_body=bytearray(),
    )


class Told:
    """What one attempt came to."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.body = b""
        self.failure: AttemptFailed | None = None

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def events(self) -> list[Any]:
        payloads = [event.removeprefix(b"data: ") for event in self.body.split(b"\n\n") if event]
        return [payload.decode() if payload == b"[DONE]" else msgspec.json.decode(payload) for payload in payloads]

    @property
    def text(self) -> str:
        chunks = [event for event in self.events if event != "[DONE]"]
        return "".join(c["delta"].get("content") or "" for chunk in chunks for c in chunk["choices"])


async def attempt(
    provider: LiteLLMProvider,
    endpoint: Endpoint,
    *,
    max_tokens: int | None = None,
    deadline_in_s: float = 20,
    **fields: object,
) -> Told:
    """One attempt, read to its end; what the caller got and why it failed, if it did."""
    call = a_call(**fields)
    told = Told(a_meter(call))
    deadline_s = time.monotonic() + deadline_in_s
    try:
        async with provider.opened(
            call, endpoint, DIALECT, told.meter, max_tokens=max_tokens, deadline_s=deadline_s
        ) as answer:
            told.body += answer.body
            if answer.chunks is not None:
                async for chunk in answer.chunks:
                    told.body += chunk
    except AttemptFailed as failure:
        told.failure = failure
    return told


async def failed(provider: LiteLLMProvider, endpoint: Endpoint, **options: Any) -> AttemptFailed:
    told = await attempt(provider, endpoint, **options)
    assert told.failure is not None, "the attempt succeeded"
    return told.failure


def sent_to(upstream: ScriptedUpstream) -> Any:
    return upstream.invoice().lines[-1].json()


# ── Answers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_unary_answer_has_openais_shape_and_exact_usage(
    provider: LiteLLMProvider, upstream: ScriptedUpstream
) -> None:
    upstream.script(Scenario(prompt_tokens=20, cached_tokens=5, cache_write_tokens=3))

    told = await attempt(provider, endpoint_at(upstream))

    assert told.failure is None
    assert told.json["object"] == "chat.completion"
    assert told.json["choices"][0]["message"]["content"] == "w0 w1 w2 w3 w4 w5 w6 w7"
    assert told.json["choices"][0]["finish_reason"] == "stop"
    assert "provider_specific_fields" not in told.body.decode()
    assert told.meter.usage == Usage(prompt_tokens=20, completion_tokens=8, cached_tokens=5, cache_write_5m_tokens=3)
    assert told.meter.quality is Quality.EXACT
    assert told.meter.finish_reason == "stop"
    assert bytes(told.meter.answer_body or b"") == told.body
    assert upstream.invoice().lines[0].credential == KEY


async def test_a_stream_is_openais_stream_and_its_usage_is_hidden_from_those_who_did_not_ask(
    provider: LiteLLMProvider, upstream: ScriptedUpstream
) -> None:
    told = await attempt(provider, endpoint_at(upstream), stream=True)

    assert told.failure is None
    assert told.text == "w0 w1 w2 w3 w4 w5 w6 w7 "
    assert told.events[-1] == "[DONE]"
    assert [chunk["choices"][0]["finish_reason"] for chunk in told.events[:-1]] == [None] * 8 + ["stop"]
    assert b"usage" not in told.body
    assert told.meter.usage == Usage(prompt_tokens=10, completion_tokens=8)
    assert told.meter.quality is Quality.EXACT
    assert bytes(told.meter.answer_body or b"") == told.body


async def test_a_caller_who_asks_gets_the_usage_chunk_without_choices(
    provider: LiteLLMProvider, upstream: ScriptedUpstream
) -> None:
    told = await attempt(provider, endpoint_at(upstream), stream=True, stream_options={"include_usage": True})

    usage_chunk = told.events[-2]
    assert usage_chunk["choices"] == []
    assert (usage_chunk["usage"]["prompt_tokens"], usage_chunk["usage"]["completion_tokens"]) == (10, 8)


async def test_tools_are_translated_both_ways(provider: LiteLLMProvider, upstream: ScriptedUpstream) -> None:
    upstream.script(Scenario(tool_call=ToolCall("f", '{"a": 1}'), finish_reason="tool_calls"))

    told = await attempt(provider, endpoint_at(upstream), tools=[A_TOOL], tool_choice="auto")

    assert told.failure is None
    choice = told.json["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "f"
    assert msgspec.json.decode(choice["message"]["tool_calls"][0]["function"]["arguments"]) == {"a": 1}
    assert sent_to(upstream)["tools"][0]["name"] == "f"


async def test_tool_calls_stream_in_pieces(provider: LiteLLMProvider, upstream: ScriptedUpstream) -> None:
    upstream.script(Scenario(tool_call=ToolCall("f", '{"a": 1}'), finish_reason="tool_calls", chunks=4))

    told = await attempt(provider, endpoint_at(upstream), tools=[A_TOOL], stream=True)

    assert told.failure is None
    calls = [call for event in told.events[:-1] for call in event["choices"][0]["delta"].get("tool_calls", [])]
    assert calls[0]["function"]["name"] == "f"
    assert msgspec.json.decode("".join(call["function"].get("arguments") or "" for call in calls)) == {"a": 1}
    assert told.meter.finish_reason == "tool_calls"


async def test_a_lowered_cap_reaches_the_upstream(provider: LiteLLMProvider, upstream: ScriptedUpstream) -> None:
    await attempt(provider, endpoint_at(upstream), max_tokens=7)
    assert sent_to(upstream)["max_tokens"] == 7

    await attempt(provider, endpoint_at(upstream), max_tokens=5, max_completion_tokens=900)
    assert sent_to(upstream)["max_tokens"] == 5


async def test_connections_are_kept_after_whole_answers(provider: LiteLLMProvider, upstream: ScriptedUpstream) -> None:
    for is_stream in (False, True, False, True):
        told = await attempt(provider, endpoint_at(upstream), stream=is_stream)
        assert told.failure is None

    assert upstream.invoice().connections_accepted == 1


async def test_usage_that_litellm_made_up_is_not_believed(
    provider: LiteLLMProvider, upstream: ScriptedUpstream
) -> None:
    upstream.script(Scenario(usage="missing"))

    told = await attempt(provider, endpoint_at(upstream), stream=True, stream_options={"include_usage": True})

    assert told.failure is None
    assert told.meter.usage is None
    assert told.meter.quality is Quality.ESTIMATED
    assert told.meter.delivered_tokens == 8
    assert b'"prompt_tokens"' not in told.body


# ── Arguments ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Spy:
    """Stands in for the SDK's one call and keeps what it was given."""

    def __init__(self, provider: LiteLLMProvider) -> None:
        self.arguments: dict[str, Any] = {}
        self._sdk = provider._sdk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sdk, name)

    async def acompletion(self, **arguments: Any) -> Any:
        self.arguments = arguments
        return await self._sdk.acompletion(**arguments)


async def test_t036_only_allowed_arguments_reach_the_sdk(provider: LiteLLMProvider, upstream: ScriptedUpstream) -> None:
    provider._sdk = spy = Spy(provider)
    call = a_call(temperature=0.5, max_tokens=9, service_tier="priority", some_new_field=1, web_search_options={})
    steering = {"api_base": b'"http://127.0.0.1:9"', "mock_response": b'"x"', "num_retries": b"5", "metadata": b"{}"}
    call = msgspec.structs.replace(
        call, fields={**call.fields, **{name: msgspec.Raw(raw) for name, raw in steering.items()}}
    )
    endpoint = endpoint_at(upstream)

    async with provider.opened(
        call, endpoint, DIALECT, a_meter(call), max_tokens=None, deadline_s=time.monotonic() + 10
    ) as answer:
        assert b"w0" in answer.body

    assert spy.arguments.keys() == {
        "messages", "temperature", "max_tokens", "model", "api_key", "api_base", "timeout", "num_retries", "max_retries",
        "drop_params", "shared_session", "_skip_mcp_handler",
    }  # fmt: skip
    assert spy.arguments["api_base"] == endpoint.api_base
    assert spy.arguments["num_retries"] == spy.arguments["max_retries"] == 0


async def test_hints_a_provider_does_not_know_are_dropped_and_orders_are_refused(
    provider: LiteLLMProvider, upstream: ScriptedUpstream
) -> None:
    told = await attempt(provider, endpoint_at(upstream), seed=1, frequency_penalty=0.5, n=1, logprobs=False)
    assert told.failure is None
    assert "seed" not in sent_to(upstream)

    failure = await failed(provider, endpoint_at(upstream), n=3)
    assert isinstance(failure.error, InvalidRequest)
    assert failure.error.param == "n"
    assert (failure.kind, failure.is_endpoint_fault) == (FailureKind.NOTHING_SENT, False)
    assert len(upstream.invoice().lines) == 1


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://CANARY/a.png"}},
        {"type": "image_url", "image_url": "http://CANARY/a.png"},
        {"type": "image_url", "image_url": {"url": " HTTP://CANARY/a.png"}},
        {"type": "video_url", "video_url": {"url": "http://CANARY/a.mp4"}},
        {"type": "file", "file": {"file_id": "http://CANARY/a.pdf"}},
        {"type": "input_audio", "input_audio": {"data": "http://CANARY/a.wav", "format": "wav"}},
    ],
)
@pytest.mark.parametrize("model", ["anthropic/claude-x", "gemini/gemini-2.5-pro", "ollama/llava"])
async def test_t042_addresses_in_messages_are_never_fetched(
    provider: LiteLLMProvider, upstream: ScriptedUpstream, part: dict[str, object], model: str
) -> None:
    async with ScriptedUpstream() as canary:
        text = msgspec.json.encode(part).replace(b"CANARY", canary.base_url.removeprefix("http://").encode())
        message = {"role": "user", "content": [{"type": "text", "text": "see http://a/"}, msgspec.Raw(text)]}

        failure = await failed(provider, endpoint_at(upstream, upstream_model=model), messages=[message])

        assert isinstance(failure.error, InvalidRequest)
        assert canary.invoice().connections_accepted == 0
        assert upstream.invoice().connections_accepted == 0


async def test_data_urls_and_addresses_in_prose_pass(provider: LiteLLMProvider, upstream: ScriptedUpstream) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    text = {"type": "text", "text": "https://example.com/ is an address"}

    told = await attempt(provider, endpoint_at(upstream), messages=[{"role": "user", "content": [text, image]}])

    assert told.failure is None
    assert sent_to(upstream)["messages"][0]["content"][1]["source"]["data"] == "iVBORw0KGgo="


async def test_other_dialects_are_refused_without_blaming_the_endpoint(
    provider: LiteLLMProvider, upstream: ScriptedUpstream
) -> None:
    call = Embeddings().read(b'{"model":"claude","input":"hi"}')
    with pytest.raises(AttemptFailed) as caught:
        async with provider.opened(
            call, endpoint_at(upstream), Embeddings(), a_meter(call), max_tokens=None, deadline_s=time.monotonic() + 5
        ):
            pass

    assert isinstance(caught.value.error, InvalidRequest)
    assert "embeddings" in caught.value.error.message
    assert not caught.value.is_endpoint_fault


@pytest.mark.parametrize(
    ("model", "credential", "reason"),
    [
        ("vertex_ai/gemini-2.5-pro", None, "credential_missing"),
        ("vertex_ai/gemini-2.5-pro", "plain", "credential_missing"),
        ("sagemaker/x", "plain", "credential_missing"),
        ("bedrock/anthropic.claude-3-5-haiku-20241022-v1:0", None, "credential_missing"),
        ("anthropic/claude-x", '{"api_key": "a", "mock_response": "b"}', "credential_malformed"),
        ("anthropic/claude-x", "{not json", "credential_malformed"),
    ],
)
async def test_the_machines_own_identity_is_never_used(
    provider: LiteLLMProvider, upstream: ScriptedUpstream, model: str, credential: str | None, reason: str
) -> None:
    failure = await failed(provider, endpoint_at(upstream, upstream_model=model, credential=credential))

    assert failure.reason == reason
    assert failure.is_endpoint_fault
    assert upstream.invoice().lines == ()


# ── Failures before the answer ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("status", "error", "is_caller_fault"),
    [
        (400, UpstreamRejected, True),
        (401, None, False),
        (429, NoHealthyEndpoint, False),
        (500, None, False),
        (529, NoHealthyEndpoint, False),
    ],
)
async def test_an_error_status_is_one_request_and_keeps_its_number(
    provider: LiteLLMProvider,
    upstream: ScriptedUpstream,
    is_stream: bool,
    status: int,
    error: type[Exception] | None,
    is_caller_fault: bool,
) -> None:
    upstream.script(Scenario(status=status, error_message="too many words", retry_after="3"))

    failure = await failed(provider, endpoint_at(upstream), stream=is_stream)

    assert (failure.reason, failure.upstream_status) == (f"status_{status}", status)
    assert failure.kind is FailureKind.NO_ANSWER
    assert (failure.is_caller_fault, failure.is_endpoint_fault) == (is_caller_fault, not is_caller_fault)
    assert failure.retry_after_s == 3
    assert failure.upstream_message == "too many words"
    assert error is None or isinstance(failure.error, error)
    assert len(upstream.invoice().lines) == 1


async def test_neither_credential_nor_prompt_is_in_what_a_failure_shows(
    provider: LiteLLMProvider,
    upstream: ScriptedUpstream,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    for status in (400, 401, 429, 500):
        upstream.script(Scenario(status=status, echo_credentials=True, echo_prompt=True))
        for is_stream in (False, True):
            failure = await failed(
                provider,
                endpoint_at(upstream),
                stream=is_stream,
                messages=[{"role": "user", "content": "PROMPT-CANARY"}],
            )
            shown = f"{failure} {failure!r} {failure.error} {failure.error.message} {failure.reason}"
            assert KEY not in shown
            assert "PROMPT-CANARY" not in shown
            assert failure.__cause__ is None
            assert failure.__suppress_context__
    said = caplog.text + "".join(capfd.readouterr())
    assert KEY not in said
    assert "PROMPT-CANARY" not in said


async def test_a_redirect_is_not_followed(provider: LiteLLMProvider, upstream: ScriptedUpstream) -> None:
    async with ScriptedUpstream() as elsewhere:
        upstream.script(Scenario(redirect_location=f"{elsewhere.base_url}/messages"))

        failure = await failed(provider, endpoint_at(upstream))

        assert failure.reason == "redirect"
        assert failure.is_endpoint_fault
        assert elsewhere.invoice().connections_accepted == 0


async def test_a_refused_connection_sent_nothing(provider: LiteLLMProvider, upstream: ScriptedUpstream) -> None:
    failure = await failed(provider, endpoint_at(upstream, api_base="http://127.0.0.1:1"))

    assert (failure.kind, failure.reason) == (FailureKind.NOTHING_SENT, "connect_failed")
    assert failure.is_endpoint_fault


async def test_a_connection_lost_after_the_request_was_sent_is_not_free_to_retry(
    provider: LiteLLMProvider, upstream: ScriptedUpstream
) -> None:
    upstream.script(Scenario(accept_and_close=True))

    failure = await failed(provider, endpoint_at(upstream))

    assert (failure.kind, failure.reason) == (FailureKind.NO_ANSWER, "connection_lost")


@pytest.mark.parametrize(
    "model", ["anthropic/claude-x", "cohere_chat/command-r", "gemini/gemini-2.5-pro", "openai/gpt-4o"]
)
async def test_the_egress_guard_holds_for_every_family(upstream: ScriptedUpstream, model: str) -> None:
    guarded = LiteLLMProvider(EgressPolicy.parse(""))
    try:
        for host in ("127.0.0.1", "localhost"):
            failure = await failed(
                guarded, endpoint_at(upstream, upstream_model=model, api_base=f"http://{host}:{upstream.port}")
            )
            assert failure.reason == "endpoint_blocked"
            assert isinstance(failure.error, EndpointBlocked)
            assert failure.kind is FailureKind.NOTHING_SENT
    finally:
        await guarded.close()
    assert upstream.invoice().connections_accepted == 0


@pytest.mark.parametrize("body", ["<html>", "", '{"type": "message"', "[]"])
async def test_a_body_that_is_no_answer_is_told_from_an_error_status(
    provider: LiteLLMProvider, upstream: ScriptedUpstream, body: str
) -> None:
    upstream.script(Scenario(raw_body=body))

    failure = await failed(provider, endpoint_at(upstream))

    assert (failure.kind, failure.reason) == (FailureKind.NO_ANSWER, "bad_body")
    assert failure.upstream_status == 200


async def test_the_first_token_has_a_deadline(provider: LiteLLMProvider, upstream: ScriptedUpstream) -> None:
    upstream.script(Scenario(hang_after_headers=True))
    timeouts = Timeouts(connect_s=2, first_token_s=0.3, between_tokens_s=10, total_s=30, unary_s=0.3)

    for is_stream in (False, True):
        failure = await failed(provider, endpoint_at(upstream, timeouts=timeouts), stream=is_stream)
        assert (failure.kind, failure.reason) == (FailureKind.NO_ANSWER, "first_token_timeout")
        assert isinstance(failure.error, UpstreamTimeout)


async def test_the_whole_call_has_a_deadline(provider: LiteLLMProvider, upstream: ScriptedUpstream) -> None:
    upstream.script(Scenario(hang_before_headers=True))

    failure = await failed(provider, endpoint_at(upstream), deadline_in_s=0.3)

    assert failure.reason == "total_timeout"


# ── Failures within a stream ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario(chunks=6, close_after_chunks=3, framing="close"),
        Scenario(chunks=6, close_after_chunks=3),
        Scenario(chunks=6, close_after_chunks=3, half_event=True),
        Scenario(chunks=6, reset_after_chunks=3),
        Scenario(chunks=3, finish_reason=None, done_marker=False),
    ],
    ids=["fin", "aborted", "half_event", "reset", "no_finish_reason"],
)
async def test_a_stream_that_just_stops_is_truncated_whatever_litellm_says(
    provider: LiteLLMProvider, upstream: ScriptedUpstream, scenario: Scenario
) -> None:
    upstream.script(scenario)

    told = await attempt(provider, endpoint_at(upstream), stream=True)

    assert told.text == "w0 w1 w2 "
    assert b'"stop"' not in told.body
    assert b"[DONE]" not in told.body
    assert told.failure is not None
    assert (told.failure.kind, told.failure.reason) == (FailureKind.ANSWER_BEGUN, "truncated")
    assert isinstance(told.failure.error, UpstreamTruncated)
    assert told.meter.quality is Quality.PARTIAL
    assert told.meter.usage == Usage(prompt_tokens=10, completion_tokens=3)


async def test_an_error_event_ends_a_stream_that_has_begun(
    provider: LiteLLMProvider, upstream: ScriptedUpstream
) -> None:
    upstream.script(Scenario(chunks=6, error_event_after_chunks=2))

    told = await attempt(provider, endpoint_at(upstream), stream=True)

    assert told.text == "w0 w1 "
    assert told.failure is not None
    assert told.failure.kind is FailureKind.ANSWER_BEGUN
    assert told.failure.reason == "status_500"


async def test_an_error_event_before_the_first_token_may_be_tried_elsewhere(
    provider: LiteLLMProvider, upstream: ScriptedUpstream
) -> None:
    upstream.script(Scenario(error_event_after_chunks=0))

    failure = await failed(provider, endpoint_at(upstream), stream=True)

    assert failure.kind is FailureKind.NO_ANSWER


async def test_silence_between_tokens_has_a_deadline(provider: LiteLLMProvider, upstream: ScriptedUpstream) -> None:
    upstream.script(Scenario(chunks=6, stall_after_chunks=2))
    timeouts = Timeouts(connect_s=10, first_token_s=10, between_tokens_s=0.3, total_s=30)

    told = await attempt(provider, endpoint_at(upstream, timeouts=timeouts), stream=True)

    assert told.text == "w0 w1 "
    assert told.failure is not None
    assert (told.failure.kind, told.failure.reason) == (FailureKind.ANSWER_BEGUN, "between_tokens_timeout")
    assert (await upstream.settled()).lines[0].outcome == "client_hung_up"


# ── Leaving early ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("is_stream", [False, True])
async def test_cancellation_while_waiting_closes_the_socket_within_a_second(
    provider: LiteLLMProvider, upstream: ScriptedUpstream, is_stream: bool
) -> None:
    upstream.script(Scenario(hang_before_headers=True))
    task = asyncio.create_task(attempt(provider, endpoint_at(upstream), stream=is_stream))
    await upstream.requests_seen(1)

    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    line = (await upstream.settled()).lines[0]

    assert line.outcome == "client_hung_up"
    assert time.monotonic() - began - stalled_s(began) < 1


async def test_cancellation_of_a_stream_closes_the_socket_within_a_second(
    provider: LiteLLMProvider, upstream: ScriptedUpstream
) -> None:
    upstream.script(Scenario(endless=True, gap_ms=20))
    task = asyncio.create_task(attempt(provider, endpoint_at(upstream), stream=True))
    await upstream.chunks_sent(5)

    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    line = (await upstream.settled()).lines[0]

    assert line.outcome == "client_hung_up"
    assert time.monotonic() - began - stalled_s(began) < 1


async def test_leaving_a_stream_early_closes_the_socket_and_notes_what_was_delivered(
    provider: LiteLLMProvider, upstream: ScriptedUpstream
) -> None:
    upstream.script(Scenario(endless=True, gap_ms=5))
    call = a_call(stream=True)
    meter = a_meter(call)

    async with provider.opened(
        call, endpoint_at(upstream), DIALECT, meter, max_tokens=None, deadline_s=time.monotonic() + 20
    ) as answer:
        assert answer.chunks is not None
        for _ in range(3):
            await anext(answer.chunks)
    left = time.monotonic()
    line = (await upstream.settled()).lines[0]

    assert line.outcome == "client_hung_up"
    assert time.monotonic() - left - stalled_s(left) < 1
    assert meter.usage == Usage(prompt_tokens=10, completion_tokens=4)
    assert meter.quality is Quality.PARTIAL


# ── The process ───────────────────────────────────────────────────────────────────────────────────────────────────────

_ISOLATED = """
import asyncio, json, os, socket, sys, time
looked_up = []
real = socket.getaddrinfo
def spy(host, *rest, **named):
    looked_up.append(str(host))
    return real(host, *rest, **named)
socket.getaddrinfo = spy
import app.providers.litellm
assert "litellm" not in sys.modules, "imported by importing"
from tests.providers.test_litellm import KEY, LOOPBACK, LiteLLMProvider, attempt, endpoint_at
from tests.providers.test_litellm_families import FAMILIES
from tests.kit.upstream import ScriptedUpstream

async def main():
    provider = LiteLLMProvider(LOOPBACK)
    async with ScriptedUpstream() as upstream, ScriptedUpstream() as planted:
        for name in ("ANTHROPIC_API_BASE", "ANTHROPIC_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy"):
            os.environ[name] = planted.base_url
        await provider.prepare()
        results = await asyncio.gather(
            attempt(provider, endpoint_at(upstream)),
            attempt(provider, endpoint_at(upstream, credential=None), stream=True),
        )
        lines = upstream.invoice().lines
        for family in FAMILIES:
            for is_stream in (False, True):
                results.append(await attempt(provider, family.at(upstream), stream=is_stream))
        families = upstream.invoice().lines[len(lines):]
        print(json.dumps({
            "failures": [str(result.failure) for result in results if result.failure],
            "credentials": sorted(line.credential for line in lines),
            "headers": [line.headers for line in (*lines, *families)],
            "paths": [line.path + "?" + line.query for line in families],
            "planted": planted.invoice().connections_accepted,
            "looked_up": looked_up,
            "proxy_server": "litellm.proxy.proxy_server" in sys.modules,
            "from_env_file": os.environ.get("FROM_ENV_FILE"),
            "own_setting": os.environ.get("LLM_API_KEY"),
        }))
    await provider.close()

asyncio.run(main())
"""


def test_t043_t149_planted_credentials_addresses_proxies_and_env_files_are_not_used(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("FROM_ENV_FILE=1\nANTHROPIC_API_KEY=sk-planted\n")
    root = Path(__file__).resolve().parents[2]
    keys = ("OPENAI", "ANTHROPIC", "GEMINI", "GOOGLE", "COHERE", "CO")
    planted = {f"{name}_API_KEY": "sk-planted" for name in keys} | {"LLM_API_KEY": "ours"}
    planted |= {
        "AWS_ACCESS_KEY_ID": "sk-planted",
        "AWS_SECRET_ACCESS_KEY": "sk-planted",
        "AWS_SESSION_TOKEN": "sk-planted",
    }
    planted |= {"AWS_BEARER_TOKEN_BEDROCK": "sk-planted", "COHERE_API_BASE": "http://127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, "-c", _ISOLATED],
        cwd=tmp_path,
        env={**os.environ, **planted, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = msgspec.json.decode(done.stdout.splitlines()[-1])

    assert told["failures"] == []
    assert told["credentials"] == ["no-key", KEY]
    assert "sk-planted" not in str(told["headers"]) + str(told["paths"])
    assert len(told["paths"]) == 8
    assert told["planted"] == 0
    assert set(told["looked_up"]) <= {"127.0.0.1", "localhost", "None"}
    assert told["proxy_server"] is False
    assert told["from_env_file"] is None
    assert told["own_setting"] == "ours"
    assert "Give Feedback" not in done.stdout + done.stderr


async def test_a_call_that_arrives_during_the_import_waits_for_it(
    upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    import app.providers.litellm as module

    gate, imported = asyncio.Event(), module._imported
    loop = asyncio.get_running_loop()
    await asyncio.to_thread(imported)  # the true import takes longer than an endpoint's patience on a busy machine

    def slow() -> Any:
        asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(timeout=10)
        return imported()

    monkeypatch.setattr(module, "_imported", slow)
    provider = LiteLLMProvider(LOOPBACK)
    try:
        late = await failed(provider, endpoint_at(upstream), deadline_in_s=0.2)
        waiting = [asyncio.create_task(attempt(provider, endpoint_at(upstream))) for _ in range(2)]
        await asyncio.sleep(0)
        gate.set()
        told = await asyncio.gather(*waiting)
    finally:
        gate.set()
        await provider.close()

    assert (late.kind, late.reason, late.is_endpoint_fault) == (FailureKind.NOTHING_SENT, "litellm_loading", False)
    assert [each.failure for each in told] == [None, None]


# ── A real server ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoUpstream]:
    server = DemoServer(tmp_path_factory.mktemp("llama"), on_progress=lambda line: None)
    with contextlib.closing(SimpleNamespace(close=server.stop)):
        yield server.start()


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_real_server_of_anthropics_protocol_answers(
    provider: LiteLLMProvider, llama: DemoUpstream, is_stream: bool
) -> None:
    endpoint = Endpoint(
        id="e1",
        model="claude",
        provider=ProviderKind.LITELLM,
        upstream_model=f"anthropic/{llama.model}",
        api_base=llama.api_base.removesuffix("/v1"),
        credential=llama.api_key,
    )

    told = await attempt(provider, endpoint, stream=is_stream, max_tokens=12, deadline_in_s=60)

    assert told.failure is None
    text = told.text if is_stream else told.json["choices"][0]["message"]["content"]
    assert len(text) > 4
    assert told.meter.usage is not None
    assert told.meter.usage.prompt_tokens > 5
    assert 1 <= told.meter.usage.completion_tokens <= 12
    assert told.meter.quality is Quality.EXACT


async def test_a_real_server_refuses_a_wrong_key(provider: LiteLLMProvider, llama: DemoUpstream) -> None:
    endpoint = Endpoint(
        id="e1",
        model="claude",
        provider=ProviderKind.LITELLM,
        upstream_model=f"anthropic/{llama.model}",
        api_base=llama.api_base.removesuffix("/v1"),
        credential="wrong",
    )

    failure = await failed(provider, endpoint)

    assert failure.reason == "status_401"
    assert not failure.is_caller_fault
