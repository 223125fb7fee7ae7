"""One call all the way through: key, admission, upstream, answer, record."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from tests.e2e.house import HELLO, House, Json, error_of, request_id_of, unique
from tests.kit import raw_http
from tests.kit.raw_http import SseStream, request_bytes
from tests.kit.scenario import Scenario
from tests.kit.stalls import stalled_s

BUSY_S = 1.0
"""What a machine with more work than cores may add."""


def stream_request(key: str, model: str, **fields: object) -> bytes:
    body = {"model": model, "messages": HELLO, "stream": True, **fields}
    return request_bytes("POST", "/v1/chat/completions", headers={"Authorization": f"Bearer {key}"}, json_body=body)


async def streamed(house: House, key: str, model: str, **fields: object) -> list[raw_http.SseEvent]:
    async with SseStream.opened(house.gateway.port, stream_request(key, model, **fields)) as stream:
        assert stream.status == 200
        return await stream.rest()


async def test_a_unary_call_is_answered_priced_and_recorded(house: House) -> None:
    key, model = (
        await house.key(),
        await house.model(Scenario(text="Hello there.", prompt_tokens=1000, completion_tokens=20)),
    )

    answer = await house.chat(key, model)

    assert answer.status == 200
    body = json.loads(answer.body)
    assert body["choices"][0]["message"]["content"] == "Hello there."
    assert body["usage"]["prompt_tokens"] == 1000
    # 1000 × 2.50 USD/M + 20 × 10 USD/M
    assert answer.header("x-gateway-cost-usd") == "0.002700000" == answer.header("x-litellm-response-cost")
    assert answer.header("x-gateway-model") == model
    assert answer.header("x-gateway-attempts") == "1"
    record = await house.record(request_id_of(answer))
    assert record["outcome"] == "ok"
    assert (record["prompt_tokens"], record["completion_tokens"]) == (1000, 20)
    assert (record["cost_usd"], record["usage_quality"]) == ("0.002700000", "exact")
    assert (record["requested_model"], record["dialect"], record["is_stream"]) == (model, "chat", False)
    assert record["attempts"] == 1
    assert record["endpoint_id"] == answer.header("x-gateway-endpoint")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/chat/completions", "/v1/chat/completions?beta=true"])
async def test_the_path_is_served_with_and_without_its_prefix(house: House, path: str) -> None:
    answer = await house.chat(await house.key(), await house.model(), path=path)
    assert answer.status == 200


async def test_a_stream_is_passed_on_as_it_comes(house: House) -> None:
    """T119: its upstream falls silent after three chunks, and its caller has all three."""
    key, model = await house.key(), await house.model(Scenario(stall_after_chunks=3))

    async with SseStream.opened(house.gateway.port, stream_request(key, model)) as stream:
        said = ""
        while said != "w0 w1 w2 ":
            (event,) = await stream.take(1)
            said += json.loads(event.data)["choices"][0]["delta"].get("content") or ""
        (line,) = (await house.upstream.invoice()).of_model(model).lines
        assert line.outcome == "in_flight"
    await house.upstream.settled(model=model)


async def test_a_stream_is_billed_by_the_hidden_usage(house: House) -> None:
    """T119."""
    key = await house.key()
    model = await house.model(Scenario(chunks=6, completion_tokens=6, prompt_tokens=100, gap_ms=5))

    events = await streamed(house, key, model)

    assert events[-1].is_done_marker
    chunks = [json.loads(event.data) for event in events[:-1]]
    assert all(chunk["choices"] for chunk in chunks), "the usage chunk was not asked for"
    assert sum(bool(chunk["choices"][0]["delta"].get("content")) for chunk in chunks) == 6
    (line,) = [line for line in (await house.upstream.invoice()).lines if line.model == model]
    assert json.loads(line.body)["stream_options"] == {"include_usage": True}
    async with asyncio.timeout(20):
        while not (records := (await house.admin("GET", f"usage/logs?model={model}"))["items"]):
            await asyncio.sleep(0.05)
    (record,) = records
    assert (record["prompt_tokens"], record["completion_tokens"], record["usage_quality"]) == (100, 6, "exact")
    assert record["cost_usd"] == "0.000310000"


async def test_the_usage_chunk_is_shown_to_whoever_asks_for_it(house: House) -> None:
    """T119."""
    key, model = await house.key(), await house.model(Scenario(prompt_tokens=11, completion_tokens=8))
    events = await streamed(house, key, model, stream_options={"include_usage": True})

    usage = json.loads(events[-2].data)
    assert usage["choices"] == []
    assert usage["usage"]["prompt_tokens"] == 11


async def test_unknown_fields_reach_the_upstream_untouched(house: House) -> None:
    key, model = await house.key(), await house.model()
    fields: Json = {"temperature": 0.30000000000000004, "seed": 2**53 + 1, "x_new": {"deep": [1, "ü", None]}}

    assert (await house.chat(key, model, **fields)).status == 200

    (line,) = [line for line in (await house.upstream.invoice()).lines if line.model == model]
    sent = json.loads(line.body)
    assert {name: sent[name] for name in fields} == fields


async def test_the_upstream_sees_our_credential_and_none_of_the_callers_headers(house: House) -> None:
    key, model = await house.key(), await house.model()
    await raw_http.call(
        house.gateway.port,
        "POST",
        "/v1/chat/completions",
        headers={
            "Authorization": f"Bearer {key}",
            "Cookie": "a=b",
            "X-Forwarded-For": "1.2.3.4",
            "OpenAI-Organization": "org-x",
            "Metadata-Flavor": "Google",
        },
        json_body={"model": model, "messages": HELLO},
    )
    (line,) = [line for line in (await house.upstream.invoice()).lines if line.model == model]
    headers = {name.lower(): value for name, value in line.headers}
    assert headers["authorization"] == "Bearer sk-upstream-key-of-the-tests"
    assert not {"cookie", "x-forwarded-for", "openai-organization", "metadata-flavor"} & headers.keys()


async def test_the_caller_reads_his_own_record_and_nobody_elses(house: House) -> None:
    key, other, model = await house.key(), await house.key(), await house.model()
    request_id = request_id_of(await house.chat(key, model))

    async def own(secret: str) -> raw_http.RawResponse:
        headers = {"Authorization": f"Bearer {secret}"}
        return await raw_http.call(house.gateway.port, "GET", f"/v1/usage/{request_id}", headers=headers)

    answer = await own(key)
    assert answer.status == 200
    assert json.loads(answer.body)["request_id"] == request_id
    assert (await own(other)).status == 404


async def test_models_are_listed_as_far_as_the_key_may_use_them(house: House) -> None:
    allowed, hidden = await house.model(), await house.model()
    key = await house.key(allowed_models=[allowed])
    headers = {"Authorization": f"Bearer {key}"}

    listed = await raw_http.call(house.gateway.port, "GET", "/v1/models", headers=headers)
    assert [model["id"] for model in json.loads(listed.body)["data"]] == [allowed]
    assert (await raw_http.call(house.gateway.port, "GET", f"/v1/models/{allowed}", headers=headers)).status == 200
    assert (await raw_http.call(house.gateway.port, "GET", f"/v1/models/{hidden}", headers=headers)).status == 404
    refused = await house.chat(key, hidden)
    assert (refused.status, error_of(refused)["code"]) == (403, "model_not_allowed")
    unknown = await house.chat(key, "no-such-model")
    assert (unknown.status, error_of(unknown)["code"]) == (404, "model_not_found")


async def test_who_may_use_an_alias_alone_finds_the_model_under_it_and_under_nothing_else(house: House) -> None:
    alias = unique("alias")
    model = await house.model(aliases=[alias])
    key = await house.key(allowed_models=[alias])
    headers = {"Authorization": f"Bearer {key}"}

    listed = await raw_http.call(house.gateway.port, "GET", "/v1/models", headers=headers)
    assert [each["id"] for each in json.loads(listed.body)["data"]] == [alias]
    found = await raw_http.call(house.gateway.port, "GET", f"/v1/models/{alias}", headers=headers)
    assert json.loads(found.body)["id"] == alias
    assert (await raw_http.call(house.gateway.port, "GET", f"/v1/models/{model}", headers=headers)).status == 404
    assert (await house.chat(key, alias)).status == 200
    assert (await house.chat(key, model)).status == 403


async def test_a_failing_endpoint_is_passed_over_and_both_attempts_are_recorded(house: House) -> None:
    """T061: 500, then an answer: one charge, two attempts."""
    key, model = await house.key(), await house.model(endpoints=0)
    await house.endpoint(model, upstream_model=f"{model}-bad", priority=9)
    await house.endpoint(model)
    await house.upstream.script(by_model={f"{model}-bad": Scenario(status=500)})

    answer = await house.chat(key, model)

    assert answer.status == 200
    assert answer.header("x-gateway-attempts") == "2"
    record = await house.record(request_id_of(answer))
    assert [attempt["outcome"] for attempt in record["attempt_details"]] == ["failed", "ok"]
    assert record["cost_usd"] != "0.000000000"


async def test_a_refused_call_is_in_the_log_and_costs_nothing(house: House) -> None:
    key, model = await house.key(limits=[{"kind": "requests", "limit": 1, "window_seconds": 60}]), await house.model()
    assert (await house.chat(key, model)).status == 200

    refused = await house.chat(key, model)

    assert (refused.status, error_of(refused)["code"]) == (429, "rate_limit_exceeded")
    assert error_of(refused)["type"] == "requests"
    assert 55 <= int(refused.header("retry-after") or 0) <= 61
    record = await house.record(request_id_of(refused))
    assert (record["outcome"], record["cost_usd"], record["http_status"]) == ("refused", "0.000000000", 429)


async def test_a_hard_budget_refuses_with_402_once_it_is_spent(house: House) -> None:
    model = await house.model(Scenario(prompt_tokens=0, completion_tokens=1000), max_output_tokens=1000)
    # One call costs 1000 × 10 USD/M = 0.01 USD and a little for its prompt's estimate.
    budgets = [{"period": "monthly", "hard_limit_usd": "0.0305"}]
    key = await house.key(budgets=budgets)

    answers = [await house.chat(key, model) for _ in range(4)]

    assert [answer.status for answer in answers] == [200, 200, 200, 402]
    error = error_of(answers[-1])
    assert (error["code"], error["type"]) == ("budget_exceeded", "insufficient_quota")
    assert answers[-1].header("x-should-retry") == "false"
    assert answers[0].header("x-gateway-budget-remaining-usd") == "0.020500000"


async def test_a_client_that_hangs_up_closes_the_upstream_and_pays_for_what_he_got(house: House) -> None:
    """T117: the upstream's connection is closed within a second; the row says who left, and costs something."""
    key = await house.key()
    model = await house.model(Scenario(chunks=1000, completion_tokens=1000, gap_ms=30))  # for half a minute
    async with SseStream.opened(house.gateway.port, stream_request(key, model)) as stream:
        await stream.take(6)
        request_id = stream.head.header("x-request-id")
        left_at, left_s = time.time(), time.monotonic()
        await stream.hang_up()
        (line,) = (await house.upstream.settled(model=model)).lines

    assert line.outcome == "client_hung_up"
    assert line.hung_up_at is not None
    assert line.hung_up_at - left_at < 1.0 + BUSY_S + stalled_s(left_s)

    record = await house.record(request_id or "")
    assert (record["outcome"], record["usage_quality"]) == ("client_cancelled", "partial")
    assert 3 <= record["completion_tokens"] < 500
    assert record["cost_usd"] > "0.000000000"


