"""One attempt of the native relay against the scripted upstream: how each ends, and what the meter knows afterwards."""

from __future__ import annotations

import asyncio
import json
from asyncio import AbstractEventLoopPolicy, DefaultEventLoopPolicy
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from time import monotonic
from typing import cast

import pytest
import uvloop

from app.dialects.messages import Messages
from app.dialects.openai_chat import OpenAIChat
from app.domain.call import Call, Meter, Quality
from app.domain.catalog import Endpoint, ProviderKind, Timeouts
from app.domain.egress import LAPTOP, NOTHING_PRIVATE
from app.domain.identity import Identity, PaymentStatus, User
from app.domain.pricing import Usage
from app.exceptions import (
    AttemptFailed,
    EndpointBlocked,
    FailureKind,
    GatewayError,
    NoHealthyEndpoint,
    UpstreamBadResponse,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamTruncated,
)
from app.providers import relay as relay_module
from app.providers.failures import MAX_RETRY_AFTER_S, read_retry_after
from app.providers.relay import MAX_LOGGED_ANSWER_BYTES, OpenAIRelay, RelayedChunks
from app.providers.transport import Deadlines, Exchange, ExchangeFailed, Transport
from tests.kit.scenario import RawPiece, Scenario, ToolCall, UsageMode
from tests.kit.stalls import require_close_to, require_soon
from tests.kit.upstream import ScriptedUpstream

CHAT = OpenAIChat()
KEY = "sk-upstream-secret"


@pytest.fixture(scope="module", params=[DefaultEventLoopPolicy, uvloop.EventLoopPolicy], ids=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> AbstractEventLoopPolicy:
    policy: AbstractEventLoopPolicy = request.param()
    return policy


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as server:
        yield server


@pytest.fixture
async def relay() -> AsyncIterator[OpenAIRelay]:
    transport = Transport(LAPTOP, max_body_bytes=8 << 20)
    yield OpenAIRelay(transport)
    await transport.close()


def read_call(*, stream: bool = True, **more: object) -> Call:
    return CHAT.read(
        json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": stream, **more}).encode()
    )


def meter_for(call: Call) -> Meter:
    identity = Identity(User("u", PaymentStatus.ACTIVE, None))
    return Meter("r", None, identity, call, datetime.now(UTC), monotonic(), answer_body=bytearray())


PATIENT = Timeouts(connect_s=10, first_token_s=10, between_tokens_s=10, total_s=20)
"""A test names the one deadline that it is about; the others must not be what ends it on a busy machine."""


class Run:
    """One attempt, played to its end."""

    def __init__(
        self, relay: OpenAIRelay, upstream: ScriptedUpstream, call: Call, *, timeouts: Timeouts = PATIENT
    ) -> None:
        self.relay, self.call, self.meter = relay, call, meter_for(call)
        self.endpoint = Endpoint("e", "m", ProviderKind.OPENAI, "gpt-up", upstream.base_url, KEY, timeouts=timeouts)
        self.body = b""
        self.failed: AttemptFailed | None = None
        self.pieces = 0

    async def played(self, *, max_tokens: int | None = None) -> Run:
        try:
            async with self.relay.opened(
                self.call, self.endpoint, CHAT, self.meter, max_tokens=max_tokens, deadline_s=monotonic() + 20
            ) as answer:
                self.body = answer.body
                if answer.chunks is not None:
                    async for chunk in answer.chunks:
                        self.body += chunk
                        self.pieces += 1
        except AttemptFailed as failed:
            self.failed = failed
        return self

    @property
    def failure(self) -> AttemptFailed:
        assert self.failed is not None, f"went well: {self.body[:300]!r}"
        return self.failed

    @property
    def events(self) -> list[bytes]:
        assert self.failed is None or self.failed.kind is FailureKind.ANSWER_BEGUN, self.failed
        return [event.removeprefix(b"data: ") for event in self.body.split(b"\n\n") if event]

    @property
    def text(self) -> str:
        chunks = [json.loads(event) for event in self.events if event != b"[DONE]"]
        return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


async def run(
    relay: OpenAIRelay, upstream: ScriptedUpstream, scenario: Scenario, *, stream: bool = True, **limits: float
) -> Run:
    upstream.script(scenario)
    timeouts = replace(PATIENT, **limits)
    return await Run(relay, upstream, read_call(stream=stream), timeouts=timeouts).played()


def seen(failed: AttemptFailed) -> tuple[FailureKind, str, type[GatewayError], int | None]:
    return failed.kind, failed.reason, type(failed.error), failed.upstream_status


async def until_closed(upstream: ScriptedUpstream) -> None:
    await require_soon(lambda: not upstream.invoice().connections_open)


# ── Answers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_unary_answer_passes_byte_for_byte_and_fills_the_meter(
    relay: OpenAIRelay, upstream: ScriptedUpstream
) -> None:
    one = await run(relay, upstream, Scenario(cached_tokens=4, reasoning_tokens=2, text="hé😀"), stream=False)
    assert json.loads(one.body)["choices"][0]["message"]["content"] == "hé😀"
    assert one.meter.usage == Usage(10, 8, cached_tokens=4, reasoning_tokens=2)
    assert (one.meter.quality, one.meter.finish_reason) == (Quality.EXACT, "stop")
    assert one.meter.delivered_tokens > 0
    assert one.meter.first_token_ms is not None
    assert bytes(one.meter.answer_body or b"") == one.body


