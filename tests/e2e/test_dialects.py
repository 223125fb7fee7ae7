"""Text completions, embeddings and Azure's paths, all the way through: answered, priced, recorded, refused."""

from __future__ import annotations

import json
from typing import cast

import pytest

from tests.e2e.house import HELLO, PATIENCE_S, House, Json, error_of, request_id_of
from tests.kit import raw_http
from tests.kit.raw_http import RawResponse, SseStream, request_bytes
from tests.kit.scenario import Scenario


async def post(house: House, key: str, path: str, body: Json, *, header: str = "Authorization") -> RawResponse:
    credential = f"Bearer {key}" if header == "Authorization" else key
    return await raw_http.call(
        house.gateway.port, "POST", path, headers={header: credential}, json_body=body, timeout_s=PATIENCE_S
    )


async def sent_body(house: House, model: str) -> Json:
    (line,) = (await house.upstream.invoice()).of_model(model).lines
    return cast(Json, json.loads(line.body))


@pytest.mark.parametrize("path", ["/v1/completions", "/completions", "/v1/completions?beta=true"])
async def test_a_text_completion_is_answered_priced_and_recorded(house: House, path: str) -> None:
    key, model = await house.key(), await house.model(Scenario(text="Hello.", prompt_tokens=1000, completion_tokens=20))

    answer = await post(house, key, path, {"model": model, "prompt": "Say hello.", "max_tokens": 30})

    assert answer.status == 200
    assert json.loads(answer.body)["choices"][0]["text"] == "Hello."
    assert answer.header("x-gateway-cost-usd") == "0.002700000"
    record = await house.record(request_id_of(answer))
    assert (record["dialect"], record["outcome"], record["is_stream"]) == ("completions", "ok", False)
    assert (record["prompt_tokens"], record["completion_tokens"], record["usage_quality"]) == (1000, 20, "exact")


async def test_a_text_completion_streams_and_hides_the_usage_nobody_asked_for(house: House) -> None:
    key, model = await house.key(), await house.model(Scenario(chunks=5, completion_tokens=5))
    request = request_bytes(
        "POST",
        "/v1/completions",
        headers={"Authorization": f"Bearer {key}"},
        json_body={"model": model, "prompt": ["a", "b"], "stream": True},
    )
    async with SseStream.opened(house.gateway.port, request) as stream:
        events = await stream.rest()
        request_id = stream.head.header("x-request-id")

    assert events[-1].is_done_marker
    chunks = [json.loads(event.data) for event in events[:-1]]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks).startswith("w0 w1 w2")
    assert all(chunk["choices"] for chunk in chunks)
    assert (await sent_body(house, model))["stream_options"] == {"include_usage": True}
    record = await house.record(request_id or "")
    assert (record["dialect"], record["outcome"], record["usage_quality"]) == ("completions", "ok", "exact")


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
async def test_embeddings_are_answered_priced_by_their_input_and_recorded(house: House, path: str) -> None:
    key, model = await house.key(), await house.model(Scenario(prompt_tokens=1000))

    answer = await post(house, key, path, {"model": model, "input": ["one", "two"], "encoding_format": "base64"})

    assert answer.status == 200
    assert len(json.loads(answer.body)["data"]) == 2
    assert answer.header("x-gateway-cost-usd") == "0.002500000"
    record = await house.record(request_id_of(answer))
    assert (record["dialect"], record["prompt_tokens"], record["completion_tokens"]) == ("embeddings", 1000, 0)


async def test_limits_and_budgets_hold_for_every_dialect(house: House) -> None:
    calls: dict[str, Json] = {
        "/v1/completions": {"prompt": "Say hello.", "max_tokens": 8},
        "/v1/embeddings": {"input": "Say hello."},
    }
    model = await house.model()
    for path, fields in calls.items():
        once = await house.key(limits=[{"kind": "requests", "limit": 1, "window_seconds": 60}])
        broke = await house.key(budgets=[{"period": "total", "hard_limit_usd": "0.000000001"}])
        few = await house.key(limits=[{"kind": "tokens", "limit": 1, "window_seconds": 60}])
        assert (await post(house, once, path, {"model": model, **fields})).status == 200
        refused = await post(house, once, path, {"model": model, **fields})
        assert (refused.status, error_of(refused)["type"]) == (429, "requests")
        refused = await post(house, broke, path, {"model": model, **fields})
        assert (refused.status, error_of(refused)["code"]) == (402, "budget_exceeded")
        assert (await post(house, few, path, {"model": model, **fields})).status == 200, "alone, it is admitted"
        refused = await post(house, few, path, {"model": model, **fields})
        assert (refused.status, error_of(refused)["type"]) == (429, "tokens")


