"""Ending a stream in the dialect's own words, and what its reader heard until then."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from app.dialects.openai_chat import OpenAIChat
from app.dialects.openai_chat_stream import ChatStream
from app.providers.relay import pieces_near


def event(delta: dict[str, object], *, index: int = 0, finish: str | None = None) -> bytes:
    choices = [{"index": index, "delta": delta, "finish_reason": finish}]
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 17, "model": "up", "x_trace": "t"}
    return b"data: " + json.dumps({**base, "choices": choices}).encode() + b"\n\n"


def events_in(data: bytes) -> list[object]:
    payloads = [part.removeprefix(b"data: ") for part in data.split(b"\n\n") if part]
    assert payloads[-1] == b"[DONE]"
    return [json.loads(payload) for payload in payloads[:-1]]


def test_a_cut_names_every_unfinished_choice_and_calls_itself_as_the_stream_did() -> None:
    reader = ChatStream(choices=3, shows_usage=False)
    reader.feed(event({"content": "a"}) + event({"content": "b"}, index=1) + event({}, index=1, finish="stop"))
    assert events_in(reader.cut(2, 5)) == [
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 17,
            "model": "up",
            "choices": [
                {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"},
                {"index": 2, "delta": {}, "logprobs": None, "finish_reason": "length"},
            ],
        }
    ]
    assert (reader.finish_reason, reader.delivered_tokens, reader.is_complete) == ("length", 2, False)


def test_a_cut_ends_with_the_usage_for_whom_asked_for_it() -> None:
    reader = ChatStream(shows_usage=True)
    reader.feed(event({"content": "a"}))
    *_, last = events_in(reader.cut(1, 5))
    assert isinstance(last, dict)
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}


def test_nothing_is_handed_on_after_a_cut() -> None:
    reader = ChatStream()
    reader.feed(event({"content": "a"}))
    reader.cut(1, 5)
    assert reader.feed(event({"content": "b"})) == b""


def test_what_was_cut_is_a_stream_that_a_reader_finds_complete() -> None:
    reader = ChatStream(choices=2)
    first = event({"content": "a"})
    whole = reader.feed(first) + reader.cut(1, 5)
    second = ChatStream(choices=2)
    assert second.feed(whole) == whole
    assert second.end() == b""
    assert second.is_complete


@given(st.lists(st.tuples(st.text(min_size=1, max_size=20), st.integers(0, 2)), min_size=1, max_size=20))
def test_the_words_of_every_choice_are_heard(said: list[tuple[str, int]]) -> None:
    reader = ChatStream(choices=3)
    for text, index in said:
        reader.feed(event({"content": text}, index=index))
    expected = {index: "".join(text for text, at in said if at == index) for _, index in said}
    assert sorted(reader.texts()) == sorted(expected.values())


def test_thoughts_and_arguments_are_heard_as_well() -> None:
    reader = ChatStream()
    reader.feed(event({"reasoning_content": "I think. "}))
    reader.feed(event({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": '{"a":'}}]}))
    reader.feed(event({"tool_calls": [{"index": 0, "function": {"arguments": ' "b"}'}}]}))
    assert reader.texts() == ['I think. {"a": "b"}']


def test_the_words_of_a_whole_answer_are_heard() -> None:
    choices = [
        {"index": i, "message": {"role": "assistant", "content": f"né {i}"}, "finish_reason": "stop"} for i in (0, 1)
    ]
    assert OpenAIChat().texts_of(json.dumps({"id": "c", "choices": choices}).encode()) == ["né 0", "né 1"]


@given(st.lists(st.sampled_from([event({"content": "word "}), b": ping\n\n", b"\r\n", b"\n", b"da"]), max_size=12))
def test_a_segment_near_the_grant_is_cut_between_events_and_loses_nothing(parts: list[bytes]) -> None:
    data = b"".join(parts)
    reader = ChatStream()
    assert pieces_near(None, reader, data) == [data]
    pieces = pieces_near(0, reader, data)
    assert b"".join(pieces) == data
    assert all(piece.count(b'"content"') <= 1 for piece in pieces)