async def test_a_stream_passes_and_fills_the_meter(relay: OpenAIRelay, upstream: ScriptedUpstream) -> None:
    one = await run(relay, upstream, Scenario(text="The quick brown fox, hé😀.", chunks=8, gap_ms=3))
    assert one.text == "The quick brown fox, hé😀."
    assert one.events[-1] == b"[DONE]"
    assert one.pieces > 1, "chunks are handed on as they come"
    assert one.meter.usage == Usage(10, 8)
    assert (one.meter.quality, one.meter.finish_reason, one.meter.delivered_tokens) == (Quality.EXACT, "stop", 8)
    assert bytes(one.meter.answer_body or b"") == one.body


async def test_the_upstream_sees_our_credential_its_own_model_name_and_nothing_else(
    relay: OpenAIRelay, upstream: ScriptedUpstream
) -> None:
    await run(relay, upstream, Scenario())
    line = upstream.invoice().lines[0]
    assert line.path == "/v1/chat/completions"
    assert line.header("authorization") == f"Bearer {KEY}"
    assert {name for name, _ in line.headers} <= {
        "host", "user-agent", "accept", "accept-encoding", "content-type", "content-length", "authorization",
    }  # fmt: skip
    assert line.json() == {
        "model": "gpt-up",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_a_base_address_may_end_with_a_slash_and_a_lowered_cap_is_sent(
    relay: OpenAIRelay, upstream: ScriptedUpstream
) -> None:
    one = Run(relay, upstream, read_call(stream=False, max_tokens=50))
    one.endpoint = Endpoint("e", "m", ProviderKind.OPENAI, "gpt-up", upstream.base_url + "/", None, timeouts=PATIENT)
    await one.played(max_tokens=7)
    line = upstream.invoice().lines[0]
    assert line.path == "/v1/chat/completions"
    assert b'"max_tokens":7' in line.body
    assert line.header("authorization") is None


async def test_connections_are_used_again_after_unary_answers_streams_and_refusals(
    relay: OpenAIRelay, upstream: ScriptedUpstream
) -> None:
    for scenario in (Scenario(), Scenario(status=429), Scenario(done_marker=False), Scenario(gap_ms=2)):
        for stream in (True, False):
            await run(relay, upstream, scenario, stream=stream)
    assert {line.connection for line in upstream.invoice().lines} == {1}


async def test_t054_of_the_upstreams_headers_only_harmless_ones_are_shown(
    relay: OpenAIRelay, upstream: ScriptedUpstream
) -> None:
    many = tuple((f"x-{number}", "y") for number in range(90))
    upstream.script(
        Scenario(
            headers=(
                ("set-cookie", "a=b"),
                ("server", "s"),
                ("openai-organization", "o"),
                ("openai-processing-ms", "12"),
                *many,
            )
        )
    )
    call = read_call(stream=False)
    one = Run(relay, upstream, call)
    async with relay.opened(call, one.endpoint, CHAT, one.meter, max_tokens=None, deadline_s=monotonic() + 5) as answer:
        assert answer.headers == ((b"openai-processing-ms", b"12"),)
        assert answer.content_type == "application/json"


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario(crlf=True),
        Scenario(no_space_after_data=True),
        Scenario(multiline_data=True),
        Scenario(bom=True),
        Scenario(utf8_split=True),
        Scenario(one_byte_segments=True, chunks=3, completion_tokens=8),
        Scenario(events_per_segment=10, chunks=40),
        Scenario(role_only_first=False),
        Scenario(usage="in_content_chunk"),
        Scenario(usage="on_finish_chunk"),
        Scenario(usage="every_chunk"),
        Scenario(done_marker=False),
        Scenario(framing="close"),
        Scenario(unknown_event_after_chunks=2),
        Scenario(reasoning_text="hmm"),
    ],
    ids=lambda scenario: str(scenario.to_json())[:60],
)
async def test_t082_legal_but_odd_streams_come_out_whole_with_exact_usage(
    relay: OpenAIRelay, upstream: ScriptedUpstream, scenario: Scenario
) -> None:
    text = "Grüße 😀 from the scripted upstream"
    one = await run(relay, upstream, replace(scenario, text=text))
    assert one.failed is None
    assert one.text == text
    assert one.events[-1] == b"[DONE]"
    assert one.meter.usage is not None
    assert (one.meter.usage.completion_tokens, one.meter.quality, one.meter.finish_reason) == (8, Quality.EXACT, "stop")
    assert b"unheard_of" not in one.body


@pytest.mark.parametrize("scenario", [Scenario(tool_call=ToolCall("f", '{"a": "é"}')), Scenario(refusal="I can not")])
async def test_t082_tool_calls_and_refusals_are_answers(
    relay: OpenAIRelay, upstream: ScriptedUpstream, scenario: Scenario
) -> None:
    for stream in (True, False):
        one = await run(relay, upstream, scenario, stream=stream)
        assert one.failed is None
        assert one.meter.quality is Quality.EXACT


BELIEVED: list[UsageMode] = ["exact", "mismatched"]
NOT_BELIEVED: list[UsageMode] = ["missing", "negative", "strings", "floats", "nulls", "nan"]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "unary"])
@pytest.mark.parametrize("mode", BELIEVED + NOT_BELIEVED)
async def test_t086_only_believable_usage_is_exact(
    relay: OpenAIRelay, upstream: ScriptedUpstream, mode: UsageMode, stream: bool
) -> None:
    one = await run(relay, upstream, Scenario(usage=mode), stream=stream)
    assert one.failed is None
    expected = (Usage(10, 8), Quality.EXACT) if mode in BELIEVED else (None, Quality.ESTIMATED)
    assert (one.meter.usage, one.meter.quality) == expected
    assert one.meter.delivered_tokens >= 5, "what an estimate rests on"


