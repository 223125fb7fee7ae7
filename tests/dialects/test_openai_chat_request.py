"""Requests: what is refused and in which words, what passes untouched, and what the upstream gets."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.dialects.openai_chat import OpenAIChat
from app.exceptions import CallerError, InvalidJson, InvalidRequest, MissingParameter, ParamNotAllowed
from tests.kit.cost import least_cpu_s

CHAT = OpenAIChat()
MESSAGES = '"messages":[{"role":"user","content":"hi"}]'


def body(more: str = "", messages: str = MESSAGES) -> bytes:
    return ('{"model":"m",' + messages + ("," + more if more else "") + "}").encode()


def refusal(raw: bytes) -> CallerError:
    with pytest.raises(CallerError) as caught:
        CHAT.read(raw)
    return caught.value


NOT_JSON = {
    "empty": b"",
    "blank": b"  ",
    "truncated": body()[:-1],
    "trailing garbage": body() + b"x",
    "two values": body() + body(),
    "array": b"[]",
    "string": b'"model"',
    "null": b"null",
    "NaN": body('"temperature":NaN'),
    "nested NaN": body('"x":[NaN]'),
    "Infinity": body('"temperature":-Infinity'),
    "nested 100k": body('"x":' + "[" * 100_000 + "]" * 100_000),
    "nested 100k, open": b'{"x":' + b"[" * 100_000,
    "BOM": b"\xef\xbb\xbf" + body(),
    "UTF-16": body().decode().encode("utf-16"),
    "UTF-16 without BOM": body().decode().encode("utf-16-le"),
    "UTF-32": body().decode().encode("utf-32"),
    "invalid UTF-8": body().replace(b"hi", b"h\xff"),
    "overlong UTF-8": body().replace(b"hi", b"\xc0\xaf"),
    "encoded surrogate": body().replace(b"hi", b"\xed\xa0\x80"),
    "lone surrogate": body().replace(b"hi", b"\\ud800 and more text"),
    "lone low surrogate": body().replace(b"hi", b"\\udc00 and more text"),
    "surrogate at the end": body().replace(b"hi", b"\\ud800"),
    "raw newline in a string": body().replace(b"hi", b"h\ni"),
    "duplicate model": body('"model":"n"'),
    "duplicate, spaced": body('"model": "n"').replace(b":", b" : "),
    "duplicate, escaped": body('"mod\\u0065l":"n"'),
    "duplicate of a later one": b'{"stream":true,' + body('"stream":false')[1:],
    "duplicate of equal length": b'{"n":1,' + body('"n":2')[1:],
    "duplicate unknown": body('"x":1,"x":2'),
    "single quotes": b"{'model':'m'}",
    "comment": body().replace(b",", b",/**/"),
    "leading zero": body('"n":01'),
}


@pytest.mark.parametrize("raw", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_t044_what_is_not_one_json_object_is_refused_at_once(raw: bytes) -> None:
    error = refusal(raw)
    assert isinstance(error, InvalidJson)
    assert (error.status, error.code) == (400, "invalid_json")
    assert least_cpu_s(lambda: refusal(raw)) < 0.05


WRONG = {
    "max_tokens": ["-1", "0", "1e9", "1000000000", '"10"', "1.5", "true", "[]", "9" * 30, "9" * 5000, "1e999"],
    "max_completion_tokens": ["-1", "0", "1.5"],
    "n": ["0", "-1", "1000", "129", '"2"', "1.5"],
    "best_of": ["0", "1000"],
    "temperature": ["1e9", "-1", '"1"', "1e999", "[]"],
    "top_p": ["-0.1", "2"],
    "presence_penalty": ["1e9"],
    "stream": ['"true"', "1"],
    "stream_options": ["[]", '"x"'],
    "stop": ["1", "{}", "[" + ",".join(['"x"'] * 10_000) + "]"],
    "logit_bias": ["[]", "{" + ",".join(f'"{i}":1' for i in range(100_000)) + "}"],
    "tools": ["{}", "[" + ",".join(['{"type":"function"}'] * 1000) + "]"],
    "functions": ["1"],
    "seed": ["1e999", "-1e999", "9" * 5000],
    "anything": ["1e999"],
}


@pytest.mark.parametrize(("param", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_t045_an_impossible_value_is_refused_and_named(param: str, value: str) -> None:
    error = refusal(body(f'"{param}":{value}'))
    assert error.status == 400
    assert isinstance(error, InvalidRequest), error.message
    assert error.param == param
    assert len(error.message) < 200


LEGAL = [
    '"max_tokens":null',
    '"n":null',
    '"n":128',
    '"stop":null',
    '"stop":"x"',
    '"stop":["a","b"]',
    '"temperature":0',
    '"temperature":2',
    '"stream":null',
    '"stream_options":null',
    '"logit_bias":null',
    '"tools":null',
    '"metadata":{"api_key":"x"}',
    '"store":true',
    '"max_completion_tokens":1',
    '"seed":-9007199254740993',
    '"prompt_cache_key":"k"',
    '"user":"u"',
    '"top_k":-1',
    '"verbosity":"low"',
]


@pytest.mark.parametrize("more", LEGAL)
def test_what_openai_takes_is_taken(more: str) -> None:
    call = CHAT.read(body(more))
    assert CHAT.upstream_body(call, upstream_model="m", max_tokens=None) == body(more)


@pytest.mark.parametrize(
    ("raw", "kind", "param"),
    [
        (b"{}", MissingParameter, "model"),
        (b'{"model":"m"}', MissingParameter, "messages"),
        (b"{" + MESSAGES.encode() + b"}", MissingParameter, "model"),
        (b'{"model":null,' + MESSAGES.encode() + b"}", InvalidRequest, "model"),
        (b'{"model":"",' + MESSAGES.encode() + b"}", InvalidRequest, "model"),
        (b'{"model":["m"],' + MESSAGES.encode() + b"}", InvalidRequest, "model"),
        (b'{"model":"m","messages":[]}', InvalidRequest, "messages"),
        (b'{"model":"m","messages":null}', InvalidRequest, "messages"),
        (b'{"model":"m","messages":"hi"}', InvalidRequest, "messages"),
        (b'{"model":"m","messages":[1]}', InvalidRequest, "messages[0]"),
        (b'{"model":"m","messages":[{"role":"user"},{"content":"x"}]}', MissingParameter, "messages[1].role"),
        (b'{"model":"m","messages":[{"role":7}]}', InvalidRequest, "messages[0].role"),
    ],
)
def test_a_missing_or_mistyped_field_is_named(raw: bytes, kind: type[CallerError], param: str) -> None:
    error = refusal(raw)
    assert type(error) is kind
    assert error.param == param


STEERING = (
    "api_base base_url api_key api_version model_list custom_llm_provider "
    "extra_headers extra_body extra_query mock_response litellm_params litellm_metadata "
    "fallbacks callbacks success_callback failure_callback langfuse_public_key langfuse_host "
    "aws_access_key_id aws_region_name vertex_credentials vertex_project azure_ad_token input_cost_per_token "
    "output_cost_per_token timeout request_timeout max_retries num_retries caching "
    "cache shared_session proxy_server_request no-log mock_timeout models "
    "route "
)


@pytest.mark.parametrize("name", STEERING.split())
def test_t036_a_name_that_steers_the_gateway_is_refused_whatever_its_value(name: str) -> None:
    for value in ("null", '"x"', "{}", "1"):
        error = refusal(body(f'"{name}":{value}'))
        assert isinstance(error, ParamNotAllowed)
        assert (error.status, error.code, error.param) == (400, "param_not_allowed", name)
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in name)
    assert isinstance(refusal(body(f'"{escaped}":1')), ParamNotAllowed)


def test_t037_the_same_names_deeper_inside_are_somebody_elses_and_pass_untouched() -> None:
    inner = json.dumps(dict.fromkeys(STEERING.split(), "x"))
    raw = body(
        f'"tools":[{{"type":"function","function":{{"name":"f","parameters":{inner}}}}}],"response_format":{inner},"metadata":{inner}',
        f'"messages":[{{"role":"user","content":[{{"type":"text","text":"x","x":{inner}}}]}}]',
    )
    assert CHAT.upstream_body(CHAT.read(raw), upstream_model="m", max_tokens=None) == raw


def test_what_we_act_on_is_read() -> None:
    call = CHAT.read(body('"stream":true,"stream_options":{"include_usage":true},"max_tokens":7,"n":3'))
    assert (call.dialect, call.model, call.is_stream, call.wants_usage) == ("chat", "m", True, True)
    assert (call.max_tokens, call.choices, call.images) == (7, 3, 0)
    assert call.prompt_bytes == len('[{"role":"user","content":"hi"}]')


def test_t045_the_larger_of_two_caps_counts_and_best_of_multiplies() -> None:
    call = CHAT.read(body('"max_tokens":7,"max_completion_tokens":90,"best_of":5,"n":2'))
    assert (call.max_tokens, call.choices) == (90, 5)


def test_t045_ten_thousand_messages_are_read_in_milliseconds_with_all_their_bytes() -> None:
    many = json.dumps([{"role": "user", "content": "x" * 50}] * 10_000)
    raw = body(messages=f'"messages":{many}')
    assert CHAT.read(raw).prompt_bytes == len(many)
    assert least_cpu_s(lambda: CHAT.read(raw)) < 0.1


def test_pictures_and_sounds_are_counted_as_pieces_not_as_text() -> None:
    parts = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 50_000}},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "input_audio", "input_audio": {"data": "B" * 3_000_000, "format": "mp3"}},
    ]
    call = CHAT.read(json.dumps({"model": "m", "messages": [{"role": "user", "content": parts}]}).encode())
    assert call.images == 1 + 1 + 3
    assert 0 < call.prompt_bytes < 400


def test_parts_of_an_unknown_shape_stay_in_the_estimate() -> None:
    call = CHAT.read(body(messages='"messages":[{"role":"user","content":["just text", 7]}]'))
    assert (call.images, call.prompt_bytes) == (0, len('[{"role":"user","content":["just text", 7]}]'))


def test_tools_and_formats_count_into_the_prompt() -> None:
    bare = CHAT.read(body()).prompt_bytes
    assert CHAT.read(body('"tools":[{"a":1}],"response_format":{"b":2}')).prompt_bytes == bare + len('[{"a":1}]') + len(
        '{"b":2}'
    )


UNKNOWN = '"x" : { "big":12345678901234567890123, "float":1.10, "é":"\\u00e9\\/" }'


def test_only_the_model_is_renamed_and_every_other_byte_of_a_value_stays() -> None:
    call = CHAT.read(body(UNKNOWN))
    sent = CHAT.upstream_body(call, upstream_model="gpt-4o", max_tokens=None)
    assert (
        sent
        == (
            '{"model":"gpt-4o",' + MESSAGES + ',"x":{ "big":12345678901234567890123, "float":1.10, "é":"\\u00e9\\/" }}'
        ).encode()
    )


def test_an_unchanged_body_is_the_very_same_object() -> None:
    call = CHAT.read(body(UNKNOWN))
    assert CHAT.upstream_body(call, upstream_model="m", max_tokens=None) is call.body


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ('"stream":true', {"include_usage": True}),
        ('"stream":true,"stream_options":null', {"include_usage": True}),
        ('"stream":true,"stream_options":{"x":[1]}', {"x": [1], "include_usage": True}),
        ('"stream":true,"stream_options":{"include_usage":false,"x":1}', {"include_usage": True, "x": 1}),
        ('"stream":true,"stream_options":{"include_usage":true,"x":1}', {"include_usage": True, "x": 1}),
        ('"stream":false,"stream_options":{"include_usage":false}', {"include_usage": False}),
        ('"n":1', None),
    ],
)
def test_t119_a_stream_is_asked_for_its_usage_and_other_options_stay(given: str, sent: object) -> None:
    call = CHAT.read(body(given))
    assert json.loads(CHAT.upstream_body(call, upstream_model="m", max_tokens=None)).get("stream_options") == sent


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("", {"max_tokens": 5}),
        ('"max_tokens":90', {"max_tokens": 5}),
        ('"max_completion_tokens":90', {"max_completion_tokens": 5}),
        ('"max_tokens":null,"max_completion_tokens":90', {"max_tokens": None, "max_completion_tokens": 5}),
        ('"max_tokens":90,"max_completion_tokens":80', {"max_tokens": 5, "max_completion_tokens": 5}),
    ],
)
def test_a_lowered_cap_replaces_the_one_the_caller_used(given: str, sent: dict[str, int | None]) -> None:
    decoded = json.loads(CHAT.upstream_body(CHAT.read(body(given)), upstream_model="m", max_tokens=5))
    assert {name: decoded[name] for name in decoded if name.startswith("max_")} == sent


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.dictionaries(st.text(max_size=8).map(lambda name: "x_" + name), json_values, max_size=5),
    st.booleans(),
    st.booleans(),
)
def test_whatever_else_is_in_a_body_reaches_the_upstream_unchanged(
    more: dict[str, object], spaced: bool, ascii_only: bool
) -> None:
    request = {**more, "model": "m", "messages": [{"role": "user", "content": more}]}
    raw = json.dumps(request, ensure_ascii=ascii_only, separators=(", ", " : ") if spaced else (",", ":")).encode()
    call = CHAT.read(raw)
    assert CHAT.upstream_body(call, upstream_model="m", max_tokens=None) == raw
    renamed = json.loads(CHAT.upstream_body(call, upstream_model="n", max_tokens=None))
    assert renamed == request | {"model": "n"}


@given(st.binary(max_size=300))
def test_no_bytes_make_the_reader_raise_anything_but_a_refusal(raw: bytes) -> None:
    assert refusal(raw).status == 400
