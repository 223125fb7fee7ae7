"""Text completions: requests, answers and streams of `POST /v1/completions`."""

from __future__ import annotations

import json

import pytest

from app.dialects.base import BadAnswer, UpstreamSaidError
from app.dialects.completions import MAX_PROMPTS, Completions, CompletionStream
from app.dialects.prompt import read_prompt
from app.domain.pricing import Usage
from app.exceptions import CallerError, InvalidRequest, MissingParameter, ParamNotAllowed
from tests.dialects.vectors import wire

COMPLETIONS = Completions()
USAGE = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}


def body(**fields: object) -> bytes:
    return json.dumps({"model": "m", "prompt": "Once upon", **fields}, separators=(",", ":")).encode()


def chunk(text: str | None, finish: str | None = None, index: int = 0, **more: object) -> bytes:
    said = {} if text is None else {"text": text}
    choice = {"index": index, **said, "logprobs": None, "finish_reason": finish}
    return json.dumps({"id": "cmpl-1", "object": "text_completion", "choices": [choice], **more}).encode()


def read_stream(*segments: bytes, choices: int = 1, shows_usage: bool = False) -> tuple[bytes, CompletionStream]:
    reader = CompletionStream(choices=choices, shows_usage=shows_usage)
    out = b"".join(reader.feed(segment) for segment in segments)
    return out + reader.end(), reader


# ── Requests ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("prompt", "inputs", "prompt_bytes"),
    [
        ("Once upon", 1, 11),
        ("", 1, 2),
        (None, 1, 4),
        (["a", "bc"], 2, 3 + 4),
        ([1, 2, 3], 1, 12),
        ([[1, 2], [3]], 2, 12),
        (["a", [1, 2]], 2, 3 + 8),
    ],
)
def test_a_prompt_may_be_text_or_tokens_one_or_many(prompt: object, inputs: int, prompt_bytes: int) -> None:
    call = COMPLETIONS.read(body(prompt=prompt, n=2))
    assert (call.inputs, call.choices, call.prompt_bytes) == (inputs, 2 * inputs, prompt_bytes)


@pytest.mark.parametrize("prompt", [5, {}, [], [[]] * (MAX_PROMPTS + 1), [1.5], [-1], [None], [{"a": 1}], True])
def test_what_is_no_prompt_is_refused_by_name(prompt: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        COMPLETIONS.read(body(prompt=prompt))
    assert caught.value.param == "prompt"


def test_given_tokens_are_counted_as_what_they_are() -> None:
    fields = COMPLETIONS.read(body(prompt=[[5] * 100, [6] * 20])).fields
    assert 120 <= read_prompt(fields).around_tokens <= 130


@pytest.mark.parametrize(
    ("raw", "kind", "param"),
    [
        (b'{"model":"m"}', MissingParameter, "prompt"),
        (b'{"prompt":"x"}', MissingParameter, "model"),
        (body(max_tokens=0), InvalidRequest, "max_tokens"),
        (body(n=1000), InvalidRequest, "n"),
        (body(best_of=1000), InvalidRequest, "best_of"),
        (body(api_base="http://x"), ParamNotAllowed, "api_base"),
        (body(mock_response="x"), ParamNotAllowed, "mock_response"),
    ],
)
def test_t036_t045_absurd_and_steering_fields_are_refused(raw: bytes, kind: type[CallerError], param: str) -> None:
    with pytest.raises(kind) as caught:
        COMPLETIONS.read(raw)
    assert caught.value.param == param


def test_the_body_goes_on_byte_for_byte_where_nothing_has_to_change() -> None:
    raw = body(echo=True, x_new={"deep": [1, None]})
    assert COMPLETIONS.upstream_body(COMPLETIONS.read(raw), upstream_model="m", max_tokens=None) is raw


def test_the_model_is_renamed_usage_asked_for_and_the_cap_lowered() -> None:
    call = COMPLETIONS.read(body(stream=True, max_tokens=500, seed=7))
    sent = json.loads(COMPLETIONS.upstream_body(call, upstream_model="up", max_tokens=20))
    assert sent == {
        "model": "up", "prompt": "Once upon", "stream": True, "max_tokens": 20, "seed": 7,
        "stream_options": {"include_usage": True},
    }  # fmt: skip


# ── Whole answers ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_whole_answer_is_judged_and_counted() -> None:
    facts = COMPLETIONS.read_answer(chunk(" a time", "length", usage=USAGE))
    assert (facts.usage, facts.finish_reason, facts.output_bytes) == (Usage(10, 3), "length", 7)
    assert COMPLETIONS.texts_of(chunk(" a time", "stop")) == [" a time"]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "empty_body"),
        (b"<html>", "not_json"),
        (b"[]", "not_a_completion"),
        (b"{}", "no_choices"),
        (b'{"choices":[]}', "no_choices"),
        (b'{"choices":[{"index":0}]}', "no_content"),
        (b'{"choices":[{"text":null}]}', "no_content"),
    ],
)
def test_t069_what_is_no_answer_is_none(raw: bytes, reason: str) -> None:
    with pytest.raises(BadAnswer, match=reason):
        COMPLETIONS.read_answer(raw)