async def test_t119_usage_is_asked_for_and_hidden(relay: OpenAIRelay, upstream: ScriptedUpstream) -> None:
    one = await run(relay, upstream, Scenario())
    assert not any(b'"choices":[]' in event for event in one.events)
    asked = Run(relay, upstream, read_call(stream_options={"include_usage": True}))
    await asked.played()
    assert any(b'"choices":[]' in event for event in asked.events)
    assert one.meter.usage == asked.meter.usage == Usage(10, 8)


# ── Statuses ──────────────────────────────────────────────────────────────────────────────────────────────────────────

STATUSES: list[tuple[int, type[GatewayError], bool]] = [
    (400, UpstreamRejected, True),
    (404, UpstreamRejected, True),
    (413, UpstreamRejected, True),
    (422, UpstreamRejected, True),
    (401, UpstreamError, False),
    (402, UpstreamError, False),
    (403, UpstreamError, False),
    (408, UpstreamTimeout, False),
    (409, UpstreamError, False),
    (429, NoHealthyEndpoint, False),
    (500, UpstreamError, False),
    (501, UpstreamError, False),
    (502, UpstreamError, False),
    (503, NoHealthyEndpoint, False),
    (504, UpstreamTimeout, False),
    (529, NoHealthyEndpoint, False),
    # A method, a header, a connection, a model behind it: nothing that the caller could do otherwise.
    *((status, UpstreamError, False) for status in (405, 406, 410, 411, 417, 421, 424, 426, 431, 499)),
    (498, NoHealthyEndpoint, False),
]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "unary"])
@pytest.mark.parametrize(("status", "error", "is_callers"), STATUSES)
async def test_t061_t063_t064_a_status_says_whose_fault_it_is(
    relay: OpenAIRelay,
    upstream: ScriptedUpstream,
    status: int,
    error: type[GatewayError],
    is_callers: bool,
    stream: bool,
) -> None:
    one = await run(relay, upstream, Scenario(status=status), stream=stream)
    assert seen(one.failure) == (FailureKind.NO_ANSWER, f"status_{status}", error, status)
    assert one.failure.is_caller_fault is is_callers
    assert one.failure.is_endpoint_fault is not is_callers
    assert len(upstream.invoice().lines) == 1, "T062: nobody below us tries again"
    assert one.meter.usage is None


REFUSES_OPTIONS = [
    '{"error":{"message":"Unrecognized request argument supplied: stream_options","type":"invalid_request_error"}}',
    '{"object":"error","message":{"detail":[{"type":"extra_forbidden","loc":["body","stream_options"],"input":{"include_usage":true}}]}}',
]


@pytest.mark.parametrize(
    ("status", "body"), [(400, REFUSES_OPTIONS[0]), (422, REFUSES_OPTIONS[1])], ids=["OpenAI", "Mistral"]
)
async def test_t119_an_upstream_that_does_not_know_stream_options_is_asked_without_them(
    relay: OpenAIRelay, upstream: ScriptedUpstream, status: int, body: str
) -> None:
    """They are the gateway's own; the caller could do nothing about it."""
    upstream.script(
        queue=[Scenario(status=status, error_body=body), Scenario(usage="missing"), Scenario(usage="missing")]
    )
    for _ in range(2):
        one = await Run(relay, upstream, read_call()).played()
        assert (one.failed, one.meter.quality, one.meter.finish_reason) == (None, Quality.ESTIMATED, "stop")

    refused, plain, later = upstream.invoice().lines
    assert b'"stream_options":{"include_usage":true}' in refused.body
    assert b"stream_options" not in plain.body
    assert b"stream_options" not in later.body, "it is not asked again for a while"


async def test_stream_options_of_the_callers_own_are_kept_and_what_he_asked_for_himself_is_his_fault(
    relay: OpenAIRelay, upstream: ScriptedUpstream
) -> None:
    upstream.script(queue=[Scenario(status=400, error_body=REFUSES_OPTIONS[0]), Scenario()])
    own = {"include_obfuscation": False}
    assert (await Run(relay, upstream, read_call(stream_options=own)).played()).failed is None
    assert b'"stream_options":{"include_obfuscation":false}' in upstream.invoice().lines[1].body.replace(b" ", b"")

    upstream.script(Scenario(status=400, error_body=REFUSES_OPTIONS[0]))
    one = await Run(relay, upstream, read_call(stream_options={"include_usage": True})).played()
    assert one.failure.is_caller_fault
    assert len(upstream.invoice().lines) == 3


async def test_t063_an_error_that_repeats_the_request_is_not_about_stream_options(
    relay: OpenAIRelay, upstream: ScriptedUpstream
) -> None:
    one = await run(relay, upstream, Scenario(status=400, echo_prompt=True))
    assert b"stream_options" in (one.failure.upstream_message or "").encode()
    assert len(upstream.invoice().lines) == 1


async def test_an_upstream_that_refuses_the_plain_request_as_well_is_asked_no_third_time(
    relay: OpenAIRelay, upstream: ScriptedUpstream
) -> None:
    for second in (Scenario(status=400, error_body=REFUSES_OPTIONS[0]), Scenario(status=500)):
        before = len(upstream.invoice().lines)
        upstream.script(queue=[Scenario(status=400, error_body=REFUSES_OPTIONS[0]), second])
        one = await Run(relay, upstream, read_call()).played()
        assert one.failure.kind is FailureKind.NO_ANSWER
        assert len(upstream.invoice().lines) == before + 2
    assert {line.connection for line in upstream.invoice().lines} == {1}, "none of them is left open"


