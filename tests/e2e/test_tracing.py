"""OpenTelemetry, as a real collector receives it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

from tests.e2e.house import HELLO, House
from tests.kit import raw_http
from tests.kit.otlp_receiver import OtlpReceiver, attributes
from tests.kit.processes import GatewayProcess
from tests.kit.scenario import Scenario

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CANARY = "canary-in-a-prompt-4711"
SERVER, CLIENT = 2, 3


async def test_a_call_is_a_trace_that_begins_at_its_caller_and_ends_at_its_upstream(house: House) -> None:
    key = await house.key()
    model = await house.model(Scenario(prompt_tokens=11, completion_tokens=5, chunks=5), endpoints=1)
    async with OtlpReceiver() as receiver:
        env = house.env | {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_SERVICE_NAME": "house"}
        async with GatewayProcess(env, name="traced") as gateway:
            answers = [
                await raw_http.call(
                    gateway.port,
                    "POST",
                    "/v1/chat/completions",
                    headers={"Authorization": f"Bearer {key}"} | headers,
                    json_body={
                        "model": name,
                        "messages": [*HELLO, {"role": "user", "content": CANARY}],
                        "stream": True,
                    },
                )
                for headers, name in (
                    ({"traceparent": f"00-{TRACE}-{PARENT}-01"}, model),
                    ({"traceparent": "00-zz-broken"}, model),
                    ({"traceparent": f"00-{TRACE}-{PARENT}-00"}, model),
                    ({}, "no-such-model"),
                )
            ]
            assert [answer.status for answer in answers] == [200, 200, 200, 404]
            log = gateway.log_text
            async with asyncio.timeout(20):
                while log().count('"event":"call"') < 4:
                    await asyncio.sleep(0.05)
            lines = [json.loads(line) for line in log().splitlines() if '"event":"call"' in line]
        spans = receiver.spans()

    ours = [span for span in spans if span.trace_id.hex() == TRACE]
    (served,) = [span for span in ours if span.kind == SERVER]
    (called,) = [span for span in ours if span.kind == CLIENT]
    assert served.parent_span_id.hex() == PARENT
    assert called.parent_span_id == served.span_id
    assert (served.name, called.name) == ("chat gateway", f"chat {model}")
    told = attributes(called)
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.provider.name"] == "openai"
    assert told["gen_ai.request.model"] == told["gen_ai.response.model"] == model
    assert told["gen_ai.usage.input_tokens"] == 11
    assert told["gen_ai.usage.output_tokens"] == 5
    assert told["gen_ai.response.finish_reasons"] == ["stop"]
    assert told["gen_ai.request.stream"] is True
    assert attributes(served)["gateway.request_id"] == answers[0].header("x-request-id")
    assert served.start_time_unix_nano <= called.start_time_unix_nano < called.end_time_unix_nano

    refused = [span for span in spans if attributes(span).get("error.type") == "model_not_found"]
    assert len(refused) == 1
    assert len({span.trace_id for span in spans}) == 3, "one followed, one begun anew, one refused; one not sampled"
    assert (lines[0]["trace_id"], lines[0]["span_id"]) == (TRACE, served.span_id.hex())

    seconds = receiver.points("gen_ai.client.operation.duration")
    assert sum(point.count for point in seconds if attributes(point)["gen_ai.request.model"] == model) == 3
    tokens = receiver.points("gen_ai.client.token.usage")
    assert {attributes(point)["gen_ai.token.type"] for point in tokens} == {"input", "output"}
    assert receiver.points("gen_ai.client.operation.time_to_first_chunk")
    for secret in (CANARY.encode(), key.encode()):
        assert secret not in receiver.raw


async def test_an_upstream_is_told_its_place_in_the_trace(house: House) -> None:
    key, model = await house.key(), await house.model()
    await raw_http.call(
        house.gateway.port,
        "POST",
        "/v1/chat/completions",
        headers={"Authorization": f"Bearer {key}", "traceparent": f"00-{TRACE}-{PARENT}-01"},
        json_body={"model": model, "messages": HELLO},
    )
    invoice = await house.upstream.invoice()

    (line,) = invoice.of_model(model).lines
    passed = dict(line.headers)["traceparent"]
    assert passed.startswith(f"00-{TRACE}-")
    assert PARENT not in passed


async def test_a_collector_that_is_away_disturbs_nobody(house: House) -> None:
    key, model = await house.key(), await house.model()
    env = house.env | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    async with GatewayProcess(env, name="untraced") as gateway:
        answer = await raw_http.call(
            gateway.port,
            "POST",
            "/v1/chat/completions",
            headers={"Authorization": f"Bearer {key}"},
            json_body={"model": model, "messages": HELLO},
        )
    assert answer.status == 200


def test_nothing_of_it_is_imported_where_nobody_asked() -> None:
    """The Redis client imports the library's interface wherever it is installed; exporters are ours alone."""
    code = "import app.main, sys; print([name for name in sys.modules if name.startswith(('opentelemetry.exporter', 'app.tracing'))])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"
