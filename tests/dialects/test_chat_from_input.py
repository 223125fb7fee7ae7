"""Chat completions that are asked for with `input`."""

from __future__ import annotations

import json

import pytest

from app.dialects.chat_from_input import ChatFromInput
from app.exceptions import CallerError, InvalidRequest, MissingParameter, ParamNotAllowed

CHAT = ChatFromInput()


def asked(**fields: object) -> bytes:
    return json.dumps({"model": "m", **fields}).encode()


def test_a_request_in_the_words_of_responses_becomes_one_of_chat_completions() -> None:
    tool = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": False}
    items = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "42"},
    ]
    usage = {"include_usage": True}
    call = CHAT.read(asked(input=items, tools=[tool], stream=True, stream_options=usage, max_output_tokens=7))

    assert (call.dialect, call.is_stream, call.wants_usage, call.max_tokens) == ("chat", True, True, 7)
    sent = json.loads(CHAT.upstream_body(call, upstream_model="m", max_tokens=None))
    assert [message["role"] for message in sent["messages"]] == ["system", "user", "assistant", "tool"]
    assert sent["tools"][0]["function"]["name"] == "f"
    assert "input" not in sent


def test_a_plain_input_is_what_the_user_says() -> None:
    sent = json.loads(CHAT.read(asked(input="hi")).body)
    assert sent == {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def test_messages_are_read_as_they_always_were() -> None:
    raw = asked(messages=[{"role": "user", "content": "hi"}], input="ignored")
    assert CHAT.read(raw).body is raw


@pytest.mark.parametrize(
    ("raw", "error", "param"),
    [
        (asked(), MissingParameter, "messages"),
        (b'{"input":"hi"}', MissingParameter, "model"),
        (asked(input="hi", api_base="http://x"), ParamNotAllowed, "api_base"),
        (asked(input=[{"type": "item_reference", "id": "x"}]), InvalidRequest, "input[0]"),
        (asked(input="hi", previous_response_id="x"), InvalidRequest, "previous_response_id"),
    ],
)
def test_t036_what_cannot_be_read_is_refused_by_name(raw: bytes, error: type[CallerError], param: str) -> None:
    with pytest.raises(error) as caught:
        CHAT.read(raw)
    assert getattr(caught.value, "param", None) == param