async def test_a_hard_budget_pays_for_embeddings_exactly(house: House) -> None:
    """Nothing is written, so nothing but the input has to be paid for: the last cent can be spent."""
    model = await house.model(Scenario(prompt_tokens=10))
    key = await house.key(budgets=[{"period": "total", "hard_limit_usd": "0.000200000"}])

    statuses = [
        (await post(house, key, "/v1/embeddings", {"model": model, "input": "Say hello."})).status for _ in range(10)
    ]

    assert statuses.count(200) >= 4
    assert set(statuses) == {200, 402}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings"])
@pytest.mark.parametrize(
    ("scenario", "status", "code"),
    [
        (Scenario(status=500, echo_credentials=True), 502, "upstream_error"),
        (Scenario(status=401, echo_credentials=True), 502, "upstream_error"),
        (Scenario(status=422, error_code="invalid_value"), 422, "invalid_value"),
        (Scenario(raw_body="<html>", content_type="text/html"), 502, "upstream_bad_response"),
        (Scenario(raw_body='{"error":{"message":"full","code":503}}'), 503, "no_healthy_endpoint"),
        (Scenario(accept_and_close=True), 502, "upstream_error"),
    ],
)
async def test_t063_t064_t069_t072_bad_answers_of_every_dialect_are_told_apart(
    house: House, path: str, scenario: Scenario, status: int, code: str
) -> None:
    key, model = await house.key(), await house.model(scenario)

    answer = await post(house, key, path, {"model": model, "prompt": "hi", "input": "hi"})

    assert (answer.status, error_of(answer)["code"]) == (status, code)
    assert "sk-upstream-key" not in answer.text
    assert (await house.record(request_id_of(answer)))["cost_usd"] == "0.000000000"


# ── Azure's clients ───────────────────────────────────────────────────────────────────────────────────────────────────

OPERATIONS: dict[str, tuple[Json, str]] = {
    "chat/completions": ({"messages": HELLO}, "chat"),
    "completions": ({"prompt": "hi"}, "completions"),
    "embeddings": ({"input": "hi"}, "embeddings"),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("said", [None, "something-else"])
async def test_azures_clients_name_the_model_in_the_path(house: House, operation: str, said: str | None) -> None:
    key, model = await house.key(), await house.model()
    fields, dialect = OPERATIONS[operation]
    body: Json = {**fields, **({"model": said} if said else {})}

    answer = await post(
        house, key, f"/openai/deployments/{model}/{operation}?api-version=2024-10-21", body, header="api-key"
    )

    assert answer.status == 200
    assert answer.header("x-gateway-model") == model
    assert (await house.record(request_id_of(answer)))["dialect"] == dialect
    assert (await sent_body(house, model))["model"] == model


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_azures_newer_path_is_openais_under_a_prefix(house: House, operation: str) -> None:
    key, model = await house.key(), await house.model()
    body: Json = {"model": model, **OPERATIONS[operation][0]}
    assert (await post(house, key, f"/openai/v1/{operation}", body, header="api-key")).status == 200


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/openai/deployments/no-such-model/chat/completions", 404, "model_not_found"),
        ("/openai/deployments/x/no-such-operation", 404, "not_found"),
        ("/openai/deployments//chat/completions", 404, "not_found"),
    ],
)
async def test_t038_what_no_deployment_answers_is_not_found(house: House, path: str, status: int, code: str) -> None:
    answer = await post(house, await house.key(), path, {"messages": HELLO}, header="api-key")
    assert (answer.status, error_of(answer)["code"]) == (status, code)


async def test_t038_a_model_that_is_not_allowed_is_refused_in_the_path_too(house: House) -> None:
    allowed, other = await house.model(), await house.model()
    key = await house.key(allowed_models=[allowed])
    path = f"/openai/deployments/{other}/chat/completions"
    answer = await post(house, key, path, {"messages": HELLO, "model": allowed})
    assert (answer.status, error_of(answer)["code"]) == (403, "model_not_allowed")
    assert (await house.upstream.invoice()).of_model(other).lines == ()


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_azure_as_an_upstream_is_called_by_its_own_paths_and_header(house: House, operation: str) -> None:
    key, model = await house.key(), await house.model(endpoints=0)
    base = house.upstream.base_url.removesuffix("/v1")
    await house.endpoint(model, upstream_model="my-deployment", api_base=f"{base}?api-version=2024-10-21")
    fields, _ = OPERATIONS[operation]

    answer = await post(house, key, f"/v1/{operation}", {"model": model, **fields})

    assert answer.status == 200
    path = f"/openai/deployments/my-deployment/{operation}"
    line = [line for line in (await house.upstream.invoice()).lines if line.path == path][-1]
    assert line.query == "api-version=2024-10-21"
    assert (line.header("api-key"), line.header("authorization")) == ("sk-upstream-key-of-the-tests", None)


