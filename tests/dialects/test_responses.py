"""OpenAI's Responses: requests told in chat completions, and answers and streams told back."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.dialects.base import BadAnswer, StreamReader
from app.dialects.responses import Responses
from app.domain.catalog import ProviderKind
from app.domain.pricing import Usage
from app.exceptions import CallerError, InvalidRequest, MissingParameter, ParamNotAllowed
from tests.dialects.test_messages import CHAT_STREAM, PIXEL, chat_chunk, events_in

RESPONSES = Responses()


def body(**fields: object) -> bytes:
    return json.dumps({"model": "m", "input": "Hello", **fields}, separators=(",", ":")).encode()


def as_chat(**fields: object) -> dict[str, Any]:
    dialect, call = RESPONSES.towards(ProviderKind.OPENAI, RESPONSES.read(body(**fields)))
    told: dict[str, Any] = json.loads(dialect.upstream_body(call, upstream_model="up", max_tokens=None))
    return told


def reader_for(**fields: object) -> StreamReader:
    dialect, call = RESPONSES.towards(ProviderKind.OPENAI, RESPONSES.read(body(**fields)))
    return dialect.stream_reader(call)


def answer_of(message: dict[str, object], finish: str = "stop", **fields: object) -> dict[str, Any]:
    dialect, _ = RESPONSES.towards(ProviderKind.OPENAI, RESPONSES.read(body(**fields)))
    usage = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
    answer = {"id": "c1", "model": "up", "created": 5, "choices": [{"message": message, "finish_reason": finish}]}
    facts = dialect.read_answer(json.dumps({**answer, "usage": usage}).encode())
    assert facts.usage == Usage(10, 3)
    assert facts.mended is not None
    told: dict[str, Any] = json.loads(facts.mended)
    return told


# ── Requests ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_limits_and_budgets_need_is_read() -> None:
    call = RESPONSES.read(body(instructions="Be kind.", stream=True, max_output_tokens=64))
    assert (call.dialect, call.model, call.max_tokens, call.is_stream) == ("responses", "m", 64, True)
    assert call.prompt_bytes == len('"Hello"') + len('"Be kind."')


def test_pictures_and_files_are_counted_as_pieces_not_as_bytes() -> None:
    picture = {"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}", "detail": "low"}
    file = {"type": "input_file", "file_data": "data:application/pdf;base64," + "A" * 300_000}
    call = RESPONSES.read(body(input=[{"role": "user", "content": [picture, file]}]))
    assert [(each.detail, each.width, each.height) for each in call.media.pictures] == [("low", 10, 20)]
    assert call.media.document_bytes > 300_000
    assert call.prompt_bytes < 1000
    assert call.images == 1 + 1 + 300_030 // (128 << 10)


@pytest.mark.parametrize(
    ("raw", "kind", "param"),
    [
        (b'{"model":"m"}', MissingParameter, "input"),
        (b'{"input":"x"}', MissingParameter, "model"),
        (body(input=5), InvalidRequest, "input"),
        (body(input=[]), InvalidRequest, "input"),
        (body(max_output_tokens=0), InvalidRequest, "max_output_tokens"),
        (body(previous_response_id="resp_1"), InvalidRequest, "previous_response_id"),
        (body(conversation="c"), InvalidRequest, "conversation"),
        (body(prompt={"id": "p"}), InvalidRequest, "prompt"),
        (body(background=True), InvalidRequest, "background"),
        (body(api_key="x"), ParamNotAllowed, "api_key"),
        (body(fallbacks=[]), ParamNotAllowed, "fallbacks"),
    ],
)
def test_t036_t045_what_cannot_be_obeyed_is_refused_by_name(raw: bytes, kind: type[CallerError], param: str) -> None:
    with pytest.raises(kind) as caught:
        RESPONSES.read(raw)
    assert caught.value.param == param


def test_null_is_the_same_as_nothing() -> None:
    told = as_chat(previous_response_id=None, conversation=None, background=None, tools=None, reasoning=None, text=None)
    assert told == {"model": "up", "messages": [{"role": "user", "content": "Hello"}]}


def test_an_agents_conversation_is_told_in_chat_completions() -> None:
    told = as_chat(
        instructions="Be kind.",
        input=[
            {"role": "developer", "content": "Use tools."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
            {"type": "reasoning", "summary": [], "encrypted_content": "x"},
            {"role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
            {"type": "function_call", "call_id": "t1", "name": "weather", "arguments": '{"city":"Rom"}'},
            {"type": "custom_tool_call", "call_id": "t2", "name": "patch", "input": "*** Begin"},
            {"type": "function_call_output", "call_id": "t1", "output": "sunny"},
            {"type": "custom_tool_call_output", "call_id": "t2", "output": [{"type": "input_text", "text": "done"}]},
        ],
        tools=[
            {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False},
            {"type": "custom", "name": "patch", "format": {"type": "grammar"}},
            {"type": "web_search"},
        ],
        tool_choice={"type": "function", "name": "weather"},
        parallel_tool_calls=False,
        reasoning={"effort": "low", "summary": "auto"},
        text={"format": {"type": "json_schema", "name": "a", "schema": {}, "strict": True}, "verbosity": "low"},
        store=False,
        include=["reasoning.encrypted_content"],
        max_output_tokens=9,
    )
    custom = {
        "type": "object",
        "properties": {"input": {"type": "string", "description": "The whole input, as plain text."}},
        "required": ["input"],
    }
    calls = [
        {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rom"}'}},
        {"id": "t2", "type": "function", "function": {"name": "patch", "arguments": '{"input":"*** Begin"}'}},
    ]
    assert told == {
        "model": "up",
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "system", "content": "Use tools."},
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": "I look.", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "t1", "content": "sunny"},
            {"role": "tool", "tool_call_id": "t2", "content": "done"},
        ],
        "tools": [
            {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}, "strict": False}},
            {"type": "function", "function": {"name": "patch", "parameters": custom}},
        ],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
        "verbosity": "low",
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}, "strict": True}},
        "max_tokens": 9,
    }


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"type": "item_reference", "id": "x"}, "input[0]"),
        ({"type": "computer_call"}, "input[0]"),
        ({"no": "type"}, "input[0]"),
        (5, "input[0]"),
        ({"role": "user", "content": 5}, "input[0].content"),
        ({"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}, "input[0].content[0]"),
    ],
)
def test_what_chat_has_no_words_for_is_refused_by_name(item: object, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        as_chat(input=[item])
    assert caught.value.param == param


# ── Answers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_chat_answer_is_told_as_a_response_that_repeats_what_was_asked() -> None:
    calls = [
        {"id": "t1", "function": {"name": "weather", "arguments": '{"city":"Rom"}'}},
        {"id": "t2", "function": {"name": "patch", "arguments": '{"input":"*** Begin"}'}},
    ]
    told = answer_of(
        {"role": "assistant", "content": "I look.", "reasoning": "hm", "tool_calls": calls},
        "tool_calls",
        instructions="Be kind.",
        tools=[{"type": "custom", "name": "patch"}],
        temperature=0.5,
    )
    kinds = [item["type"] for item in told["output"]]
    assert kinds == ["reasoning", "message", "function_call", "custom_tool_call"]
    assert told["output"][1]["content"][0]["text"] == "I look."
    assert (told["output"][2]["call_id"], told["output"][2]["arguments"]) == ("t1", '{"city":"Rom"}')
    assert (told["output"][3]["call_id"], told["output"][3]["input"]) == ("t2", "*** Begin")
    assert (told["object"], told["status"], told["created_at"]) == ("response", "completed", 5)
    assert (told["instructions"], told["temperature"], told["top_p"]) == ("Be kind.", 0.5, 1.0)
    assert told["usage"]["total_tokens"] == 13
    assert RESPONSES.texts_of(json.dumps(told).encode()) == ['hmI look.{"city":"Rom"}*** Begin']


@pytest.mark.parametrize(("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_an_answer_that_was_cut_short_says_why(finish: str, reason: str) -> None:
    told = answer_of({"role": "assistant", "content": "Hel"}, finish)
    assert (told["status"], told["incomplete_details"]) == ("incomplete", {"reason": reason})


# ── Streams ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def told_stream(*segments: bytes, **fields: object) -> list[dict[str, Any]]:
    reader = reader_for(**fields)
    data = b"".join(reader.feed(segment) for segment in segments) + reader.end()
    assert RESPONSES.ends_stream(data)
    events = events_in(data)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def without_ids(events: list[dict[str, Any]]) -> str:
    """Ids of items are drawn at random; all else must be the same."""
    ids = {event["item"]["id"] for event in events if "item" in event}
    text = json.dumps(events)
    for number, each in enumerate(sorted(ids, key=text.index)):
        text = text.replace(each, f"id-{number}")
    return text


def test_a_chat_stream_is_told_as_items() -> None:
    events = told_stream(CHAT_STREAM)
    added = [event["item"]["type"] for event in events if event["type"] == "response.output_item.added"]
    assert added == ["reasoning", "message", "function_call", "function_call"]
    assert [event["type"] for event in events][:2] == ["response.created", "response.in_progress"]
    assert "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta") == "Hello €"
    last = events[-1]
    assert last["type"] == "response.completed"
    assert [item["type"] for item in last["response"]["output"]] == added
    assert last["response"]["output"][2]["arguments"] == '{"a":1}'
    assert (last["response"]["status"], last["response"]["usage"]["total_tokens"]) == ("completed", 13)
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == last["response"]["output"]


@given(cuts=st.lists(st.integers(0, len(CHAT_STREAM)), max_size=12))
def test_t082_the_events_do_not_depend_on_how_the_bytes_were_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(CHAT_STREAM)]
    segments = [CHAT_STREAM[a:b] for a, b in itertools.pairwise(edges)]
    assert without_ids(told_stream(*segments)) == without_ids(told_stream(CHAT_STREAM))


def test_a_custom_tools_text_is_told_once_it_is_whole() -> None:
    call = {"index": 0, "id": "t2", "function": {"name": "patch", "arguments": '{"input":"***'}}
    more = {"index": 0, "function": {"arguments": ' Begin"}'}}
    events = told_stream(
        chat_chunk({"tool_calls": [call]}) + chat_chunk({"tool_calls": [more]}) + chat_chunk({}, "tool_calls"),
        tools=[{"type": "custom", "name": "patch"}],
    )
    (done,) = [event for event in events if event["type"] == "response.custom_tool_call_input.done"]
    assert done["input"] == "*** Begin"
    assert events[-1]["response"]["output"][0]["input"] == "*** Begin"


def test_t070_a_stream_that_just_stops_is_not_ended() -> None:
    reader = reader_for()
    reader.feed(chat_chunk({"content": "Hel"}))
    with pytest.raises(BadAnswer, match="truncated"):
        reader.end()


def test_a_stream_that_is_cut_ends_incomplete() -> None:
    reader = reader_for()
    reader.feed(chat_chunk({"content": "Hel"}))
    last = events_in(reader.cut(delivered_tokens=1, prompt_tokens=9))[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["usage"]["input_tokens"] == 9


def test_an_error_of_a_stream_is_an_event_that_both_kinds_of_client_read() -> None:
    event = RESPONSES.error_event(InvalidRequest("no"), "id-1")
    told = json.loads(event.partition(b"data: ")[2])
    assert event.startswith(b"event: error\n")
    assert (told["type"], told["error"]["code"], told["error"]["request_id"]) == ("error", "invalid_request", "id-1")
