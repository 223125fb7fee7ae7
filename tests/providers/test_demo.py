"""The built-in demo model: honest about itself, consistent in its counts."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from app.dialects.openai_chat import OpenAIChat
from app.domain.call import Call, Meter, Quality
from app.domain.catalog import Endpoint, ProviderKind
from app.domain.identity import Identity, PaymentStatus, User
from app.exceptions import AttemptFailed, FailureKind, InvalidRequest
from app.providers.demo import PAUSE_S, DemoProvider

DIALECT = OpenAIChat()
ENDPOINT = Endpoint(id="e1", model="demo", provider=ProviderKind.DEMO, upstream_model="demo", api_base="")


class HeldClock:
    """Time passes only by sleeping."""

    def __init__(self) -> None:
        self.slept_s: list[float] = []

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        return sum(self.slept_s)

    async def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)


def a_call(**fields: object) -> Call:
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hello there"}], **fields}
    return DIALECT.read(msgspec.json.encode(body))


def a_meter(call: Call) -> Meter:
    return Meter(
        request_id="r1",
        client_request_id=None,
        identity=Identity(User("u1", PaymentStatus.ACTIVE, None)),
        call=call,
        created_at=datetime.now(UTC),
        started_s=time.monotonic(),
        answer_body=bytearray(),
    )


async def answered(
    *, max_tokens: int | None = None, deadline_s: float = 60, clock: HeldClock | None = None, **fields: object
) -> tuple[bytes, Meter]:
    call = a_call(**fields)
    meter = a_meter(call)
    body = bytearray()
    async with DemoProvider(clock=clock or HeldClock()).opened(
        call, ENDPOINT, DIALECT, meter, max_tokens=max_tokens, deadline_s=deadline_s
    ) as answer:
        body += answer.body
        if answer.chunks is not None:
            async for chunk in answer.chunks:
                body += chunk
    return bytes(body), meter


def events_of(body: bytes) -> list[Any]:
    payloads = [event.removeprefix(b"data: ") for event in body.split(b"\n\n") if event]
    assert payloads.pop() == b"[DONE]"
    return [msgspec.json.decode(payload) for payload in payloads]


async def test_an_answer_says_what_it_is_and_echoes_the_last_user_message() -> None:
    body, meter = await answered(
        messages=[
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": "no"},
            {"role": "user", "content": [{"type": "text", "text": "What {is} this?"}]},
        ]
    )
    answer = msgspec.json.decode(body)
    text = answer["choices"][0]["message"]["content"]

    assert "demo model" in text
    assert "“What {is} this?”" in text
    assert "first" not in text
    assert answer["model"] == "demo"
    assert answer["id"].startswith("chatcmpl-demo-")
    assert answer["created"] == 1_767_225_600
    assert answer["choices"][0]["finish_reason"] == meter.finish_reason == "stop"
    assert bytes(meter.answer_body or b"") == body


async def test_a_long_message_is_echoed_in_part() -> None:
    body, _ = await answered(messages=[{"role": "user", "content": "abc " * 10_000}])

    assert len(body) < 1000


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "x"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": []}],
        [{"role": "user", "content": {"odd": 1}}],
        [{"role": "user"}],
    ],
)
async def test_a_call_without_user_text_is_answered_too(messages: list[object]) -> None:
    body, _ = await answered(messages=messages)

    assert "held no text" in body.decode()


async def test_counts_agree_with_the_words_of_all_choices() -> None:
    body, meter = await answered(n=3)
    answer = msgspec.json.decode(body)
    words = sum(len(choice["message"]["content"].split()) for choice in answer["choices"])
    usage = answer["usage"]

    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert usage["completion_tokens"] == words
    assert usage["total_tokens"] == usage["prompt_tokens"] + words
    assert meter.usage is not None
    assert (meter.usage.completion_tokens, meter.quality) == (words, Quality.EXACT)


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(("asked", "capped"), [(5, None), (None, 5), (9, 5), (5, 9)])
async def test_the_lower_cap_ends_the_answer(is_stream: bool, asked: int | None, capped: int | None) -> None:
    body, meter = await answered(max_tokens=capped, stream=is_stream, max_completion_tokens=asked)

    assert meter.finish_reason == "length"
    assert meter.usage is not None
    assert meter.usage.completion_tokens == 5
    assert b"length" in body


async def test_a_stream_says_the_same_words_one_by_one_with_pauses() -> None:
    clock = HeldClock()
    unary, _ = await answered()
    body, meter = await answered(stream=True, clock=clock)
    events = events_of(body)
    text = "".join(choice["delta"].get("content", "") for event in events for choice in event["choices"])

    assert text.rstrip() == msgspec.json.decode(unary)["choices"][0]["message"]["content"]
    assert len({event["id"] for event in events}) == 1
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [event["choices"][0]["finish_reason"] for event in events][-2:] == [None, "stop"]
    assert set(clock.slept_s) == {PAUSE_S}
    assert bytes(meter.answer_body or b"") == body


async def test_the_usage_chunk_is_for_those_who_ask() -> None:
    silent, meter = await answered(stream=True, n=2)
    asked, _ = await answered(stream=True, n=2, stream_options={"include_usage": True})
    usage = events_of(asked)[-1]

    assert b"usage" not in silent
    assert meter.usage is not None
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == meter.usage.completion_tokens
    assert meter.quality is Quality.EXACT


async def test_leaving_early_bills_what_was_delivered() -> None:
    call = a_call(stream=True)
    meter = a_meter(call)
    async with DemoProvider(clock=HeldClock()).opened(
        call, ENDPOINT, DIALECT, meter, max_tokens=None, deadline_s=60
    ) as answer:
        assert answer.chunks is not None
        await anext(answer.chunks)

    assert (meter.usage, meter.quality, meter.delivered_tokens) == (None, Quality.PARTIAL, 2)


async def test_a_stream_ends_at_the_deadline() -> None:
    with pytest.raises(AttemptFailed) as caught:
        await answered(stream=True, deadline_s=PAUSE_S * 3.5)

    assert (caught.value.kind, caught.value.reason) == (FailureKind.ANSWER_BEGUN, "total_timeout")


async def test_other_dialects_are_refused_without_blaming_the_endpoint() -> None:
    class Embeddings(OpenAIChat):
        name = "embeddings"
        upstream_path = "/embeddings"

    call = a_call()
    with pytest.raises(AttemptFailed) as caught:
        async with DemoProvider().opened(
            call, ENDPOINT, Embeddings(), a_meter(call), max_tokens=None, deadline_s=time.monotonic() + 5
        ):
            pass

    assert isinstance(caught.value.error, InvalidRequest)
    assert not caught.value.is_endpoint_fault


async def test_the_readme_shows_the_answer_that_its_first_curl_line_gets_and_adds_it_up() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    pasted = {"model": "demo", "messages": [{"role": "user", "content": "Say hello."}]}
    call = DIALECT.read(json.dumps(pasted).encode())
    provider = DemoProvider(clock=HeldClock())
    async with provider.opened(call, ENDPOINT, DIALECT, a_meter(call), max_tokens=None, deadline_s=60) as answer:
        usage = msgspec.json.decode(answer.body)["usage"]
    tokens_in, tokens_out = usage["prompt_tokens"], usage["completion_tokens"]
    cost = f"0.000{(tokens_in * 25 + tokens_out * 100):04d}"

    shown = f'"usage":{{"prompt_tokens":{tokens_in},"completion_tokens":{tokens_out},"total_tokens":{tokens_in + tokens_out}}}'
    assert shown in readme
    assert f"{tokens_in} × 0.0000025 + {tokens_out} × 0.00001 = {cost} USD" in readme
    assert f"x-gateway-cost-usd: {cost}00" in readme
    assert f"x-gateway-budget-remaining-usd: {10 - float(cost):.9f}" in readme
    assert f'"spent_after_usd": "{cost}00"' in readme
    assert f"${cost} of $10 spent" in readme