async def test_a_client_that_hangs_up_before_a_unary_answer_ends_the_upstream_call(house: House) -> None:
    """T118."""
    key, model = await house.key(), await house.model(Scenario(delay_ms=20_000))
    body = {"model": model, "messages": HELLO}
    request = request_bytes("POST", "/v1/chat/completions", headers={"Authorization": f"Bearer {key}"}, json_body=body)
    async with raw_http.RawConnection(house.gateway.port) as connection:
        await connection.send(request)
        while not [line for line in (await house.upstream.invoice()).lines if line.model == model]:
            await asyncio.sleep(0.02)
        left_at, left_s = time.time(), time.monotonic()
        await connection.close()
    (line,) = (await house.upstream.settled(model=model)).lines
    assert line.outcome == "client_hung_up"
    assert line.hung_up_at is not None
    assert line.hung_up_at - left_at < 1.5 + BUSY_S + stalled_s(left_s)

    page = await house.admin("GET", f"usage/logs?model={model}", expect=200)
    async with asyncio.timeout(20):
        while not page["items"]:
            await asyncio.sleep(0.05)
            page = await house.admin("GET", f"usage/logs?model={model}", expect=200)
    (item,) = page["items"]
    assert (item["outcome"], item["usage_quality"]) == ("client_cancelled", "estimated")
    assert item["cost_usd"] > "0.000000000"