def test_t069_an_error_object_is_an_error() -> None:
    with pytest.raises(UpstreamSaidError) as caught:
        COMPLETIONS.read_answer(b'{"error":{"message":"full","code":503}}')
    assert caught.value.problem.status == 503


def test_an_empty_text_is_an_answer() -> None:
    assert COMPLETIONS.read_answer(chunk("", "stop")).output_bytes == 0


def test_a_whole_answer_can_be_shown_as_the_stream_it_would_have_been() -> None:
    raw = json.dumps({"choices": [{"text": "a"}, {"text": "b", "finish_reason": "length"}], "usage": USAGE}).encode()
    out, reader = read_stream(COMPLETIONS.as_stream(raw), choices=2)
    assert reader.texts() == ["a", "b"]
    assert (reader.usage, reader.is_complete, reader.finish_reason) == (Usage(10, 3), True, "length")
    assert out.endswith(b"data: [DONE]\n\n")
    assert b'"usage"' not in out


# ── Streams ───────────────────────────────────────────────────────────────────────────────────────────────────────────

USAGE_CHUNK = json.dumps({"id": "cmpl-1", "choices": [], "usage": USAGE}).encode()


def test_t082_a_stream_passes_byte_for_byte_and_its_usage_is_hidden() -> None:
    said = [chunk(" a"), chunk(" tïme 😀"), chunk("", "stop")]
    whole = wire(*said, USAGE_CHUNK, b"[DONE]")
    for segments in ([whole], [whole[i : i + 1] for i in range(len(whole))], whole.splitlines(keepends=True)):
        out, reader = read_stream(*segments)
        assert out == wire(*said, b"[DONE]")
        assert (reader.usage, reader.finish_reason, reader.pieces) == (Usage(10, 3), "stop", 2)
        assert reader.texts() == [" a tïme 😀"]
    assert USAGE_CHUNK in read_stream(whole, shows_usage=True)[0]


def test_a_finish_on_the_chunk_with_text_and_no_done_marker_is_complete() -> None:
    out, reader = read_stream(wire(chunk("x", "length", usage=USAGE)))
    assert out == wire(chunk("x", "length", usage=USAGE), b"[DONE]")
    assert reader.usage == Usage(10, 3)


def test_t070_a_stream_that_just_stops_is_truncated() -> None:
    reader = CompletionStream()
    assert reader.feed(wire(chunk("x"))) == wire(chunk("x"))
    with pytest.raises(BadAnswer, match="truncated"):
        reader.end()


@pytest.mark.parametrize("raw", [b"", b": ping\n\n", b"data: [DONE]\n\n", wire(chunk(""))])
def test_t071_a_stream_that_says_nothing_never_begins(raw: bytes) -> None:
    with pytest.raises(BadAnswer, match="empty_stream"):
        read_stream(raw)


def test_t078_a_cut_ends_every_unfinished_choice() -> None:
    reader = CompletionStream(choices=2, shows_usage=True)
    reader.feed(wire(chunk("a"), chunk("b", "stop", index=1)))
    events = reader.cut(1, 10).split(b"\n\n")
    ended, usage = (json.loads(event.removeprefix(b"data: ")) for event in events[:2])
    assert ended["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}]
    assert ended["object"] == "text_completion"
    assert usage["usage"] == {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
    assert events[2:] == [b"data: [DONE]", b""]


def test_t121_usage_that_counts_each_prompt_by_itself_is_summed() -> None:
    """As llama.cpp streams several prompts."""
    each = {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}
    said = [chunk("a"), chunk("b", index=1), chunk("c"), chunk("d", index=1)]
    out, reader = read_stream(
        wire(b"null", *said, chunk("", "stop", usage=each), chunk("", "stop", index=1, usage=each), b"[DONE]"),
        choices=2,
    )
    assert reader.usage == Usage(8, 4)
    assert b"null\n" not in out


def test_t121_running_usage_of_all_prompts_is_not_summed() -> None:
    def usage(tokens: int) -> dict[str, int]:
        return {"prompt_tokens": 8, "completion_tokens": tokens}

    said = [chunk("a", usage=usage(1)), chunk("b", index=1, usage=usage(2)), chunk("", "stop", usage=usage(2))]
    _, reader = read_stream(wire(*said, chunk("", "stop", index=1, usage=usage(2)), b"[DONE]"), choices=2)
    assert reader.usage == Usage(8, 2)


def test_a_finish_that_is_an_error_is_one_whole_or_streamed() -> None:
    body = b'{"choices":[{"index":0,"text":"half","finish_reason":"error"}]}'
    with pytest.raises(UpstreamSaidError):
        Completions().read_answer(body)
    reader = CompletionStream()
    with pytest.raises(UpstreamSaidError):
        reader.feed(b"data: " + body + b"\n\n")
    assert not reader.is_complete