async def test_t119_a_call_retold_in_chat_is_asked_without_stream_options_as_well(
    relay: OpenAIRelay, upstream: ScriptedUpstream
) -> None:
    upstream.script(queue=[Scenario(status=400, error_body=REFUSES_OPTIONS[0]), Scenario()])
    asked = Messages().read(b'{"model":"m","max_tokens":50,"stream":true,"messages":[{"role":"user","content":"hi"}]}')
    dialect, call = Messages().towards(ProviderKind.OPENAI, asked)
    endpoint = Endpoint("e", "m", ProviderKind.OPENAI, "gpt-up", upstream.base_url, KEY, timeouts=PATIENT)
    async with relay.opened(
        call, endpoint, dialect, meter_for(call), max_tokens=None, deadline_s=monotonic() + 20
    ) as answer:
        assert answer.chunks is not None
        body = answer.body + b"".join([chunk async for chunk in answer.chunks])
    assert b"event: message_stop" in body
    assert [b"stream_options" in line.body for line in upstream.invoice().lines] == [True, False]


async def test_t063_the_callers_fault_keeps_its_status_and_carries_the_upstreams_words_apart(
    relay: OpenAIRelay, upstream: ScriptedUpstream
) -> None:
    body = '{"error":{"message":"too long","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}'
    one = await run(relay, upstream, Scenario(status=400, error_body=body))
    assert (one.failure.error.status, one.failure.upstream_message) == (400, "too long")
    assert (one.failure.upstream_code, one.failure.upstream_param) == ("context_length_exceeded", "messages")


@pytest.mark.parametrize("status", [400, 401, 500])
async def test_t064_t068_what_an_upstream_echoes_is_not_in_the_error_that_is_shown(
    relay: OpenAIRelay, upstream: ScriptedUpstream, status: int
) -> None:
    one = await run(relay, upstream, Scenario(status=status, echo_credentials=True, echo_prompt=True))
    assert KEY in (one.failure.upstream_message or ""), "the stub did echo it"
    assert KEY not in one.failure.error.message + str(one.failure) + str(one.failure.error.param)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "unary"])
@pytest.mark.parametrize("status", [201, 203, 206, 299])
async def test_any_success_is_an_answer(
    relay: OpenAIRelay, upstream: ScriptedUpstream, status: int, stream: bool
) -> None:
    one = await run(relay, upstream, Scenario(status=status), stream=stream)
    assert one.failed is None
    assert one.meter.usage == Usage(10, 8)


@pytest.mark.parametrize("status", [202, 204])
async def test_a_success_without_an_answer_is_none(relay: OpenAIRelay, upstream: ScriptedUpstream, status: int) -> None:
    one = await run(relay, upstream, Scenario(status=status, raw_body=""), stream=False)
    assert seen(one.failure) == (FailureKind.NO_ANSWER, "empty_body", UpstreamBadResponse, status)


