"""A stream that runs past what was reserved for it is ended as a provider would end it, and billed for what was delivered."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from tests.e2e.house import House, Json, request_id_of, unique
from tests.kit.clients import run_client
from tests.kit.invoice import InvoiceLine
from tests.kit.raw_http import RawResponse
from tests.kit.scenario import Scenario
from tests.kit.stalls import stalled_s

ENDLESS = Scenario(endless=True, gap_ms=2)
AT_ONCE = Scenario(chunks=80, completion_tokens=80)
"""Ten times what was asked for; finish reason, usage and end may all come in one segment with the text."""
PRICE_PER_TOKEN_NANOUSD = 10_000
"""Of output, at the house's $10 per million."""


async def rich_key(house: House) -> str:
    return await house.key(budgets=[{"period": "total", "hard_limit_usd": "5"}])


def chunks_of(answer: RawResponse) -> list[Json]:
    events = [event.removeprefix("data: ") for event in answer.text.split("\n\n") if event.startswith("data: ")]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


def text_of(chunks: list[Json], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def ends_of(chunks: list[Json]) -> dict[int, str]:
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return {choice["index"]: choice["finish_reason"] for choice in choices if choice["finish_reason"]}


async def line_of(house: House, model: str) -> InvoiceLine:
    """The only call of a model, once the upstream has noticed its end."""
    async with asyncio.timeout(20):
        while True:
            lines = [line for line in (await house.upstream.invoice()).lines if line.model == model]
            if lines and lines[0].outcome != "in_flight":
                assert len(lines) == 1
                return lines[0]
            await asyncio.sleep(0.02)


async def test_an_endless_stream_is_cut_for_the_stock_client_without_an_exception(house: House) -> None:
    """T078: finish reason `length`, the upstream closed within a second, billed what was delivered."""
    model = await house.model(ENDLESS)
    script = """
import json, os, time, openai
client = openai.OpenAI(base_url=os.environ["BASE_URL"], api_key=os.environ["KEY"], timeout=20, max_retries=0)
hello = [{"role": "user", "content": "Say hello."}]
with client.chat.completions.with_streaming_response.create(
    model=os.environ["MODEL"], messages=hello, max_tokens=10, stream=True, stream_options={"include_usage": True}
) as response:
    request_id = response.headers["x-request-id"]
    chunks = [chunk.to_dict() for chunk in response.parse()]
print(json.dumps({"id": request_id, "chunks": chunks, "ended_at": time.time()}))
"""
    env = {"BASE_URL": f"{house.gateway.origin}/v1", "KEY": await rich_key(house), "MODEL": model}
    began = time.monotonic()

    answer: Any = await run_client(script, env=env)

    chunks = answer["chunks"]
    assert text_of(chunks) == "".join(f"w{number % 8} " for number in range(10))
    assert ends_of(chunks) == {0: "length"}
    assert len({(chunk["id"], chunk["model"], chunk["created"]) for chunk in chunks}) == 1
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 10
    line = await line_of(house, model)
    assert line.hung_up_at is not None
    assert line.hung_up_at - answer["ended_at"] < 1 + stalled_s(began)
    record = await house.record(answer["id"])
    assert (record["outcome"], record["usage_quality"]) == ("ok", "partial")
    assert record["completion_tokens"] == 10
    assert record["finish_reason"] == "length"
    assert record["capped_max_tokens"] == 10


async def test_an_upstream_that_sends_ten_times_what_was_asked_for_at_once_is_cut_within_its_segment(
    house: House,
) -> None:
    model = await house.model(AT_ONCE)

    answer = await house.chat(await rich_key(house), model, max_tokens=8, stream=True)

    chunks = chunks_of(answer)
    assert text_of(chunks).split() == [f"w{number}" for number in range(8)]
    assert ends_of(chunks) == {0: "length"}
    record = await house.record(request_id_of(answer))
    assert record["completion_tokens"] == 8
    assert float(record["cost_usd"]) * 1e9 >= 8 * PRICE_PER_TOKEN_NANOUSD


async def test_every_unfinished_choice_gets_its_finish_reason(house: House) -> None:
    model = await house.model(ENDLESS)

    answer = await house.chat(await rich_key(house), model, max_tokens=5, n=3, stream=True)

    chunks = chunks_of(answer)
    assert ends_of(chunks) == {0: "length", 1: "length", 2: "length"}
    record = await house.record(request_id_of(answer))
    assert record["completion_tokens"] == 15


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario(obey_max_tokens=True, chunks=40, completion_tokens=40),
        Scenario(chunks=10, completion_tokens=10),
        Scenario(chunks=4, completion_tokens=10, text="Many tokens share an event here, more than one each."),
        Scenario(chunks=10, completion_tokens=10, crlf=True),
    ],
    ids=["obeys", "exact", "large-pieces", "crlf"],
)
async def test_an_upstream_that_keeps_to_its_limit_is_not_cut(house: House, scenario: Scenario) -> None:
    model = await house.model(scenario)

    answer = await house.chat(await rich_key(house), model, max_tokens=10, stream=True)

    chunks = chunks_of(answer)
    assert text_of(chunks)
    record = await house.record(request_id_of(answer))
    assert (record["outcome"], record["usage_quality"], record["completion_tokens"]) == ("ok", "exact", 10)
    assert len(ends_of(chunks)) == 1


