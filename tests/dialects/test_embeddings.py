"""Embeddings: requests and answers of `POST /v1/embeddings`."""

from __future__ import annotations

import json

import pytest

from app.dialects.base import BadAnswer, UpstreamSaidError
from app.dialects.embeddings import Embeddings
from app.domain.pricing import Usage
from app.exceptions import CallerError, ContextLengthExceeded, InvalidRequest, MissingParameter, ParamNotAllowed
from app.services.context_validation import estimate
from tests.calls import a_model

EMBEDDINGS = Embeddings()
VECTOR = {"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}


def body(**fields: object) -> bytes:
    return json.dumps({"model": "m", "input": "a text", **fields}, separators=(",", ":")).encode()


def answer(**fields: object) -> bytes:
    whole = {"object": "list", "data": [VECTOR], "model": "m", "usage": {"prompt_tokens": 4, "total_tokens": 4}}
    return json.dumps({**whole, **fields}).encode()


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("a text", 1),
        (["a", "b"], 2),
        ([1, 2, 3], 1),
        ([[1, 2], [3]], 2),
        ([{"image": "data:image/png;base64,AAAA"}, {"text": "x"}], 2),
    ],
)
def test_an_input_may_be_text_tokens_or_objects_one_or_many(given: object, inputs: int) -> None:
    call = EMBEDDINGS.read(body(input=given, stream=True))
    assert (call.dialect, call.inputs, call.max_tokens, call.is_stream) == ("embeddings", inputs, 0, False)
    assert call.prompt_bytes > 0


@pytest.mark.parametrize(
    ("raw", "kind", "param"),
    [
        (b'{"model":"m"}', MissingParameter, "input"),
        (b'{"input":"x"}', MissingParameter, "model"),
        (body(input=""), InvalidRequest, "input"),
        (body(input=[]), InvalidRequest, "input"),
        (body(input=None), InvalidRequest, "input"),
        (body(input=5), InvalidRequest, "input"),
        (body(input=["a"] * 2049), InvalidRequest, "input"),
        (body(input=[{}, "a"]), InvalidRequest, "input"),
        (body(dimensions=0), InvalidRequest, "dimensions"),
        (body(extra_headers={}), ParamNotAllowed, "extra_headers"),
    ],
)
def test_t036_what_cannot_be_embedded_is_refused_by_name(raw: bytes, kind: type[CallerError], param: str) -> None:
    with pytest.raises(kind) as caught:
        EMBEDDINGS.read(raw)
    assert caught.value.param == param


def test_only_the_model_is_renamed() -> None:
    raw = body(dimensions=256, encoding_format="base64")
    call = EMBEDDINGS.read(raw)
    assert EMBEDDINGS.upstream_body(call, upstream_model="m", max_tokens=None) is raw
    sent = json.loads(EMBEDDINGS.upstream_body(call, upstream_model="up", max_tokens=None))
    assert sent == {"model": "up", "input": "a text", "dimensions": 256, "encoding_format": "base64"}


def test_a_batch_may_be_longer_than_the_window_as_long_as_each_text_can_fit() -> None:
    model = a_model(context_window_tokens=1000)
    many = EMBEDDINGS.read(body(input=["word " * 700] * 50))
    assert estimate(many, model).prompt_bound > 40_000
    one = EMBEDDINGS.read(body(input="word " * 700 * 50))
    with pytest.raises(ContextLengthExceeded):
        estimate(one, model)


def test_nothing_but_the_input_is_estimated() -> None:
    needed = estimate(EMBEDDINGS.read(body(input=[7] * 1000)), a_model())
    assert (needed.prompt_tokens, needed.completion_tokens) == (1000, 0)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 4, "total_tokens": 4}, Usage(4)),
        ({"total_tokens": 9}, Usage(9)),
        ({"prompt_tokens": 4, "prompt_tokens_details": {"image_tokens": 3}}, Usage(4, image_input_tokens=3)),
        ({"prompt_tokens": -4}, None),
        ({"prompt_tokens": "4"}, None),
        ({}, None),
        (None, None),
    ],
)
def test_t086_t121_usage_is_the_input_or_not_believed(usage: object, expected: Usage | None) -> None:
    facts = EMBEDDINGS.read_answer(answer(usage=usage))
    assert (facts.usage, facts.output_bytes, facts.finish_reason) == (expected, 0, None)


def test_vectors_may_come_packed() -> None:
    EMBEDDINGS.read_answer(answer(data=[{"embedding": "AACAPg=="}]))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"<html>", "not_json"),
        (b"[]", "not_a_completion"),
        (answer(data=[]), "no_embeddings"),
        (answer(data=None), "no_embeddings"),
        (answer(data=[{}]), "no_content"),
        (answer(data=[{"embedding": []}]), "no_content"),
    ],
)
def test_t069_what_holds_no_vectors_is_no_answer(raw: bytes, reason: str) -> None:
    with pytest.raises(BadAnswer, match=reason):
        EMBEDDINGS.read_answer(raw)


def test_t069_an_error_object_is_an_error() -> None:
    with pytest.raises(UpstreamSaidError):
        EMBEDDINGS.read_answer(b'{"object":"error","message":"too long","code":400}')