async def test_the_words_of_a_refusal_are_not_waited_for_long(
    relay: OpenAIRelay, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its status is known, and another endpoint may be there for the call."""
    monkeypatch.setattr(relay_module, "ERROR_S", 0.2)
    upstream.script(Scenario(status=503, hang_after_headers=True))
    one = await Run(relay, upstream, read_call(), timeouts=replace(PATIENT, first_token_s=60, total_s=60)).played()
    assert seen(one.failure) == (FailureKind.NO_ANSWER, "status_503", NoHealthyEndpoint, 503)
    assert monotonic() - one.meter.started_s < 40, "not until its own deadline"


async def test_our_own_account_is_not_the_callers_fault_whatever_the_status(
    relay: OpenAIRelay, upstream: ScriptedUpstream
) -> None:
    one = await run(relay, upstream, Scenario(status=400, error_code="invalid_api_key"))
    assert (one.failure.is_caller_fault, type(one.failure.error)) == (False, UpstreamError)


@pytest.mark.parametrize("body", ["", "<html>" * 1000, "{", "[" * 50_000, '{"error":null}'])
async def test_t068_an_error_body_of_any_kind_changes_nothing(
    relay: OpenAIRelay, upstream: ScriptedUpstream, body: str
) -> None:
    one = await run(relay, upstream, Scenario(status=500, raw_body=body))
    assert seen(one.failure) == (FailureKind.NO_ANSWER, "status_500", UpstreamError, 500)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_t041_a_redirect_is_the_endpoints_failure(
    relay: OpenAIRelay, upstream: ScriptedUpstream, status: int
) -> None:
    one = await run(relay, upstream, Scenario(status=status, redirect_location=upstream.base_url + "/chat/completions"))
    assert seen(one.failure) == (FailureKind.NO_ANSWER, "redirect", UpstreamError, status)
    assert one.failure.is_endpoint_fault
    assert len(upstream.invoice().lines) == 1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("1.5", 1.5),
        ("86400", MAX_RETRY_AFTER_S),
        ("-1", None),
        ("soon", None),
        ("", None),
        ("nan", None),
        ("1e9", None),
        ("٣", None),
    ],
)
def test_t065_retry_after_is_read_capped_and_never_negative(value: str, seconds: float | None) -> None:
    assert read_retry_after({"retry-after": value}) == seconds


def test_t065_retry_after_may_be_a_date_or_in_milliseconds() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    for ahead_s, expected in ((7, 7.0), (-7, 0.0), (86_400, MAX_RETRY_AFTER_S)):
        date = format_datetime(now + timedelta(seconds=ahead_s), usegmt=True)
        assert read_retry_after({"retry-after": date}, now=now) == expected
    assert read_retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert read_retry_after({}) is None


async def test_t065_a_429_carries_when_to_come_back(relay: OpenAIRelay, upstream: ScriptedUpstream) -> None:
    one = await run(relay, upstream, Scenario(status=429, retry_after="7"))
    assert one.failure.retry_after_s == 7
    assert one.failure.error.retry_after_s == 7


# ── 200s that are no answers ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("<html>", "not_json"),
        ("", "empty_body"),
        ("[]", "not_a_completion"),
        ("{}", "no_choices"),
        ('{"choices":[]}', "no_choices"),
        ('{"choices":[{"message":{"content":null},"finish_reason":"stop"}]}', "no_content"),
    ],
)
async def test_t069_a_200_that_is_no_answer_fails_the_attempt(
    relay: OpenAIRelay, upstream: ScriptedUpstream, body: str, reason: str
) -> None:
    one = await run(relay, upstream, Scenario(raw_body=body), stream=False)
    assert seen(one.failure) == (FailureKind.NO_ANSWER, reason, UpstreamBadResponse, 200)
    assert one.failure.is_endpoint_fault
    assert one.meter.usage is None
    assert bytes(one.meter.answer_body or b"") == b""


async def test_t069_t072_an_error_object_in_a_200_counts_by_its_own_status(
    relay: OpenAIRelay, upstream: ScriptedUpstream
) -> None:
    body = '{"error":{"message":"slow down","code":"rate_limit_exceeded"}}'
    one = await run(relay, upstream, Scenario(raw_body=body), stream=False)
    assert seen(one.failure) == (FailureKind.NO_ANSWER, "status_429", NoHealthyEndpoint, 429)
    one = await run(
        relay, upstream, Scenario(error_event_after_chunks=0, role_only_first=False, error_code="overloaded_error")
    )
    assert seen(one.failure) == (FailureKind.NO_ANSWER, "status_503", NoHealthyEndpoint, 503)


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario(raw_stream=(RawPiece(b""),)),
        Scenario(raw_stream=(RawPiece(b": hello\n\n: hello\n\n"),)),
        Scenario(raw_stream=(RawPiece(b"data: [DONE]\n\n"),)),
        Scenario(raw_stream=(RawPiece(b"<html><body>Bad gateway</body></html>"),)),
        Scenario(comments_every_ms=5, comments_count=5),
        Scenario(raw_body="<html></html>", content_type="text/html"),
        Scenario(raw_body='{"choices":[]}'),
        Scenario(raw_body="{"),
        Scenario(close_after_chunks=0),
    ],
    ids=lambda scenario: str(scenario.to_json())[:50],
)
async def test_t071_a_stream_without_an_answer_is_a_real_failure_and_never_an_empty_200(
    relay: OpenAIRelay, upstream: ScriptedUpstream, scenario: Scenario
) -> None:
    one = await run(relay, upstream, scenario)
    assert one.failure.kind is FailureKind.NO_ANSWER
    assert isinstance(one.failure.error, UpstreamBadResponse | UpstreamError)
    assert one.failure.error.status == 502
    assert one.body == b""


async def test_t071_a_complete_answer_where_a_stream_was_asked_for_is_shown_as_one(
    relay: OpenAIRelay, upstream: ScriptedUpstream
) -> None:
    one = await run(relay, upstream, Scenario(unary_despite_stream=True, text="hé"))
    assert one.text == "hé"
    assert one.events[-1] == b"[DONE]"
    assert (one.meter.usage, one.meter.quality, one.meter.finish_reason) == (Usage(10, 8), Quality.EXACT, "stop")


def whole(content_type: bytes, *segments: bytes) -> Scenario:
    """A complete HTTP answer that ends with its connection, in these segments."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: " + content_type + b"\r\n\r\n"
    return Scenario(raw_whole=True, raw_stream=(RawPiece(head), *(RawPiece(each, pause_ms=20) for each in segments)))


COMPLETION = (
    b'{"choices":[{"index":0,"message":{"role":"assistant","content":"x"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":10,"completion_tokens":8}}'
)
TYPES = [b"application/json", b"text/event-stream", b"text/plain", b"application/octet-stream"]


@pytest.mark.parametrize("content_type", TYPES)
async def test_t071_whether_an_answer_is_a_stream_is_told_by_the_answer_and_not_by_its_type(
    relay: OpenAIRelay, upstream: ScriptedUpstream, content_type: bytes
) -> None:
    stop = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    one = await run(relay, upstream, whole(content_type, b"\n", SAID, stop, b"data: [DONE]\n\n"))
    assert (one.failed, one.text, one.meter.finish_reason) == (None, "x", "stop")
    assert one.pieces > 1, "as they come"
    for segments in ((COMPLETION,), (b" \n", COMPLETION[:30], COMPLETION[30:]), (b"\xef\xbb\xbf" + COMPLETION,)):
        one = await run(relay, upstream, whole(content_type, *segments))
        assert (one.failed, one.text, one.meter.usage) == (None, "x", Usage(10, 8))
        assert one.events[-1] == b"[DONE]"


@pytest.mark.parametrize("content_type", TYPES)
async def test_t072_an_error_object_in_place_of_a_stream_counts_by_its_own_status(
    relay: OpenAIRelay, upstream: ScriptedUpstream, content_type: bytes
) -> None:
    one = await run(relay, upstream, whole(content_type, b'{"error":{"message":"slow down","code":429}}'))
    assert seen(one.failure) == (FailureKind.NO_ANSWER, "status_429", NoHealthyEndpoint, 429)


async def test_t066_a_prompt_that_a_router_flagged_says_nothing_of_our_credential(
    relay: OpenAIRelay, upstream: ScriptedUpstream
) -> None:
    """OpenRouter says 403 of it; one caller's prompts must not take the endpoint from all others."""
    body = '{"error":{"code":403,"message":"flagged","metadata":{"reasons":["violence"],"flagged_input":"hi"}}}'
    one = await run(relay, upstream, Scenario(status=403, error_body=body))
    assert (one.failure.is_caller_fault, one.failure.is_endpoint_fault) == (True, False)
    assert one.failure.upstream_code == "content_filter"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "unary"])
