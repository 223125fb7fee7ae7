"""Complete answers and errors: what is an answer, what its usage is worth, and how an error is found and shaped."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.dialects.base import BadAnswer, UpstreamProblem, UpstreamSaidError
from app.dialects.openai_chat import OpenAIChat
from app.dialects.openai_chat_stream import ChatStream
from app.domain.pricing import Usage
from app.exceptions import ModelNotFound, RateLimited

CHAT = OpenAIChat()


def answer(message: str = '{"role":"assistant","content":"hello"}', finish: str = '"stop"', more: str = "") -> bytes:
    choice = f'{{"index":0,"message":{message},"finish_reason":{finish}}}'
    return f'{{"id":"x","object":"chat.completion","choices":[{choice}]{more}}}'.encode()


BAD = {
    "html": (b"<html>Bad gateway</html>", "not_json"),
    "empty": (b"", "empty_body"),
    "blank": (b" \n", "empty_body"),
    "text": (b"ok", "not_json"),
    "truncated": (answer()[:-5], "not_json"),
    "array": (b"[]", "not_a_completion"),
    "string": (b'"hello"', "not_a_completion"),
    "no choices": (b'{"id":"x"}', "no_choices"),
    "choices null": (b'{"choices":null}', "no_choices"),
    "choices empty": (b'{"choices":[]}', "no_choices"),
    "choices of a wrong kind": (b'{"choices":{"a":1}}', "not_a_completion"),
    "no message": (b'{"choices":[{"index":0,"finish_reason":"stop"}]}', "no_message"),
    "null content": (answer('{"role":"assistant","content":null}'), "no_content"),
    "no content": (answer('{"role":"assistant"}'), "no_content"),
    "no content, empty tool calls": (answer('{"content":null,"tool_calls":[]}'), "no_content"),
    "invalid UTF-8": (answer().replace(b"hello", b"h\xff"), "not_utf8"),
    "nested without end": (b'{"x":' + b"[" * 100_000, "not_json"),
}


def test_a_byte_order_mark_before_the_answer_is_dropped() -> None:
    facts = CHAT.read_answer(b"\xef\xbb\xbf" + answer())
    assert facts.finish_reason == "stop"
    assert facts.mended == answer()
    with pytest.raises(UpstreamSaidError) as caught:
        CHAT.read_answer(b'\xef\xbb\xbf{"error":{"message":"slow down","code":429}}')
    assert (caught.value.problem.message, caught.value.problem.status) == ("slow down", 429)
    assert CHAT.read_problem(b'\xef\xbb\xbf{"error":{"message":"too long"}}').message == "too long"


@pytest.mark.parametrize("message", ['{"role":"assistant","content":""}', '{"role":"assistant","content":"half an"}'])
def test_an_answer_that_ended_in_an_error_is_none(message: str) -> None:
    """As OpenRouter says that the provider behind it broke off; a part of an answer is no answer."""
    with pytest.raises(UpstreamSaidError):
        CHAT.read_answer(answer(message, finish='"error"'))
    said = answer(message, finish='"error","error":{"code":429,"message":"slow down"}')
    with pytest.raises(UpstreamSaidError) as caught:
        CHAT.read_answer(said)
    assert (caught.value.problem.status, caught.value.problem.message) == (429, "slow down")


def test_a_prompt_that_a_router_flagged_is_known_by_what_it_says_of_it() -> None:
    flagged = b'{"error":{"code":403,"message":"flagged","metadata":{"reasons":["violence"],"flagged_input":"hi"}}}'
    assert CHAT.read_problem(flagged).code == "content_filter"
    assert CHAT.read_problem(flagged.replace(b"flagged_input", b"provider_name")).code == "403"


@pytest.mark.parametrize(("body", "reason"), BAD.values(), ids=BAD.keys())
def test_t069_a_200_that_is_no_answer_is_found_out(body: bytes, reason: str) -> None:
    with pytest.raises(BadAnswer) as caught:
        CHAT.read_answer(body)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "body",
    [
        b'{"error":{"message":"over","code":503}}',
        b'{"error":"over"}',
        b'{"object":"error","message":"over","code":503}',
        b'[{"error":{"message":"over","code":503}}]',
        answer(more=',"error":{"message":"over"}'),
    ],
)
def test_t069_an_error_object_with_status_200_is_an_error(body: bytes) -> None:
    if body.startswith(b"["):
        with pytest.raises(BadAnswer):
            CHAT.read_answer(body)
        assert CHAT.read_problem(body).message == "over"
        return
    with pytest.raises(UpstreamSaidError) as caught:
        CHAT.read_answer(body)
    assert caught.value.problem.message == "over"


@pytest.mark.parametrize(
    "message",
    [
        '{"content":""}',
        '{"content":null,"tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}]}',
        '{"content":null,"function_call":{"name":"f","arguments":"{}"}}',
        '{"content":null,"refusal":"no"}',
        '{"content":null,"audio":{"id":"a","data":"AA"}}',
        '{"content":null,"reasoning_content":"hm"}',
        '{"content":[{"type":"text","text":"x"}]}',
    ],
)
def test_an_answer_may_speak_in_other_ways_than_text(message: str) -> None:
    facts = CHAT.read_answer(answer(message))
    assert facts.finish_reason == "stop"
    assert facts.output_bytes >= 0


def test_an_answer_without_content_is_one_when_its_finish_reason_says_why() -> None:
    assert CHAT.read_answer(answer('{"content":null}', '"length"')).finish_reason == "length"


def usage_of(usage: str) -> Usage | None:
    return CHAT.read_answer(answer(more=f',"usage":{usage}')).usage


def test_usage_is_read_with_its_details() -> None:
    details = (
        '"prompt_tokens_details":{"cached_tokens":40,"audio_tokens":2},'
        '"completion_tokens_details":{"reasoning_tokens":5,"audio_tokens":1}'
    )
    assert usage_of('{"prompt_tokens":100,"completion_tokens":9,"total_tokens":109,' + details + "}") == Usage(
        prompt_tokens=100,
        completion_tokens=9,
        cached_tokens=40,
        reasoning_tokens=5,
        audio_input_tokens=2,
        audio_output_tokens=1,
    )


@pytest.mark.parametrize(
    "usage",
    [
        "null",
        "{}",
        "[]",
        '"10"',
        '{"prompt_tokens":10}',
        '{"prompt_tokens":-10,"completion_tokens":3}',
        '{"prompt_tokens":10,"completion_tokens":-3}',
        '{"prompt_tokens":"10","completion_tokens":"3"}',
        '{"prompt_tokens":10.5,"completion_tokens":3}',
        '{"prompt_tokens":null,"completion_tokens":null}',
        '{"prompt_tokens":NaN,"completion_tokens":NaN}',
        '{"prompt_tokens":10,"completion_tokens":Infinity}',
        '{"prompt_tokens":10,"completion_tokens":3,"completion_tokens_details":{"reasoning_tokens":-1}}',
        '{"prompt_tokens":99999999999999999999,"completion_tokens":3}',
    ],
)
def test_t086_usage_that_cannot_be_believed_is_no_usage(usage: str) -> None:
    assert usage_of(usage) is None


def test_t086_a_total_that_is_not_the_sum_does_not_spoil_its_parts() -> None:
    assert usage_of('{"prompt_tokens":10,"completion_tokens":3,"total_tokens":20}') == Usage(10, 3)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b'{"error":{"message":"m","type":"t","param":"p","code":"c"}}', UpstreamProblem("m", "c", "t", "p")),
        (b'{"error":{"message":"m","code":429,"type":null}}', UpstreamProblem("m", "429", None, None, 429)),
        (b'{"error":"m"}', UpstreamProblem("m", None, None, None)),
        (
            b'{"message":"m","type":"invalid_request_error"}',
            UpstreamProblem("m", None, "invalid_request_error", None, 400),
        ),
        (b'{"detail":"m"}', UpstreamProblem("m", None, None, None)),
        (
            b'[{"error":{"code":400,"message":"m","status":"INVALID_ARGUMENT"}}]',
            UpstreamProblem("m", "400", None, None, 400),
        ),
        (b'{"error":{"error":{"message":"m"}}}', UpstreamProblem(None, None, None, None)),
        (b"<html>", UpstreamProblem(None, None, None, None)),
        (b"", UpstreamProblem(None, None, None, None)),
        (b"\xff\xfe", UpstreamProblem(None, None, None, None)),
        (b"[" * 100_000, UpstreamProblem(None, None, None, None)),
    ],
)
def test_an_error_object_is_found_wherever_the_upstream_put_it(body: bytes, problem: UpstreamProblem) -> None:
    assert CHAT.read_problem(body) == problem


@given(st.binary(max_size=200))
def test_reading_a_problem_never_raises(body: bytes) -> None:
    assert CHAT.read_problem(body).status is None


def test_a_long_message_of_an_upstream_is_cut() -> None:
    problem = CHAT.read_problem(json.dumps({"error": {"message": "x" * 100_000}}).encode())
    assert problem.message is not None
    assert len(problem.message) == 2000


def test_an_error_has_the_shape_of_the_contract_as_body_and_as_event() -> None:
    error = RateLimited(scope="key", kind="requests", limit=60, window_s=60, retry_after_s=1)
    expected = {
        "error": {
            "message": "This key may use 60 requests per 60 s.",
            "type": "requests",
            "param": None,
            "code": "rate_limit_exceeded",
            "request_id": "r-1",
        }
    }
    assert json.loads(CHAT.error_body(error, "r-1")) == expected
    event = CHAT.error_event(error, "r-1")
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == 2
    assert json.loads(event[6:]) == expected


def test_an_error_never_breaks_its_event() -> None:
    event = CHAT.error_event(ModelNotFound("a\n\ndata: [DONE]\r\n"), "r-1")
    assert event.count(b"\n") == 2
    assert b"\r" not in event


def test_t071_a_complete_answer_becomes_a_stream_that_its_own_reader_accepts() -> None:
    calls = '[{"id":"c1","type":"function","function":{"name":"f","arguments":"{}"}}]'
    usage = ',"usage":{"prompt_tokens":10,"completion_tokens":3}'
    body = answer('{"role":"assistant","content":"h\\u00e9llo","tool_calls":' + calls + "}", '"tool_calls"', usage)
    reader = ChatStream(shows_usage=False)
    out = reader.feed(CHAT.as_stream(body)) + reader.end()
    events = [event.removeprefix(b"data: ") for event in out.strip().split(b"\n\n")]
    first, last = json.loads(events[0]), json.loads(events[1])
    assert events[2:] == [b"[DONE]"]
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {
        "role": "assistant",
        "content": "héllo",
        "tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }
    assert (first["choices"][0]["finish_reason"], last["choices"][0]["finish_reason"]) == (None, "tool_calls")
    assert (reader.usage, reader.finish_reason) == (Usage(10, 3), "tool_calls")


@pytest.mark.parametrize("finish", ["null", '"stop"'])
def test_t071_a_complete_answer_is_complete_whether_or_not_it_says_why_it_ended(finish: str) -> None:
    reader = ChatStream()
    reader.feed(CHAT.as_stream(answer(finish=finish)))
    assert reader.finish_reason == "stop"


def test_t071_what_is_no_answer_does_not_become_a_stream() -> None:
    with pytest.raises(BadAnswer):
        CHAT.as_stream(b'{"choices":[]}')
    with pytest.raises(UpstreamSaidError):
        CHAT.as_stream(b'{"error":{"message":"x"}}')
