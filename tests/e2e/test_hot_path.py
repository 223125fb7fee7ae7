"""Many callers, slow ones, large ones and chatty ones: none of them is at another's expense."""

from __future__ import annotations

import asyncio
import json
import time
from statistics import median

import pytest

from tests.e2e.house import HELLO, House, Json, error_of
from tests.kit import raw_http
from tests.kit.raw_http import RawConnection, SseStream, chunked, pipelined, request_bytes
from tests.kit.scenario import Scenario
from tests.kit.stalls import stalled_s
from tests.kit.upstream import ScriptedUpstream

CHAT = "/v1/chat/completions"
MIB = 1024 * 1024


def chat_request(key: str, model: str, **fields: object) -> bytes:
    body = {"model": model, "messages": HELLO, **fields}
    return request_bytes("POST", CHAT, headers={"Authorization": f"Bearer {key}"}, json_body=body)


async def scripted(house: House, *scenarios: Scenario) -> list[str]:
    """A model for each scenario, all of them scripted at once: a script replaces the one before."""
    models = [await house.model() for _ in scenarios]
    await house.upstream.script(by_model=dict(zip(models, scenarios, strict=True)))
    return models


def text_of(stream: SseStream) -> str:
    chunks: list[Json] = [json.loads(event.data) for event in stream.events if event.data.startswith("{")]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


async def small_calls(house: House, key: str, model: str, took_ms: list[float], *, until: asyncio.Event) -> None:
    """Make small calls one after the other until the event, and tell how long each took."""
    async with RawConnection(house.gateway.port) as connection:
        while not until.is_set():
            began = time.monotonic()
            await connection.send(chat_request(key, model))
            assert (await connection.response()).status == 200
            took_ms.append((time.monotonic() - began - stalled_s(began)) * 1000)


async def test_twenty_streams_at_once_each_get_their_own_text_as_it_comes(house: House) -> None:
    key = await house.key()
    models = await scripted(house, *(Scenario(text=f"{i} " * 200, chunks=20, gap_ms=25) for i in range(20)))

    async def one(model: str) -> tuple[str, float]:
        began = time.monotonic()
        async with SseStream.opened(house.gateway.port, chat_request(key, model, stream=True)) as stream:
            events = await stream.rest()
            assert events[-1].is_done_marker
            return text_of(stream), time.monotonic() - began

    results = await asyncio.gather(*(one(model) for model in models))

    assert [text for text, _ in results] == [f"{i} " * 200 for i in range(20)]
    # 20 chunks at 25 ms are half a second; one after the other they would be ten.
    assert max(took_s for _, took_s in results) < 5