async def test_characters_as_events_are_counted_before_a_stream_is_cut_for_their_number(house: House) -> None:
    """An upstream that sends letter by letter keeps to its limit all the same."""
    text = "The quick brown fox jumps over the lazy dog."
    model = await house.model(Scenario(text=text, chunks=44, completion_tokens=10))

    answer = await house.chat(await rich_key(house), model, max_tokens=14, stream=True)

    assert text_of(chunks_of(answer)) == text


async def test_a_stream_without_a_hard_budget_is_left_alone(house: House) -> None:
    model = await house.model(AT_ONCE)

    answer = await house.chat(await house.key(), model, max_tokens=8, stream=True)

    assert len(text_of(chunks_of(answer)).split()) == 80
    assert (await house.record(request_id_of(answer)))["completion_tokens"] == 80


async def test_a_lowered_max_tokens_is_said_in_the_headers_and_sent_upstream(house: House) -> None:
    """The budget pays for the prompt and some hundred tokens of output, not for the model's 4096."""
    model = await house.model()
    key = await house.key(budgets=[{"period": "total", "hard_limit_usd": "0.002"}])

    answer = await house.chat(key, model)

    assert answer.status == 200, answer.text
    lowered = answer.header("x-gateway-max-tokens")
    assert lowered is not None
    sent = (await line_of(house, model)).json()
    assert isinstance(sent, dict)
    assert sent["max_tokens"] == int(lowered) < 4096


async def test_an_answer_whose_provider_never_says_what_it_used_is_counted(house: House) -> None:
    """T120: by the tokenizer of the model, within a tenth, as `estimated`."""
    text = "The gateway counts what nobody else has counted, and it says that it did. " * 8
    model = await house.model(Scenario(text=text, chunks=16, usage="missing"))
    for stream in (False, True):
        answer = await house.chat(await house.key(), model, stream=stream)
        record = await house.record(request_id_of(answer))
        assert record["usage_quality"] == "estimated"
        assert abs(record["completion_tokens"] - 128) <= 12


@pytest.mark.parametrize("provider", ["litellm", "anthropic"])
async def test_streams_of_translated_providers_are_cut_as_well(house: House, provider: str) -> None:
    name = unique("model")
    price = {"input_usd_per_mtok": "2.50", "output_usd_per_mtok": "10"}
    await house.admin("POST", "models", {"name": name, "price": price}, expect=201)
    upstream_model = f"openai/{name}" if provider == "litellm" else name
    await house.endpoint(name, provider=provider, upstream_model=upstream_model)
    await house.upstream.script(by_model={name: ENDLESS})

    answer = await house.chat(await rich_key(house), name, max_tokens=10, stream=True)

    chunks = chunks_of(answer)
    assert ends_of(chunks) == {0: "length"}
    assert len(text_of(chunks).split()) == 10
    record = await house.record(request_id_of(answer))
    assert (record["outcome"], record["usage_quality"], record["finish_reason"]) == ("ok", "partial", "length")
    assert record["completion_tokens"] >= 10
    assert (await line_of(house, name)).hung_up_at is not None


async def test_an_expected_reservation_grows_with_its_stream_until_the_budget_ends(house: House) -> None:
    """The budget pays for about 500 tokens of output: what such calls need is reserved, more as the stream goes on, and no more
    than there is."""
    model = await house.model(Scenario(endless=True, events_per_segment=4), max_output_tokens=100_000)
    limit_usd = "0.006"
    key = await house.key(budgets=[{"period": "total", "hard_limit_usd": limit_usd, "reserve": "expected"}])

    answer = await house.chat(key, model, stream=True)

    assert answer.status == 200, answer.text
    chunks = chunks_of(answer)
    assert ends_of(chunks) == {0: "length"}
    record = await house.record(request_id_of(answer))
    assert record["completion_tokens"] > 256, "it grew"
    assert float(record["cost_usd"]) <= float(limit_usd)