# ── Passed on as they are ─────────────────────────────────────────────────────────────────────────────────────────────

FORWARDED: dict[str, Json] = {
    "moderations": {"input": "a text"},
    "rerank": {"query": "q", "documents": ["a", "b"]},
    "images/generations": {"prompt": "a cat", "n": 2, "quality": "standard"},
    "audio/speech": {"input": "Hello", "voice": "alloy"},
}


@pytest.mark.parametrize("operation", FORWARDED)
async def test_what_is_passed_on_is_answered_recorded_and_limited(house: House, operation: str) -> None:
    price = {"input_usd_per_mtok": "0", "output_usd_per_mtok": "0", "request_usd": "0.01", "image_usd": "0.04"}
    model = await house.model(price=price)
    key = await house.key(limits=[{"kind": "requests", "limit": 1, "window_seconds": 60}])
    body = {"model": model, **FORWARDED[operation]}

    answer = await post(house, key, f"/v1/{operation}", body)

    assert answer.status == 200, answer.text
    is_sound = operation == "audio/speech"
    assert (answer.header("content-type") or "").startswith("audio/mpeg" if is_sound else "application/json")
    assert answer.body.startswith(b"ID3" if is_sound else b"{")
    record = await house.record(request_id_of(answer))
    assert (record["outcome"], record["is_stream"]) == ("ok", False)
    assert record["cost_usd"] == ("0.090000000" if operation.startswith("images") else "0.010000000")
    assert await sent_body(house, model) == body
    refused = await post(house, key, f"/v1/{operation}", body)
    assert (refused.status, error_of(refused)["type"]) == (429, "requests")


@pytest.mark.parametrize("operation", FORWARDED)
@pytest.mark.parametrize(
    ("scenario", "status"),
    [
        (Scenario(status=500), 502),
        (Scenario(raw_body="<html>", content_type="text/html"), 502),
        (Scenario(raw_body='{"error":{"message":"full","code":503}}'), 503),
        (Scenario(raw_body=""), 502),
        (Scenario(status=422), 422),
    ],
)
async def test_t063_t069_bad_answers_are_told_apart_whatever_is_asked(
    house: House, operation: str, scenario: Scenario, status: int
) -> None:
    key, model = await house.key(), await house.model(scenario)
    answer = await post(house, key, f"/v1/{operation}", {"model": model, **FORWARDED[operation]})
    assert answer.status == status
    error_of(answer)


def form(model: str, *, boundary: str = "XyZ", more: str = "") -> bytes:
    fields = f'--{boundary}\r\nContent-Disposition: form-data; name="model"\r\n\r\n{model}\r\n{more}'
    file = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="../../etc/passwd"\r\n\r\n'
    return fields.encode() + file.encode() + b"RIFF\x00\xff" * 100 + f"\r\n--{boundary}--\r\n".encode()


async def sent_form(house: House, key: str, path: str, body: bytes, *, boundary: str = "XyZ") -> RawResponse:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": f"multipart/form-data; boundary={boundary}"}
    return await raw_http.call(house.gateway.port, "POST", path, headers=headers, body=body)


@pytest.mark.parametrize("operation", ["audio/transcriptions", "audio/translations"])
async def test_speech_is_written_down(house: House, operation: str) -> None:
    key, model = await house.key(), await house.model(Scenario(text="hello world"), endpoints=0)
    await house.endpoint(model, upstream_model=f"{model}-up")
    await house.upstream.script(by_model={f"{model}-up": Scenario(text="hello world")})

    answer = await sent_form(house, key, f"/v1/{operation}", form(model))

    assert answer.status == 200, answer.text
    assert json.loads(answer.body)["text"] == "hello world"
    record = await house.record(request_id_of(answer))
    assert (record["dialect"], record["outcome"]) == (operation.partition("/")[2], "ok")
    (line,) = (await house.upstream.invoice()).of_model(f"{model}-up").lines
    assert line.body == form(f"{model}-up")
    assert line.header("content-type") == "multipart/form-data; boundary=XyZ"