async def test_a_reader_who_stops_holds_back_the_upstream_and_costs_no_memory(house: House) -> None:
    """T083."""
    key, quick = await house.key(), await house.model()
    size = 24 * MIB
    slow = await house.model(Scenario(text="x" * size, chunks=size // 4096, completion_tokens=1000))
    assert (await house.chat(key, quick)).status == 200
    rss_before = house.gateway.rss_bytes()
    async with RawConnection(house.gateway.port, receive_buffer_bytes=4096) as connection:
        await connection.send(chat_request(key, slow, stream=True))
        await connection.receive_until(b"data: ")

        await connection.receive_slowly(8_000, bytes_per_second=8_000)
        sent: list[int] = []
        while len(sent) < 3 or sent[-1] != sent[-3]:  # until the upstream is held back
            (line,) = (await house.upstream.invoice()).of_model(slow).lines
            sent.append(line.bytes_delivered)
            await asyncio.sleep(0.2)
            assert len(sent) < 50, "the upstream was never held back"
        grown = house.gateway.rss_bytes() - rss_before
        answers = [await house.chat(key, quick) for _ in range(5)]

    assert sent[-1] < 18 * MIB, "kernel buffers on the way hold some megabytes; the rest waits at the upstream"
    assert grown < 12 * MIB, "of 24 that the upstream has; what else grows is the process warming up"
    assert [answer.status for answer in answers] == [200] * 5
    await house.upstream.settled(model=slow)


async def test_a_slow_reader_gets_every_byte_in_the_end(house: House) -> None:
    key = await house.key()
    text = "".join(f"{i:07d} " for i in range(40_000))
    model = await house.model(Scenario(text=text, chunks=400, completion_tokens=400))
    async with RawConnection(house.gateway.port, receive_buffer_bytes=4096) as connection:
        await connection.send(chat_request(key, model, stream=True))
        head = await connection.response_head()
        stream = SseStream(connection, head)
        for _ in range(20):
            await stream.take(1)
            await asyncio.sleep(0.02)
        events = await stream.rest()

    assert events[-1].is_done_marker
    assert text_of(stream) == text


async def test_one_connection_carries_many_calls_to_us_and_from_us(house: House) -> None:
    key, model = await house.key(), await house.model(endpoints=0)
    async with ScriptedUpstream() as upstream, RawConnection(house.gateway.port) as connection:
        await house.endpoint(model, api_base=upstream.base_url, health_check={"kind": "none"})
        for i in range(60):
            await connection.send(chat_request(key, model, stream=i % 3 == 0))
            answer = await connection.response()
            assert answer.status == 200
            assert answer.is_complete
            assert (answer.header("connection") or "keep-alive").lower() == "keep-alive"

        invoice = upstream.invoice()

    assert invoice.requests_by_model[model] == 60
    assert invoice.connections_accepted <= 3, "the upstream's connection is used again, too"


async def test_a_refusal_leaves_the_connection_usable(house: House) -> None:
    key, model = await house.key(), await house.model()
    async with RawConnection(house.gateway.port) as connection:
        for request, status in (
            (chat_request("wrong", model), 401),
            (chat_request(key, "no-such-model"), 404),
            (request_bytes("DELETE", CHAT), 405),
            (request_bytes("POST", CHAT, headers={"Authorization": f"Bearer {key}"}, json_body=[1]), 400),
            (chat_request(key, model), 200),
        ):
            await connection.send(request)
            assert (await connection.response()).status == status


async def test_pipelined_requests_are_answered_in_order(house: House) -> None:
    key = await house.key()
    slow, fast = await scripted(house, Scenario(text="slow", delay_ms=150), Scenario(text="fast"))

    answers = await pipelined(house.gateway.port, [chat_request(key, model) for model in (slow, fast, slow, fast)])

    texts = [json.loads(answer.body)["choices"][0]["message"]["content"] for answer in answers]
    assert texts == ["slow", "fast", "slow", "fast"]
    assert len({answer.header("x-request-id") for answer in answers}) == 4


@pytest.mark.parametrize("path", [CHAT, "/v1/models"])
async def test_two_hundred_headers_are_too_many(house: House, path: str) -> None:
    key = await house.key()
    headers = [("Authorization", f"Bearer {key}"), *((f"X-Filler-{i}", "x") for i in range(200))]

    answer = await raw_http.call(
        house.gateway.port, "POST" if path == CHAT else "GET", path, headers=headers, json_body={"model": "m"}
    )

    assert (answer.status, error_of(answer)["code"]) == (431, "headers_too_large")


async def test_prompts_of_a_megabyte_are_served_and_do_not_stall_small_calls(house: House) -> None:
    key, small, large = await house.key(), await house.model(), await house.model()
    prompt = [{"role": "user", "content": "All work and no play. " * (MIB // 22)}]
    done, took_ms = asyncio.Event(), list[float]()
    neighbour = asyncio.create_task(small_calls(house, key, small, took_ms, until=done))

    while len(took_ms) < 20 and not neighbour.done():
        answers = await asyncio.gather(*(house.chat(key, large, messages=prompt) for _ in range(3)))
        assert [answer.status for answer in answers] == [200] * 3
    done.set()

    await neighbour
    # Of twenty the slowest one says as much about who else uses the processor; most of them say what a large call holds up.
    assert median(took_ms) < 250, f"{sorted(took_ms)}"
    assert max(took_ms) < 1500, f"{sorted(took_ms)[-5:]}"
    sizes = {line.body_bytes for line in (await house.upstream.invoice()).of_model(large).lines}
    assert all(size > MIB - 100 for size in sizes)


async def test_a_body_that_comes_in_many_small_pieces_is_read_whole(house: House) -> None:
    key, model = await house.key(), await house.model()
    marks = "".join(f"<{i}>" for i in range(2_000))
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": marks}]}).encode()
    pieces = [body[at : at + 7] for at in range(0, len(body), 7)]
    headers = [
        ("Authorization", f"Bearer {key}"),
        ("Content-Type", "application/json"),
        ("Transfer-Encoding", "chunked"),
    ]

    async with RawConnection(house.gateway.port) as connection:
        await connection.send(request_bytes("POST", CHAT, headers=headers))
        framed = chunked(*pieces)
        await connection.send_slowly(framed, piece_bytes=1_000, pause_s=0.002)
        answer = await connection.response()

    assert answer.status == 200
    (line,) = (await house.upstream.invoice()).of_model(model).lines
    assert json.loads(line.body)["messages"][0]["content"] == marks


async def test_a_head_that_comes_byte_by_byte_is_understood(house: House) -> None:
    key, model = await house.key(), await house.model()
    async with RawConnection(house.gateway.port) as connection:
        await connection.send_slowly(chat_request(key, model), piece_bytes=1, pause_s=0)
        assert (await connection.response()).status == 200
