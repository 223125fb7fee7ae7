"""Callers who would steer the gateway, and upstreams who would steer the caller: neither gets anywhere."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any
from urllib.parse import quote

import pytest

from tests.e2e.house import HELLO, House, Json, error_of, request_id_of
from tests.e2e.test_chat import streamed
from tests.e2e.test_dialects import post
from tests.kit import raw_http
from tests.kit.raw_http import SseStream, request_bytes
from tests.kit.scenario import RawPiece, Scenario
from tests.kit.stalls import stalled_s
from tests.kit.upstream import ScriptedUpstream

STEERING: Json = {
    "api_base": "http://127.0.0.1:1", "base_url": "http://127.0.0.1:1", "api_key": "sk-x", "api_version": "1",
    "model_list": [], "custom_llm_provider": "openai", "extra_headers": {"x": "y"}, "extra_body": {}, "extra_query": {},
    "litellm_params": {}, "litellm_logging_obj": 1, "mock_response": "mocked", "mock_tool_calls": [], "fallbacks": ["x"],
    "callbacks": ["x"], "langfuse_secret": "x", "aws_access_key_id": "x", "aws_role_name": "x", "vertex_credentials": "x",
    "azure_ad_token": "x", "input_cost_per_token": 0, "output_cost_per_token": 0, "timeout": 1, "max_retries": 9,
    "num_retries": 9, "caching": True, "shared_session": 1, "proxy_server_request": {},
}  # fmt: skip
CALLS: dict[str, Json] = {
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/completions": {"prompt": "hi"},
    "/v1/embeddings": {"input": "hi"},
}


@pytest.mark.parametrize("path", CALLS)
async def test_t036_no_field_steers_the_gateway(house: House, path: str) -> None:
    key, model = await house.key(), await house.model()
    for name, value in STEERING.items():
        answer = await post(house, key, path, {"model": model, **CALLS[path], name: value})
        error = error_of(answer)
        assert (answer.status, error["code"], error["param"]) == (400, "param_not_allowed", name)
    assert (await house.upstream.invoice()).of_model(model).lines == ()


async def test_t037_the_same_names_anywhere_else_have_no_effect(house: House) -> None:
    key = await house.key()
    model = await house.model(Scenario(status=500))
    cheap = {name: value for name, value in STEERING.items() if name != "mock_response"} | {"mock_response": "mocked"}
    body: Json = {
        "model": model,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi", **cheap}], **cheap}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}, **cheap}, **cheap}],
        "response_format": {"type": "text", **cheap},
        "stop": ["x"],
    }
    query = "&".join(f"{name}={quote(str(value))}" for name, value in cheap.items())
    answer = await raw_http.call(
        house.gateway.port,
        "POST",
        f"/v1/chat/completions?{query}",
        headers={
            "Authorization": f"Bearer {key}",
            "x-litellm-timeout": "0.001",
            "x-litellm-num-retries": "5",
            "x-litellm-api-base": "http://127.0.0.1:1",
            "x-litellm-tags": "a",
        },
        json_body=body,
    )
    assert answer.status == 502, "the answer is the upstream's, not a mocked one"
    (line,) = (await house.upstream.invoice()).of_model(model).lines
    assert line.credential == "sk-upstream-key-of-the-tests"
    assert not [name for name, _ in line.headers if name.startswith("x-litellm")]
    assert line.query == ""
    record = await house.record(request_id_of(answer))
    assert record["attempts"] == 1


async def test_t038_only_the_models_own_names_name_it(house: House) -> None:
    model, other = await house.model(), await house.model()
    key = await house.key(allowed_models=[model])
    spellings = [
        other, f"openai/{model}", f"huggingface/https://evil.example/{model}", f"{model},{other}", f" {model}",
        f"{model} ", model.upper(), model.replace("o", "о"), f"{model}\u200b", f"{model}/", f"{model}\n",
        "https://evil.example/v1", "../models", "*",
    ]  # fmt: skip
    for spelling in spellings:
        for path, fields in CALLS.items():
            answer = await post(house, key, path, {"model": spelling, **fields})
            assert answer.status == (403 if spelling == other else 404), (spelling, answer.text)
            assert error_of(answer)["code"] in ("model_not_allowed", "model_not_found")
        path = f"/openai/deployments/{quote(spelling, safe='')}/chat/completions"
        answer = await post(house, key, path, {"messages": HELLO, "model": model})
        assert answer.status in (403, 404), spelling
    answer = await post(house, key, f"/v1/chat/completions?model={model}", {"messages": HELLO, "model": other})
    assert answer.status == 403
    invoice = await house.upstream.invoice()
    assert invoice.of_model(other).lines == invoice.of_model(model).lines == ()


NEVER = [
    "http://169.254.169.254/v1", "http://168.63.129.16", "https://metadata.google.internal/v1", "http://0.0.0.0:8080",
    "http://[fe80::1]/v1", "http://10.0.0.1/v1", "http://100.64.0.1/v1", "http://192.168.1.1/v1", "http://example.com/v1",
    "file:///etc/passwd", "gopher://example.com/", "ftp://example.com/", "https://user:pass@example.com/v1",
    "https://example.com:22/v1", "https://example.com/v1#x", "https://example.com/v1?key=1",
    "https://example.com/" + "a" * 10_240,
]  # fmt: skip


@pytest.mark.parametrize("base", NEVER, ids=lambda base: base[:40])
async def test_t039_an_endpoint_may_only_point_where_a_call_may_go(house: House, base: str) -> None:
    """This gateway allows loopback besides public https."""
    model = await house.model(endpoints=0)
    for provider in ("openai", "anthropic", "litellm"):
        body: Json = {"model": model, "provider": provider, "upstream_model": "anthropic/m", "api_base": base}
        refused = await house.admin("POST", "endpoints", {**body, "api_key": "sk-x"}, expect=400)
        assert refused["error"]["param"] == "api_base"
    known = await house.endpoint(model)
    await house.admin("PATCH", f"endpoints/{known}", {"api_base": base, "api_key": "sk-x"}, expect=400)


MEDIA: list[Json] = [
    {"type": "image_url", "image_url": {"url": "CANARY/a.png"}},
    {"type": "image_url", "image_url": "CANARY/a.png"},
    {"type": "input_audio", "input_audio": {"data": "CANARY/a.wav", "format": "wav"}},
    {"type": "file", "file": {"file_data": "CANARY/a.pdf"}},
    {"type": "file_url", "file_url": {"url": "CANARY/a.pdf"}},
    {"type": "video_url", "video_url": {"url": "CANARY/a.mp4"}},
]


async def test_t042_the_gateway_itself_fetches_nothing_that_a_caller_names(house: House) -> None:
    """For upstreams that are spoken to natively the address goes on: whether to fetch it is theirs to decide."""
    key, model = await house.key(), await house.model()
    async with ScriptedUpstream() as canary:
        for part in MEDIA:
            told = json.loads(json.dumps(part).replace("CANARY", canary.base_url))
            message = {"role": "user", "content": [{"type": "text", "text": "look"}, told]}
            assert (await house.chat(key, model, messages=[message])).status == 200
        assert canary.invoice().connections_accepted == 0
    sent = (await house.upstream.invoice()).of_model(model).lines
    assert [json.loads(line.body)["messages"][0]["content"][1]["type"] for line in sent] == [
        part["type"] for part in MEDIA
    ]


# ── Upstreams ─────────────────────────────────────────────────────────────────────────────────────────────────────────

INJECTION = 'a\n\nevent: execute\ndata: {"x":1}\n\ndata: [DONE]\n\nb\rc\r\nd\u2028e\u2029f\u0000g' + "😀" * 10


@pytest.mark.parametrize("text", [INJECTION, "y" * 1_000_000], ids=["frames", "a megabyte"])
async def test_t058_what_a_model_says_stays_inside_its_event(house: House, text: str) -> None:
    key, model = await house.key(), await house.model(Scenario(text=text, chunks=1, completion_tokens=40))

    events = await streamed(house, key, model)

    assert events[-1].is_done_marker
    assert {event.name for event in events} <= {"message", "", None}
    said = [
        choice["delta"].get("content") or "" for event in events[:-1] for choice in json.loads(event.data)["choices"]
    ]
    assert "".join(said) == text
    assert json.loads((await house.chat(key, model)).body)["choices"][0]["message"]["content"] == text


NAMES: Json = {"id": "<script>" * 10_000, "model": ["x"], "object": {"a": 1}, "system_fingerprint": 7}


def named(**choice: Any) -> bytes:
    chunk = {**NAMES, "choices": [{"index": 0, "finish_reason": None, **choice}]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


async def test_t059_what_an_upstream_calls_itself_is_text_of_sane_length(house: House) -> None:
    key = await house.key()
    unknown = b'event: stub.new\ndata: {"type":"stub.new","x":"' + b"z" * 1000 + b'"}\n\n'
    stream = named(delta={"content": "hi"}) + unknown + named(delta={}, finish_reason="stop") + b"data: [DONE]\n\n"
    whole = {
        **NAMES,
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}],
    }
    model, unary = await house.model(), await house.model()
    await house.upstream.script(
        by_model={model: Scenario(raw_stream=(RawPiece(stream),)), unary: Scenario(raw_body=json.dumps(whole))}
    )

    events = await streamed(house, key, model)
    answer = await house.chat(key, unary)

    bodies = [json.loads(event.data) for event in events[:-1]] + [json.loads(answer.body)]
    assert len(bodies) == 3, "the unknown event is dropped"
    for body in bodies:
        assert len(body["id"]) == 512
        assert (body["model"], body["object"], body["system_fingerprint"]) == ("", "", "7")


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.parametrize("is_stream", [False, True])
async def test_t062_an_attempt_is_one_request_whatever_the_answer(house: House, path: str, is_stream: bool) -> None:
    key, model = await house.key(), await house.model(Scenario(status=500), endpoints=2)

    answer = await post(house, key, path, {"model": model, **CALLS[path], "stream": is_stream})

    assert answer.status == 502
    assert answer.header("x-should-retry") == "false"
    assert len((await house.upstream.invoice()).of_model(model).lines) == 2, "one for each endpoint"


@pytest.mark.parametrize(
    ("scenario", "reason", "deadlines"),
    [
        (Scenario(comments_every_ms=50), "first_token_timeout", {"first_token_seconds": 1, "total_seconds": 30}),
        (Scenario(endless=True, gap_ms=50), "total_timeout", {"first_token_seconds": 30, "total_seconds": 2}),
    ],
    ids=["first token", "total"],
)
async def test_t076_t077_every_deadline_is_named_in_the_record(
    house: House, scenario: Scenario, reason: str, deadlines: dict[str, int]
) -> None:
    key, model = await house.key(), await house.model(scenario, endpoints=0)
    timeouts = {"connect_seconds": 5, "between_tokens_seconds": 5, **deadlines}
    await house.endpoint(model, timeouts=timeouts)
    request = request_bytes(
        "POST",
        "/v1/chat/completions",
        headers={"Authorization": f"Bearer {key}"},
        json_body={"model": model, "messages": HELLO, "stream": True},
    )
    began = time.monotonic()
    async with SseStream.opened(house.gateway.port, request) as stream:
        request_id = stream.head.header("x-request-id") or ""
        if stream.status == 200:
            events = await stream.rest()
            assert json.loads(events[-1].data)["error"]["code"] == "upstream_timeout"
        else:
            assert stream.status == 504
    assert time.monotonic() - began < 10 + stalled_s(began)
    record = await house.record(request_id)
    assert (record["outcome"], record["error_reason"]) == ("timeout", reason)


async def test_t084_an_answer_that_has_begun_is_never_told_twice(house: House) -> None:
    key = await house.key()
    model = await house.model(Scenario(chunks=8, close_after_chunks=3), endpoints=2)

    events = await streamed(house, key, model)

    assert json.loads(events[-1].data)["error"]["code"] == "upstream_truncated"
    said = [
        choice["delta"].get("content") or "" for event in events[:-1] for choice in json.loads(event.data)["choices"]
    ]
    assert "".join(said) == "w0 w1 w2 "
    assert len((await house.upstream.invoice()).of_model(model).lines) == 1


# ── Searching ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("term", ["%" * 4, "_", "\\", "x" * 10_000, "' OR 1=1--"], ids=lambda term: term[:6])
async def test_t060_a_search_is_for_what_it_says_and_pages_are_bounded(house: House, term: str) -> None:
    await house.user()
    for resource in ("users", "keys", "usage/logs"):
        for query in (
            f"search={quote(term)}",
            f"model={quote(term)}",
            "limit=1000000",
            "cursor=AAAA",
            "offset=1000000000",
        ):
            answer = await raw_http.call(
                house.gateway.port,
                "GET",
                f"/admin/api/{resource}?{query}&from=2016-01-01T00:00:00Z",
                headers={"Authorization": "Bearer owner-token-for-tests-0123456789abcdefghij"},
            )
            assert answer.status in (200, 400, 414, 422, 431), answer.text
            if answer.status == 200:
                assert len(json.loads(answer.body)["items"]) <= 200
    key, model = await house.key(), await house.model()
    answers = await asyncio.gather(*(house.chat(key, model) for _ in range(5)))
    assert [answer.status for answer in answers] == [200] * 5