async def test_t080_bombs_and_giants_are_dropped(relay: OpenAIRelay, upstream: ScriptedUpstream, stream: bool) -> None:
    one = await run(relay, upstream, Scenario(gzip_bomb_bytes=100 << 20), stream=stream)
    assert seen(one.failure)[1:3] == ("encoded_answer", UpstreamBadResponse)
    one = await run(relay, upstream, Scenario(giant_body_bytes=200 << 20, unary_despite_stream=True), stream=stream)
    assert seen(one.failure)[1:3] == ("body_too_large", UpstreamBadResponse)
    await until_closed(upstream)


@pytest.mark.parametrize("size", [40 << 20, 2 << 20])
async def test_t079_a_giant_event_ends_the_stream_at_the_cap(
    relay: OpenAIRelay, upstream: ScriptedUpstream, size: int
) -> None:
    one = await run(relay, upstream, Scenario(giant_line_bytes=size))
    assert seen(one.failure) == (FailureKind.NO_ANSWER, "event_too_large", UpstreamBadResponse, 200)
    await until_closed(upstream)
    assert upstream.invoice().lines[0].bytes_delivered < 6 << 20


# ── Streams that break ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario(close_after_chunks=5, framing="close"),
        Scenario(close_after_chunks=5, framing="close", half_event=True),
        Scenario(close_after_chunks=5),
        Scenario(reset_after_chunks=5, half_event=True),
        Scenario(finish_reason=None, done_marker=False, chunks=5, completion_tokens=5, usage="missing"),
    ],
    ids=lambda scenario: str(scenario.to_json())[:60],
)
async def test_t070_t084_a_stream_that_just_stops_hands_on_what_came_and_then_fails_for_good(
    relay: OpenAIRelay, upstream: ScriptedUpstream, scenario: Scenario
) -> None:
    one = await run(relay, upstream, scenario)
    assert one.failure.kind is FailureKind.ANSWER_BEGUN
    assert isinstance(one.failure.error, UpstreamTruncated)
    assert one.text == "w0 w1 w2 w3 w4 "
    assert b"[DONE]" not in one.body
    assert b'"finish_reason":"stop"' not in one.body
    assert (one.meter.quality, one.meter.delivered_tokens, one.meter.finish_reason) == (Quality.PARTIAL, 5, None)


async def test_t073_an_error_event_behind_content_ends_the_stream_with_what_came_before(
    relay: OpenAIRelay, upstream: ScriptedUpstream
) -> None:
    one = await run(relay, upstream, Scenario(error_event_after_chunks=5, error_code="overloaded_error"))
    assert seen(one.failure) == (FailureKind.ANSWER_BEGUN, "status_503", NoHealthyEndpoint, 503)
    assert one.text == "w0 w1 w2 w3 w4 "
    assert (one.meter.quality, one.meter.delivered_tokens) == (Quality.PARTIAL, 5)


async def test_t073_an_error_in_the_same_segment_as_content_is_not_waited_for(
    relay: OpenAIRelay, upstream: ScriptedUpstream
) -> None:
    said = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
    broken = b'data: {"error":{"message":"over","code":503}}\n\n'
    silence = RawPiece(b"data: [DONE]\n\n", pause_ms=60_000)
    one = await run(relay, upstream, Scenario(raw_stream=(RawPiece(said + broken), silence)), between_tokens_s=8)
    assert seen(one.failure) == (FailureKind.ANSWER_BEGUN, "status_503", NoHealthyEndpoint, 503)
    assert one.body == said


async def test_t081_garbage_between_good_chunks_ends_the_stream_with_a_reason(
    relay: OpenAIRelay, upstream: ScriptedUpstream
) -> None:
    one = await run(relay, upstream, Scenario(garbage_after_chunks=(5,)))
    assert seen(one.failure) == (FailureKind.ANSWER_BEGUN, "bad_event", UpstreamBadResponse, 200)
    assert one.text == "w0 w1 w2 w3 w4 "


async def test_a_break_after_the_last_finish_reason_loses_nothing(
    relay: OpenAIRelay, upstream: ScriptedUpstream
) -> None:
    said = b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n'
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    one = await run(
        relay, upstream, Scenario(raw_whole=True, raw_stream=(RawPiece(head + b"%x\r\n%b\r\n" % (len(said), said)),))
    )
    assert one.failed is None
    assert one.body == said + b"data: [DONE]\n\n"
    assert one.meter.quality is Quality.ESTIMATED


# ── Deadlines ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def timed(
    relay: OpenAIRelay, upstream: ScriptedUpstream, scenario: Scenario, *, stream: bool = True, **limits: float
) -> tuple[Run, float]:
    started = monotonic()
    one = await run(relay, upstream, scenario, stream=stream, **limits)
    return one, monotonic() - started


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "unary"])
@pytest.mark.parametrize("scenario", [Scenario(hang_before_headers=True), Scenario(hang_after_headers=True)])
async def test_t074_silence_fails_at_the_first_token_deadline(
    relay: OpenAIRelay, upstream: ScriptedUpstream, scenario: Scenario, stream: bool
) -> None:
    one, taken_s = await timed(relay, upstream, scenario, stream=stream, first_token_s=0.4, unary_s=0.4)
    assert seen(one.failure)[:3] == (FailureKind.NO_ANSWER, "first_token_timeout", UpstreamTimeout)
    assert one.failure.error.status == 504
    require_close_to(taken_s, 0.4)
    await until_closed(upstream)


