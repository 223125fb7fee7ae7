"""Anthropic's Messages: requests, native answers and streams, and their telling in chat completions."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.dialects.base import BadAnswer, StreamReader, UpstreamSaidError
from app.dialects.messages import Messages, MessagesAsChat, MessagesNative
from app.dialects.messages_native import NativeMessagesStream
from app.dialects.messages_stream import MessagesStream
from app.domain.catalog import ProviderKind
from app.domain.limits import LimitKind
from app.domain.pricing import Usage
from app.exceptions import BudgetExceeded, CallerError, InvalidRequest, MissingParameter, ParamNotAllowed, RateLimited

MESSAGES = Messages()
HELLO = [{"role": "user", "content": "Hello"}]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAoAAAAUCAYAAAC07w7bAAAAAElEQVQ="


def body(**fields: object) -> bytes:
    return json.dumps({"model": "m", "max_tokens": 64, "messages": HELLO, **fields}, separators=(",", ":")).encode()


def as_chat(**fields: object) -> dict[str, Any]:
    dialect, call = MESSAGES.towards(ProviderKind.OPENAI, MESSAGES.read(body(**fields)))
    told: dict[str, Any] = json.loads(dialect.upstream_body(call, upstream_model="up", max_tokens=None))
    return told


def events_in(data: bytes) -> list[dict[str, Any]]:
    events = []
    for event in data.split(b"\n\n"):
        if event:
            name, _, said = event.partition(b"\ndata: ")
            parsed = json.loads(said)
            assert name == b"event: " + parsed["type"].encode()
            events.append(parsed)
    return events


def chat_chunk(delta: dict[str, object] | None = None, finish: str | None = None, **more: object) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    chunk = {"id": "c1", "object": "chat.completion.chunk", "model": "up", "choices": choices, **more}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def read_all(reader: StreamReader, *segments: bytes) -> list[dict[str, Any]]:
    return events_in(b"".join(reader.feed(segment) for segment in segments) + reader.end())


# ── Requests ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_limits_and_budgets_need_is_read() -> None:
    call = MESSAGES.read(body(system="Be kind.", stream=True, tools=[{"name": "f", "input_schema": {}}]))
    assert (call.dialect, call.model, call.max_tokens, call.is_stream, call.choices) == ("messages", "m", 64, True, 1)
    assert call.prompt_bytes > len(json.dumps(HELLO, separators=(",", ":")))


def test_pictures_and_documents_are_counted_as_pieces_not_as_bytes() -> None:
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    paper = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "A" * 600_000}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [picture]}
    call = MESSAGES.read(body(messages=[{"role": "user", "content": [picture, paper, result]}]))
    assert [(each.width, each.height) for each in call.media.pictures] == [(10, 20), (10, 20)]
    assert call.media.document_bytes == 600_002
    assert call.prompt_bytes < 1000
    assert call.images == 2 + 1 + 600_002 // (128 << 10)


@pytest.mark.parametrize(
    ("raw", "kind", "param"),
    [
        (b'{"model":"m","messages":[{"role":"user","content":"x"}]}', MissingParameter, "max_tokens"),
        (b'{"model":"m","max_tokens":5}', MissingParameter, "messages"),
        (body(max_tokens=0), InvalidRequest, "max_tokens"),
        (body(max_tokens=-1), InvalidRequest, "max_tokens"),
        (body(max_tokens=10**9), InvalidRequest, "max_tokens"),
        (body(messages=[]), InvalidRequest, "messages"),
        (body(messages=[{"role": "user"}]), MissingParameter, "messages[0].content"),
        (body(api_base="http://x"), ParamNotAllowed, "api_base"),
        (body(mock_response="x"), ParamNotAllowed, "mock_response"),
        (body(input_cost_per_token=0), ParamNotAllowed, "input_cost_per_token"),
    ],
)
def test_t036_t045_absurd_and_steering_fields_are_refused(raw: bytes, kind: type[CallerError], param: str) -> None:
    with pytest.raises(kind) as caught:
        MESSAGES.read(raw)
    assert caught.value.param == param


def test_a_native_endpoint_gets_the_callers_bytes_with_only_the_model_renamed_and_the_cap_lowered() -> None:
    sent = body(thinking={"type": "enabled", "budget_tokens": 1024}, messages=[{"role": "user", "content": "é"}])
    dialect, call = MESSAGES.towards(ProviderKind.ANTHROPIC, MESSAGES.read(sent))
    assert isinstance(dialect, MessagesNative)
    assert dialect.upstream_body(call, upstream_model="m", max_tokens=None) == sent
    changed = json.loads(dialect.upstream_body(call, upstream_model="claude", max_tokens=5))
    assert changed == json.loads(sent) | {"model": "claude", "max_tokens": 5}


def test_a_conversation_with_tools_is_told_in_chat_completions() -> None:
    told = as_chat(
        system=[{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "…", "signature": "s"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rom"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sunny"}]},
                    {"type": "text", "text": "And now?"},
                ],
            },
        ],
        tools=[{"name": "weather", "description": "Look.", "input_schema": {"type": "object"}}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        stop_sequences=["END"],
        temperature=0.5,
        top_k=5,
        metadata={"user_id": "u"},
    )
    assert told == {
        "model": "up",
        "max_tokens": 64,
        "temperature": 0.5,
        "stop": ["END"],
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": "I look.",
                "tool_calls": [
                    {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rom"}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "t1", "content": "sunny"},
            {"role": "user", "content": "And now?"},
        ],
        "tools": [
            {
                "type": "function",
                "function": {"name": "weather", "description": "Look.", "parameters": {"type": "object"}},
            }
        ],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }


def test_pictures_and_documents_are_told_as_data() -> None:
    content = [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
        {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "words"}},
    ]
    (message,) = as_chat(messages=[{"role": "user", "content": content}])["messages"]
    assert message["content"] == [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
        {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
        {"type": "text", "text": "words"},
    ]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "container_upload"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"no": "type"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [5]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"system": 5}, "system"),
    ],
)
def test_what_chat_has_no_words_for_is_refused_by_name(fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        as_chat(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("upstream_model", "name"),
    [("gpt-4o", "max_tokens"), ("o3-mini", "max_completion_tokens"), ("openai/gpt-5", "max_completion_tokens")],
)
def test_the_cap_is_told_by_the_name_that_the_model_knows(upstream_model: str, name: str) -> None:
    dialect, call = MESSAGES.towards(ProviderKind.OPENAI, MESSAGES.read(body()))
    for cap, expected in ((None, 64), (7, 7)):
        told = json.loads(dialect.upstream_body(call, upstream_model=upstream_model, max_tokens=cap))
        assert {key: told[key] for key in told if key.startswith("max_")} == {name: expected}


# ── Answers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_chat_answer_is_told_as_a_message() -> None:
    call = {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rom"}'}}
    message = {"role": "assistant", "content": "I look.", "reasoning_content": "hm", "tool_calls": [call]}
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 5,
        "total_tokens": 105,
        "prompt_tokens_details": {"cached_tokens": 90},
    }
    answer = {
        "id": "c1",
        "model": "up",
        "choices": [{"message": message, "finish_reason": "tool_calls"}],
        "usage": usage,
    }
    facts = MessagesAsChat().read_answer(json.dumps(answer).encode())
    assert facts.usage == Usage(100, 5, cached_tokens=90)
    assert facts.mended is not None
    told = json.loads(facts.mended)
    assert told["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rom"}},
    ]
    assert (told["type"], told["role"], told["stop_reason"]) == ("message", "assistant", "tool_use")
    assert told["usage"] == {
        "input_tokens": 10,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 90,
        "output_tokens": 5,
    }
    assert MESSAGES.texts_of(facts.mended) == ['hmI look.{"city":"Rom"}']


@pytest.mark.parametrize("raw", [b"", b"<html>", b"{}", b"[]", b'{"choices":[]}'])
def test_t069_what_is_no_chat_answer_is_none_here(raw: bytes) -> None:
    with pytest.raises(BadAnswer):
        MessagesAsChat().read_answer(raw)


@pytest.mark.parametrize(
    "raw", [b"", b"<html>", b"{}", b"[]", b'{"type":"message"}', b'{"type":"message","content":5}']
)
def test_t069_what_is_no_message_is_refused(raw: bytes) -> None:
    with pytest.raises(BadAnswer):
        MESSAGES.read_answer(raw)


def test_t072_an_error_inside_a_good_status_is_told_apart() -> None:
    said = b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}'
    with pytest.raises(UpstreamSaidError) as caught:
        MESSAGES.read_answer(said)
    assert caught.value.problem.status == 503


def test_t121_cached_and_written_tokens_are_parts_of_the_prompt() -> None:
    usage = {
        "input_tokens": 10,
        "output_tokens": 7,
        "cache_read_input_tokens": 500,
        "cache_creation_input_tokens": 300,
        "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 200},
        "service_tier": "standard",
    }
    raw = {"type": "message", "content": [{"type": "text", "text": "hi"}], "stop_reason": "end_turn", "usage": usage}
    assert MESSAGES.read_answer(json.dumps(raw).encode()).usage == Usage(
        prompt_tokens=810,
        completion_tokens=7,
        cached_tokens=500,
        cache_write_5m_tokens=100,
        cache_write_1h_tokens=200,
        service_tier="standard",
    )


@pytest.mark.parametrize(
    "usage", [{"input_tokens": -1, "output_tokens": 1}, {"input_tokens": 1.5}, {"input_tokens": "9"}, {}, 5]
)
def test_t086_figures_that_cannot_be_are_not_believed(usage: object) -> None:
    raw = {"type": "message", "content": [], "stop_reason": "end_turn", "usage": usage}
    assert MESSAGES.read_answer(json.dumps(raw).encode()).usage is None


# ── Streams told in chat ──────────────────────────────────────────────────────────────────────────────────────────────

USAGE = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
CHAT_STREAM = (
    chat_chunk({"role": "assistant", "content": ""})
    + chat_chunk({"reasoning_content": "hm"})
    + chat_chunk({"content": "Hel"})
    + chat_chunk({"content": "lo €"})
    + chat_chunk({"tool_calls": [{"index": 0, "id": "t1", "function": {"name": "f", "arguments": ""}}]})
    + chat_chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"a":'}}]})
    + chat_chunk({"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]})
    + chat_chunk({"tool_calls": [{"index": 1, "id": "t2", "function": {"name": "g", "arguments": "{}"}}]})
    + chat_chunk({}, "tool_calls")
    + chat_chunk(usage=USAGE)
    + b"data: [DONE]\n\n"
)


def test_a_chat_stream_is_told_as_blocks() -> None:
    reader = MessagesStream()
    events = read_all(reader, CHAT_STREAM)
    assert [event["type"] for event in events] == [
        "message_start",
        *("content_block_start", "content_block_delta", "content_block_stop"),
        *("content_block_start", "content_block_delta", "content_block_delta", "content_block_stop"),
        *("content_block_start", "content_block_delta", "content_block_delta", "content_block_stop"),
        *("content_block_start", "content_block_delta", "content_block_stop"),
        *("message_delta", "message_stop"),
    ]
    starts = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    assert starts == ["thinking", "text", "tool_use", "tool_use"]
    said = [event["delta"].get("text", "") for event in events if event["type"] == "content_block_delta"]
    assert "".join(said) == "Hello €"
    assert [event["index"] for event in events if "index" in event] == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
    assert events[-2]["usage"]["input_tokens"] == 10
    assert events[-2]["usage"]["output_tokens"] == 3
    assert reader.is_complete
    assert reader.usage == Usage(10, 3)


@given(cuts=st.lists(st.integers(0, len(CHAT_STREAM)), max_size=12))
def test_t082_the_events_do_not_depend_on_how_the_bytes_were_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(CHAT_STREAM)]
    segments = [CHAT_STREAM[a:b] for a, b in itertools.pairwise(edges)]
    assert read_all(MessagesStream(), *segments) == read_all(MessagesStream(), CHAT_STREAM)


def test_t070_a_chat_stream_that_just_stops_is_not_ended() -> None:
    reader = MessagesStream()
    passed = reader.feed(chat_chunk({"content": "Hel"}))
    assert [event["type"] for event in events_in(passed)][-1] == "content_block_delta"
    with pytest.raises(BadAnswer, match="truncated"):
        reader.end()


def test_a_stream_that_is_cut_ends_as_at_max_tokens() -> None:
    reader = MessagesStream()
    begun = events_in(reader.feed(chat_chunk({"content": "Hel"})))
    ending = events_in(reader.cut(delivered_tokens=1, prompt_tokens=9))
    assert [event["type"] for event in begun + ending][-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert ending[-2]["delta"]["stop_reason"] == "max_tokens"
    assert (ending[-2]["usage"]["input_tokens"], ending[-2]["usage"]["output_tokens"]) == (9, 1)
    assert reader.feed(chat_chunk({"content": "more"})) == b""
    assert MESSAGES.ends_stream(b"".join([b"x", b'event: message_stop\ndata: {"type":"message_stop"}\n\n']))


# ── Native streams ────────────────────────────────────────────────────────────────────────────────────────────────────


def sse(name: str, **data: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n".encode()


START = sse("message_start", message={"usage": {"input_tokens": 12, "output_tokens": 1, "cache_read_input_tokens": 5}})
BLOCK = sse("content_block_start", index=0, content_block={"type": "text", "text": ""})
DELTA = sse("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hello €"})
STOP = sse("content_block_stop", index=0)
ENDED = sse("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 4})
LAST = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
NATIVE = START + sse("ping") + BLOCK + DELTA + STOP + ENDED + LAST


def test_a_native_stream_passes_as_it_is() -> None:
    reader = NativeMessagesStream()
    assert reader.feed(NATIVE) + reader.end() == NATIVE
    assert reader.is_complete
    assert reader.usage == Usage(17, 4, cached_tokens=5)
    assert reader.finish_reason == "stop"
    assert reader.texts() == ["Hello €"]


@given(cuts=st.lists(st.integers(0, len(NATIVE)), max_size=12))
def test_t082_a_native_stream_may_be_cut_anywhere(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(NATIVE)]
    reader = NativeMessagesStream()
    passed = b"".join(reader.feed(NATIVE[a:b]) for a, b in itertools.pairwise(edges))
    assert passed + reader.end() == NATIVE


def test_t076_a_ping_is_no_progress() -> None:
    reader = NativeMessagesStream()
    reader.feed(START + sse("ping"))
    assert not reader.has_begun


def test_t073_an_error_event_ends_a_native_stream() -> None:
    reader = NativeMessagesStream()
    error = sse("error", error={"type": "overloaded_error", "message": "Overloaded"})
    assert reader.feed(START + BLOCK + DELTA + error) == START + BLOCK + DELTA
    with pytest.raises(UpstreamSaidError):
        reader.feed(b"")


@pytest.mark.parametrize(
    ("data", "reason"), [(START + BLOCK + DELTA, "truncated"), (b"", "empty_stream"), (START, "empty_stream")]
)
def test_t070_t071_a_native_stream_that_just_stops_is_told_apart(data: bytes, reason: str) -> None:
    reader = NativeMessagesStream()
    reader.feed(data)
    with pytest.raises(BadAnswer, match=reason):
        reader.end()


def test_t117_a_native_stream_that_broke_off_knows_its_prompt() -> None:
    reader = NativeMessagesStream()
    reader.feed(START + BLOCK + DELTA)
    assert reader.usage is None
    assert reader.usage_so_far() == Usage(17, reader.delivered_tokens, cached_tokens=5)
    assert reader.delivered_tokens > 0


def test_a_native_stream_is_cut_with_a_proper_end() -> None:
    reader = NativeMessagesStream()
    reader.feed(START + BLOCK + DELTA)
    ending = events_in(reader.cut(delivered_tokens=2, prompt_tokens=17))
    assert [event["type"] for event in ending] == ["content_block_stop", "message_delta", "message_stop"]
    assert ending[1]["usage"]["output_tokens"] == 2
    assert ending[1]["usage"]["cache_read_input_tokens"] == 5


@pytest.mark.parametrize("bad", [b"event: x\ndata: {not json}\n\n", b"data: \xff\xfe\n\n"])
def test_t081_what_is_no_json_ends_a_native_stream(bad: bytes) -> None:
    reader = NativeMessagesStream()
    reader.feed(START + BLOCK + DELTA)
    with pytest.raises(BadAnswer):
        reader.feed(bad)


# ── Errors ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_errors_have_anthropics_shape() -> None:
    limited = RateLimited(
        scope="key", kind=LimitKind.REQUESTS, limit=1, window_s=60, retry_after_s=1, remaining=0, reset_s=1
    )
    spent = BudgetExceeded(scope="key", period="daily", resets_at=None)
    for error, kind in (
        (limited, "rate_limit_error"),
        (spent, "billing_error"),
        (InvalidRequest("x"), "invalid_request_error"),
    ):
        told = json.loads(MESSAGES.error_body(error, "id-1"))
        assert (told["type"], told["request_id"]) == ("error", "id-1")
        assert (told["error"]["type"], told["error"]["code"]) == (kind, error.code)
        assert (
            MESSAGES.error_event(error, "id-1")
            == b"event: error\ndata: " + MESSAGES.error_body(error, "id-1") + b"\n\n"
        )
