"""Pictures, sounds, judgements and rankings: what is read of them, what is refused, and what is an answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.dialects.base import BadAnswer, UpstreamSaidError
from app.dialects.forwarded import Forwarded
from app.dialects.images import Images
from app.dialects.moderations import Moderations
from app.dialects.rerank import Rerank
from app.dialects.speech import Speech
from app.dialects.transcriptions import Transcriptions
from app.domain.pricing import Usage
from app.exceptions import CallerError, InvalidRequest, MissingParameter, ParamNotAllowed

REQUESTS: dict[type[Forwarded], dict[str, Any]] = {
    Moderations: {"model": "m", "input": ["a", {"type": "text", "text": "b"}]},
    Rerank: {"model": "m", "query": "q", "documents": ["a", {"text": "b"}]},
    Images: {"model": "m", "prompt": "a cat", "n": 2, "quality": "low"},
    Speech: {"model": "m", "input": "Hello", "voice": "x"},
}
ANSWERS: dict[type[Forwarded], dict[str, Any]] = {
    Moderations: {"id": "x", "results": [{"flagged": False}]},
    Rerank: {"results": [{"index": 0, "relevance_score": 0.5}]},
    Images: {"created": 1, "data": [{"b64_json": "AAAA"}]},
}
each_kind = pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.__name__)


def body(kind: type[Forwarded], **changes: object) -> bytes:
    return json.dumps({**REQUESTS[kind], **changes}, separators=(",", ":")).encode()


def dialect_of(kind: type[Forwarded]) -> Any:
    return kind()


@each_kind
def test_only_the_model_is_read_for_the_upstream(kind: type[Forwarded]) -> None:
    dialect, raw = dialect_of(kind), body(kind, x_new=[1])
    call = dialect.read(raw)
    assert (call.model, call.is_stream, call.dialect) == ("m", False, dialect.name)
    assert dialect.upstream_body(call, upstream_model="m", max_tokens=None) is raw
    assert json.loads(dialect.upstream_body(call, upstream_model="up", max_tokens=None)) == json.loads(raw) | {
        "model": "up"
    }


@each_kind
def test_t036_what_is_missing_wrong_or_steers_is_refused_by_name(kind: type[Forwarded]) -> None:
    dialect = dialect_of(kind)
    cases: list[tuple[bytes, type[CallerError], str]] = [
        (body(kind, api_base="http://x"), ParamNotAllowed, "api_base"),
        (body(kind, stream=True), InvalidRequest, "stream"),
        (body(kind, model=7), InvalidRequest, "model"),
    ]
    for name in ("model", *(name for name in REQUESTS[kind] if name in ("input", "query", "documents", "prompt"))):
        rest = {key: value for key, value in REQUESTS[kind].items() if key != name}
        cases.append((json.dumps(rest).encode(), MissingParameter, name))
    for raw, error, param in cases:
        with pytest.raises(error) as caught:
            dialect.read(raw)
        assert getattr(caught.value, "param", None) == param


@pytest.mark.parametrize("kind", ANSWERS, ids=lambda kind: kind.__name__)
def test_t069_what_holds_nothing_is_no_answer(kind: type[Forwarded]) -> None:
    dialect = dialect_of(kind)
    assert dialect.read_answer(json.dumps(ANSWERS[kind]).encode()).finish_reason is None
    for raw in (b"", b"<html>", b"[]", b"{}", b'{"results":null,"data":null}'):
        with pytest.raises(BadAnswer):
            dialect.read_answer(raw)
    with pytest.raises(UpstreamSaidError):
        dialect.read_answer(b'{"error":{"message":"full","code":503}}')


def test_pictures_cost_their_number_or_their_tokens() -> None:
    call = Images().read(body(Images))
    assert (call.images, call.choices, call.max_tokens) == (2, 2, 408)
    usage = {"input_tokens": 50, "output_tokens": 800, "input_tokens_details": {"image_tokens": 10}}
    facts = Images().read_answer(json.dumps({**ANSWERS[Images], "usage": usage}).encode())
    assert facts.usage == Usage(50, 800, image_input_tokens=10, image_output_tokens=800)
    assert Images().read_answer(json.dumps({**ANSWERS[Images], "usage": {"input_tokens": -1}}).encode()).usage is None


def test_a_ranking_reads_the_query_with_every_document() -> None:
    call = Rerank().read(body(Rerank))
    assert call.inputs == 2
    assert call.prompt_bytes == len('["a",{"text":"b"}]') + 2 * len('"q"')
    usage = {"total_tokens": 30}
    assert Rerank().read_answer(json.dumps({**ANSWERS[Rerank], "usage": usage}).encode()).usage == Usage(30)


def test_sound_is_an_answer_and_pages_and_objects_are_none() -> None:
    assert Speech().read_answer(b"ID3\x04sound").usage is None
    for raw in (b"", b"<html>", b'{"x":1}', b"[]"):
        with pytest.raises(BadAnswer):
            Speech().read_answer(raw)


# ── Forms ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

TYPE = b"multipart/form-data; boundary=B"


def form(*fields: tuple[str, bytes], file: bytes | None = b"RIFF" * 100) -> bytes:
    parts = [
        b'--B\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (name.encode(), value)
        for name, value in fields
    ]
    if file is not None:
        head = (
            b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
        )
        parts.append(head + file + b"\r\n")
    return b"".join([*parts, b"--B--\r\n"])


def test_a_form_is_told_in_json_for_the_log_and_sent_as_it_came() -> None:
    dialect, raw = Transcriptions(), form(("model", b"m"), ("language", b"en"), ("timestamp_granularities[]", b"word"))
    call = dialect.read_form(raw, TYPE)
    assert json.loads(call.body) == {
        "model": "m",
        "language": "en",
        "timestamp_granularities[]": "word",
        "file": "400 bytes",
    }
    assert call.media.audio_bytes == 533
    assert dialect.upstream_body(call, upstream_model="m", max_tokens=None) is raw
    assert dialect.upstream_body(call, upstream_model="up", max_tokens=9) == form(
        ("model", b"up"), ("language", b"en"), ("timestamp_granularities[]", b"word")
    )
    assert dialect.headers_of(call)["Content-Type"] == "multipart/form-data; boundary=B"


@pytest.mark.parametrize(
    ("raw", "error", "param"),
    [
        (form(), MissingParameter, "model"),
        (form(("model", b"m"), file=None), MissingParameter, "file"),
        (form(("model", b"m"), file=b""), InvalidRequest, "file"),
        (form(("model", b"m"), ("file", b"x")), InvalidRequest, "file"),
        (form(("model", b"m"), ("model", b"n")), InvalidRequest, "model"),
        (form(("model", b"\xff")), InvalidRequest, "model"),
        (form(("model", b"m"), ("prompt", b"x" * 70_000)), InvalidRequest, "prompt"),
        (form(("model", b"m"), ("stream", b"true")), InvalidRequest, "stream"),
        (form(("model", b"m"), ("api_base", b"http://x")), ParamNotAllowed, "api_base"),
    ],
)
def test_t037_t055_a_form_that_is_wrong_is_refused_by_name(raw: bytes, error: type[CallerError], param: str) -> None:
    with pytest.raises(error) as caught:
        Transcriptions().read_form(raw, TYPE)
    assert getattr(caught.value, "param", None) == param


def test_a_transcript_may_be_an_object_a_text_or_subtitles() -> None:
    dialect = Transcriptions()
    usage = {"type": "tokens", "input_tokens": 14, "output_tokens": 5, "input_token_details": {"audio_tokens": 12}}
    facts = dialect.read_answer(json.dumps({"text": "hello", "usage": usage}).encode())
    assert (facts.usage, facts.output_bytes) == (Usage(14, 5, audio_input_tokens=12), 5)
    assert dialect.read_answer(b'{"text":"x","usage":{"type":"duration","seconds":3}}').usage is None
    assert dialect.texts_of(b'{"text":"hello"}') == ["hello"]
    assert dialect.texts_of(b"WEBVTT\n\nhello") == ["WEBVTT\n\nhello"]
    for raw in (b"", b"<html>", b"{}", b'{"a":1}'):
        with pytest.raises(BadAnswer):
            dialect.read_answer(raw)