async def test_t076_comments_are_no_progress(relay: OpenAIRelay, upstream: ScriptedUpstream) -> None:
    one, taken_s = await timed(relay, upstream, Scenario(comments_every_ms=50), first_token_s=0.5)
    assert seen(one.failure)[:3] == (FailureKind.NO_ANSWER, "first_token_timeout", UpstreamTimeout)
    require_close_to(taken_s, 0.5)


async def test_t076_blanks_before_a_whole_answer_are_no_progress_and_spoil_it_not(
    relay: OpenAIRelay, upstream: ScriptedUpstream
) -> None:
    """Some pad an answer for as long as the model thinks, to keep its connection alive."""
    for_ever = whole(b"application/json", *[b" \n"] * 1000)
    one, taken_s = await timed(relay, upstream, for_ever, stream=False, first_token_s=0.5, unary_s=0.5)
    assert seen(one.failure)[:3] == (FailureKind.NO_ANSWER, "first_token_timeout", UpstreamTimeout)
    assert taken_s >= 0.49
    one = await run(relay, upstream, whole(b"application/json", *[b" \n"] * 10, COMPLETION), stream=False)
    assert (one.failed, one.meter.usage) == (None, Usage(10, 8))


async def test_t075_a_stall_ends_at_the_deadline_between_tokens(relay: OpenAIRelay, upstream: ScriptedUpstream) -> None:
    one, taken_s = await timed(relay, upstream, Scenario(stall_after_chunks=5), between_tokens_s=0.4)
    assert seen(one.failure)[:3] == (FailureKind.ANSWER_BEGUN, "between_tokens_timeout", UpstreamTimeout)
    require_close_to(taken_s, 0.4)
    assert (one.text, one.meter.delivered_tokens) == ("w0 w1 w2 w3 w4 ", 5)
    await until_closed(upstream)


SAID = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
WORKING = b": OPENROUTER PROCESSING\n\n"
PING = b'event: ping\ndata: {"type":"ping"}\n\n'
"""An event that is not handed on."""


class ToldExchange:
    """An exchange whose reads bring what is told, at once; `waits_s` is how long each would have waited."""

    def __init__(self, *reads: bytes) -> None:
        self._reads = list(reads)
        self.waits_s: list[float] = []

    async def read_some(self, wait_s: float, reason: str) -> bytes:
        assert reason == "between_tokens_timeout"
        self.waits_s.append(wait_s)
        return self._reads.pop(0)


async def waits_of(*reads: bytes, first_token_s: float, between_s: float) -> list[float]:
    """How long a stream that has begun waits for each of these reads, the last of which is handed on."""
    call, exchange = read_call(), ToldExchange(*reads)
    reader = CHAT.stream_reader(call)
    reader.feed(SAID)
    deadlines = Deadlines(
        connect_s=1, first_byte_s=first_token_s, between_bytes_s=between_s, total_at_s=monotonic() + 600
    )
    chunks = RelayedChunks(cast(Exchange, exchange), reader, meter_for(call), deadlines, is_over=False, pieces=deque())
    assert await anext(chunks)
    return exchange.waits_s


async def test_a_stream_whose_upstream_says_that_it_works_has_as_long_as_a_first_token() -> None:
    waits_s = await waits_of(*[WORKING] * 50, SAID, first_token_s=300, between_s=5)
    assert waits_s == [5.0] * 51, "silence alone would have ended it after five seconds; comments may go on for minutes"


async def test_comments_between_tokens_are_no_progress_for_ever() -> None:
    waits_s = await waits_of(*[WORKING] * 50, SAID, first_token_s=5, between_s=5)
    assert waits_s[0] == 5.0
    assert all(later < earlier for earlier, later in pairwise(waits_s[1:])), "all of them share one deadline"


async def test_an_event_that_is_not_handed_on_is_progress() -> None:
    waits_s = await waits_of(*[WORKING, PING] * 20, SAID, first_token_s=5, between_s=5)
    assert waits_s[::2] == [5.0] * 21


class TricklingExchange:
    """An exchange whose upstream never stops sending something that is no event."""

    async def read_some(self, wait_s: float, reason: str) -> bytes:
        if wait_s <= 0:
            raise ExchangeFailed(reason, is_sent=True, is_timeout=True)
        await asyncio.sleep(0.01)
        return b": still here\n\n"


async def test_bytes_that_never_make_an_event_end_at_a_deadline() -> None:
    call = read_call()
    reader = CHAT.stream_reader(call)
    reader.feed(SAID)
    deadlines = Deadlines(connect_s=1, first_byte_s=0.3, between_bytes_s=0.2, total_at_s=monotonic() + 600)
    trickle = cast(Exchange, TricklingExchange())
    chunks, began_s = (
        RelayedChunks(trickle, reader, meter_for(call), deadlines, is_over=False, pieces=deque()),
        monotonic(),
    )

    with pytest.raises(AttemptFailed) as caught:
        await anext(chunks)

    assert seen(caught.value)[:3] == (FailureKind.ANSWER_BEGUN, "between_tokens_timeout", UpstreamTimeout)
    assert monotonic() - began_s >= 0.3, "comments have as long as a first token"


async def test_comments_after_the_last_finish_reason_keep_nobody_waiting(
    relay: OpenAIRelay, upstream: ScriptedUpstream
) -> None:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":1}}\n\n'
    said = b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n'
    trickle = [RawPiece(WORKING, pause_ms=100)] * 1000
    one, taken_s = await timed(relay, upstream, Scenario(raw_stream=(RawPiece(said + usage), *trickle)), total_s=60)
    assert one.failed is None
    assert one.body == said + b"data: [DONE]\n\n"
    assert taken_s < 40, "not until the total deadline"