async def test_t055_a_form_that_is_wrong_is_refused_quickly(house: House) -> None:
    key, model = await house.key(), await house.model()
    path = "/v1/audio/transcriptions"
    part = '--XyZ\r\nContent-Disposition: form-data; name="x"\r\n\r\ny\r\n'
    cases = {
        "tail": (form(model) + b"-" * 10_000, 200),
        "parts": (form(model, more=part * 1000), 400),
        "nul": (form(model, more=part.replace('"x"', '"x\x00"')), 400),
        "nameless": (form(model, more=part.replace('; name="x"', "")), 400),
        "open": (form(model)[:-10], 400),
        "steering": (form(model, more=part.replace('"x"', '"api_base"')), 400),
        "empty": (b"", 400),
    }
    for name, (body, status) in cases.items():
        answer = await sent_form(house, key, path, body)
        assert answer.status == status, (name, answer.text)
    json_sent = await post(house, key, path, {"model": model})
    assert (json_sent.status, error_of(json_sent)["code"]) == (415, "unsupported_media_type")
    form_sent = await sent_form(house, key, "/v1/chat/completions", form(model))
    assert form_sent.status == 415


async def test_what_only_some_endpoints_offer_is_refused_by_the_others_without_blame(house: House) -> None:
    model = await house.model(endpoints=0)
    await house.endpoint(
        model, provider="litellm", upstream_model="anthropic/claude-x", api_base="http://127.0.0.1:8999"
    )
    answer = await post(house, await house.key(), "/v1/moderations", {"model": model, "input": "x"})
    assert (answer.status, error_of(answer)["code"]) == (400, "invalid_request")


async def test_chat_may_be_asked_for_with_input_as_cursor_does(house: House) -> None:
    key, model = await house.key(), await house.model()
    request = request_bytes(
        "POST",
        "/v1/chat/completions",
        headers={"Authorization": f"Bearer {key}"},
        json_body={"model": model, "input": [{"role": "user", "content": "hi"}], "stream": True},
    )
    async with SseStream.opened(house.gateway.port, request) as stream:
        events = await stream.rest()

    assert events[-1].is_done_marker
    assert json.loads(events[0].data)["object"] == "chat.completion.chunk"
    assert (await sent_body(house, model))["messages"] == [{"role": "user", "content": "hi"}]


SEARCH: Json = {
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "What is new?"}],
    "tools": [{"type": "web_search_20250305", "name": "web_search"}],
}


async def test_an_endpoint_that_cannot_carry_a_call_is_passed_over_for_one_that_can(house: House) -> None:
    """A tool that runs at Anthropic: the preferred endpoint speaks chat only, and no retry is allowed."""
    key, model = await house.key(), await house.model(Scenario(), endpoints=0, max_retries=0)
    chat = await house.endpoint(model, priority=9)
    native = await house.endpoint(model, provider="anthropic")

    answer = await post(house, key, "/v1/messages", {"model": model, **SEARCH})

    assert answer.status == 200, answer.text
    assert (answer.header("x-gateway-endpoint"), answer.header("x-gateway-attempts")) == (native, "1")
    record = await house.record(request_id_of(answer))
    assert (record["endpoint_id"], record["attempts"], record["outcome"]) == (native, 1, "ok")
    (passed_over,) = [each for each in record["candidates"] if each["endpoint_id"] == chat]
    assert passed_over["verdict"].startswith("unfit: ")
    assert (await sent_body(house, model))["tools"] == SEARCH["tools"]


async def test_a_call_that_no_endpoint_can_carry_is_refused_with_the_reason_and_blames_nobody(house: House) -> None:
    key, model = await house.key(), await house.model(endpoints=0)
    endpoints = [await house.endpoint(model), await house.endpoint(model)]

    answers = [await post(house, key, "/v1/messages", {"model": model, **SEARCH}) for _ in range(6)]

    for answer in answers:
        error = error_of(answer)
        assert (answer.status, error["type"], error["param"]) == (400, "invalid_request_error", "tools[0]")
        assert "web_search" in error["message"]
        assert answer.header("x-gateway-attempts") == "0"
    record = await house.record(request_id_of(answers[-1]))
    assert (record["outcome"], record["http_status"], record["cost_usd"]) == ("refused", 400, "0.000000000")
    assert [(await house.admin("GET", f"endpoints/{each}"))["state"] for each in endpoints] == ["closed", "closed"]
    assert (await house.upstream.invoice()).of_model(model).lines == ()