async def test_t077_the_total_deadline_ends_an_endless_answer_and_what_came_is_known(
    relay: OpenAIRelay, upstream: ScriptedUpstream
) -> None:
    one, taken_s = await timed(relay, upstream, Scenario(endless=True, gap_ms=20), total_s=2.5)
    assert seen(one.failure)[:3] == (FailureKind.ANSWER_BEGUN, "total_timeout", UpstreamTimeout)
    require_close_to(taken_s, 2.5)
    assert one.meter.quality is Quality.PARTIAL
    assert one.meter.delivered_tokens >= 5


async def test_the_calls_own_deadline_holds_where_it_is_shorter(relay: OpenAIRelay, upstream: ScriptedUpstream) -> None:
    upstream.script(Scenario(hang_before_headers=True))
    one = Run(relay, upstream, read_call())
    started = monotonic()
    with pytest.raises(AttemptFailed, match="total_timeout"):
        async with relay.opened(one.call, one.endpoint, CHAT, one.meter, max_tokens=None, deadline_s=started + 0.3):
            raise AssertionError("began")
    require_close_to(monotonic() - started, 0.3)


# ── Connections ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_t074_a_refused_connection_is_free_to_retry(relay: OpenAIRelay) -> None:
    async with ScriptedUpstream() as gone:
        one = Run(relay, gone, read_call())
    await one.played()
    assert seen(one.failure) == (FailureKind.NOTHING_SENT, "connect_failed", UpstreamError, None)


async def test_a_connection_lost_before_the_answer_is_not(relay: OpenAIRelay, upstream: ScriptedUpstream) -> None:
    one = await run(relay, upstream, Scenario(accept_and_reset=True))
    assert seen(one.failure) == (FailureKind.NO_ANSWER, "connection_lost", UpstreamError, None)


async def test_t040_a_forbidden_address_is_blocked_and_not_dialled(upstream: ScriptedUpstream) -> None:
    transport = Transport(NOTHING_PRIVATE)
    one = await Run(OpenAIRelay(transport), upstream, read_call()).played()
    assert seen(one.failure) == (FailureKind.NOTHING_SENT, "endpoint_blocked", EndpointBlocked, None)
    assert upstream.invoice().connections_accepted == 0
    await transport.close()


# ── The caller leaves ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_t117_leaving_after_some_chunks_closes_the_upstream_and_the_meter_knows_what_was_delivered(
    relay: OpenAIRelay, upstream: ScriptedUpstream
) -> None:
    upstream.script(Scenario(chunks=1000, completion_tokens=1000, gap_ms=10))
    one = Run(relay, upstream, read_call(), timeouts=Timeouts())
    async with relay.opened(
        one.call, one.endpoint, CHAT, one.meter, max_tokens=None, deadline_s=monotonic() + 60
    ) as answer:
        assert answer.chunks is not None
        async for _ in answer.chunks:
            if one.meter.delivered_tokens >= 5:
                break
    await until_closed(upstream)
    billed = (await upstream.settled()).lines[0].usage_due.completion_tokens
    assert one.meter.quality is Quality.PARTIAL
    assert 5 <= one.meter.delivered_tokens <= billed <= 20


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "unary"])
async def test_t117_t118_a_cancellation_while_waiting_closes_the_upstream_and_passes_on(
    relay: OpenAIRelay, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.script(Scenario(delay_ms=60_000))
    one = Run(relay, upstream, read_call(stream=stream), timeouts=Timeouts())
    task = asyncio.create_task(one.played())
    await upstream.requests_seen(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until_closed(upstream)
    assert upstream.invoice().lines[0].outcome == "client_hung_up"


async def test_t117_leaving_after_the_usage_was_seen_is_exact(relay: OpenAIRelay, upstream: ScriptedUpstream) -> None:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":1}}\n\n'
    said = b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n'
    upstream.script(Scenario(raw_stream=(RawPiece(said + usage), RawPiece(b"data: [DONE]\n\n", pause_ms=60_000))))
    one = Run(relay, upstream, read_call())
    async with relay.opened(
        one.call, one.endpoint, CHAT, one.meter, max_tokens=None, deadline_s=monotonic() + 5
    ) as answer:
        assert answer.body == said
    assert (one.meter.usage, one.meter.quality) == (Usage(10, 1), Quality.EXACT)


async def test_t083_a_caller_who_does_not_read_makes_the_upstream_wait(
    relay: OpenAIRelay, upstream: ScriptedUpstream
) -> None:
    upstream.script(Scenario(chunks=10_000, completion_tokens=10_000, text="x" * 20_000_000))
    one = Run(relay, upstream, read_call(), timeouts=Timeouts())
    async with relay.opened(
        one.call, one.endpoint, CHAT, one.meter, max_tokens=None, deadline_s=monotonic() + 60
    ) as answer:
        assert answer.chunks is not None
        await asyncio.sleep(0.3)
        waiting = await anext(answer.chunks)
        assert len(waiting) <= 256 << 10
        assert upstream.invoice().lines[0].bytes_delivered < 10 << 20, "the rest is in the upstream's own send buffer"
    await until_closed(upstream)


async def test_the_logged_answer_is_capped(relay: OpenAIRelay, upstream: ScriptedUpstream) -> None:
    for stream in (True, False):
        one = await run(relay, upstream, Scenario(text="x" * (3 << 20), chunks=30), stream=stream)
        assert one.failed is None
        assert bytes(one.meter.answer_body or b"") == one.body[:MAX_LOGGED_ANSWER_BYTES]
