"""SIGTERM: nobody who calls shall notice."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.house import HELLO, House, Json, error_of, request_id_of
from tests.kit import raw_http
from tests.kit.processes import GatewayProcess
from tests.kit.raw_http import RawConnection, SseStream, request_bytes
from tests.kit.scenario import Scenario
from tests.kit.stalls import stalled_s


def request(key: str, model: str, *, is_last: bool = False, **fields: object) -> bytes:
    return request_bytes(
        "POST",
        "/v1/chat/completions",
        headers={"Authorization": f"Bearer {key}"} | ({"Connection": "close"} if is_last else {}),
        json_body={"model": model, "messages": HELLO, **fields},
    )


async def ready_status(gateway: GatewayProcess) -> int:
    """0: nobody listens any more."""
    try:
        return (await raw_http.call(gateway.port, "GET", "/health/ready", timeout_s=5)).status
    except (OSError, EOFError):
        return 0


def taken_in(port: int) -> int:
    """Callers' connections that a process has taken in: those in the kernel's queue have no inode yet."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == "01" and row[9] != "0" for row in rows)


@pytest.mark.parametrize("entry", ["serve", "uvicorn"])
async def test_fifty_streams_finish_while_readiness_says_no_at_once(house: House, entry: str) -> None:
    """T129."""
    key = await house.key()
    model = await house.model(Scenario(chunks=40, completion_tokens=40, gap_ms=100))
    env = house.env | {"SHUTDOWN_GRACE_SECONDS": "20", "SHUTDOWN_DELAY_SECONDS": "0.5"}
    async with GatewayProcess(env, entry=entry, name="draining") as gateway, AsyncExitStack() as opened:  # type: ignore[arg-type]
        streams = [
            await opened.enter_async_context(SseStream.opened(gateway.port, request(key, model, stream=True)))
            for _ in range(50)
        ]
        asked_s = time.monotonic()
        gateway.terminate()
        async with asyncio.timeout(20):
            while await ready_status(gateway) == 200:
                await asyncio.sleep(0.01)
        assert time.monotonic() - asked_s < 2 + stalled_s(asked_s), "long before the streams are over"
        endings = await asyncio.gather(*(stream.rest() for stream in streams))
        assert all(events[-1].is_done_marker for events in endings)
        assert await gateway.wait(timeout_s=15) in (0, -signal.SIGTERM)

    for stream in streams:
        record = await house.record(stream.head.header("x-request-id") or "")
        assert record["outcome"] == "ok"


async def test_while_proxies_let_go_calls_are_served_and_connections_closed(house: House) -> None:
    key, model = await house.key(), await house.model()
    env = house.env | {"SHUTDOWN_DELAY_SECONDS": "30"}
    async with GatewayProcess(env, entry="serve", name="leaving") as gateway, RawConnection(gateway.port) as kept:
        await kept.send(request(key, model))
        assert (await kept.response()).header("connection") is None
        gateway.terminate()
        async with asyncio.timeout(10):
            while await ready_status(gateway) != 503:
                await asyncio.sleep(0.01)

        await kept.send(request(key, model))  # both at once: when nobody has called for a second it leaves
        last, new = await asyncio.gather(
            kept.response(),
            raw_http.call(gateway.port, "GET", "/v1/models", headers={"Authorization": f"Bearer {key}"}),
        )

        assert (last.status, last.header("connection")) == (200, "close")
        assert (new.status, new.header("connection")) == (200, "close")
        # Nobody calls any more, so it does not wait the half minute out.
        assert await gateway.wait(timeout_s=15) in (0, -signal.SIGTERM)


@pytest.mark.parametrize("entry", ["serve", "uvicorn"])
async def test_what_outlasts_the_grace_is_told_so_billed_and_recorded(house: House, entry: str) -> None:
    """T130."""
    key = await house.key()
    model, slow = await house.model(), await house.model()
    endless = Scenario(chunks=600, completion_tokens=600, gap_ms=50)
    await house.upstream.script(by_model={model: endless, slow: Scenario(delay_ms=30_000)})
    env = house.env | {"SHUTDOWN_GRACE_SECONDS": "1"}
    async with GatewayProcess(env, entry=entry, name="cutting") as gateway, AsyncExitStack() as opened:  # type: ignore[arg-type]
        stream = await opened.enter_async_context(SseStream.opened(gateway.port, request(key, model, stream=True)))
        await stream.take(5)
        unary = await opened.enter_async_context(RawConnection(gateway.port, timeout_s=20))
        await unary.send(request(key, slow))
        async with asyncio.timeout(10):
            while not (await house.upstream.invoice()).requests_by_model.get(slow):
                await asyncio.sleep(0.02)
        gateway.terminate()
        await asyncio.sleep(0.1)
        gateway.terminate()  # an impatient operator
        events = await stream.rest()
        answer = await unary.response()
        assert await gateway.wait(timeout_s=10) in (0, -signal.SIGTERM)

    (error,) = [json.loads(event.data)["error"] for event in events if '"error"' in event.data]
    assert error["code"] == "draining"
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (503, "draining")
    assert answer.header("retry-after")
    record = await house.record(stream.head.header("x-request-id") or "")
    assert (record["outcome"], record["usage_quality"]) == ("interrupted", "partial")
    assert record["cost_usd"] > "0.000000000"


async def test_calls_that_wait_for_their_limits_are_told_so_when_the_grace_is_over(house: House) -> None:
    """T130: they may wait for minutes; when the call that holds their slot is ended, none of them begins."""
    slots: Json = {"limits": [{"kind": "concurrency", "limit": 1, "window_seconds": 0}]}
    windows: Json = {"limits": [{"kind": "requests", "limit": 1, "window_seconds": 300}]}
    patient: Json = {"overflow": {"mode": "queue", "max_wait_seconds": 600}}
    slow, fast = await house.model(Scenario(delay_ms=60_000)), await house.model()
    busy, spent = await house.key(**slots, **patient), await house.key(**windows, **patient)
    env = house.env | {"SHUTDOWN_GRACE_SECONDS": "1", "SHUTDOWN_DELAY_SECONDS": "0.1"}
    async with GatewayProcess(env, name="draining") as gateway:
        draining = replace(house, gateway=gateway)
        assert (await draining.chat(spent, fast)).status == 200
        running = asyncio.create_task(draining.chat(busy, slow))
        async with asyncio.timeout(10):
            while not (await house.upstream.invoice()).requests_by_model.get(slow):
                await asyncio.sleep(0.01)
        waiting = [asyncio.create_task(draining.chat(*call)) for call in ((busy, slow), (busy, slow), (spent, fast))]
        async with asyncio.timeout(10):
            while taken_in(gateway.port) < 1 + len(waiting):
                await asyncio.sleep(0.01)
        gateway.terminate()
        answers = await asyncio.gather(running, *waiting)
        assert await gateway.wait(timeout_s=20) in (0, -signal.SIGTERM)

    assert [(answer.status, error_of(answer)["code"]) for answer in answers] == [(503, "draining")] * 4
    assert (await house.upstream.invoice()).requests_by_model[slow] == 1
    for answer, outcome in zip(answers, ["interrupted", *["refused"] * 3], strict=True):
        assert (await house.record(request_id_of(answer)))["outcome"] == outcome


async def test_workers_are_replaced_one_by_one_without_a_call_noticing(house: House) -> None:
    """T131: SIGHUP to the supervisor."""
    key, model = await house.key(), await house.model(Scenario(chunks=5, gap_ms=20))
    env = house.env | {"WORKERS": "2", "SHUTDOWN_DELAY_SECONDS": "0.3"}
    async with GatewayProcess(env, entry="serve", name="reloading") as gateway:
        await served(gateway, key, model)
        statuses: list[int] = []
        is_over = asyncio.Event()

        async def load() -> None:
            while not is_over.is_set():
                answer = await raw_http.exchange(
                    gateway.port, request(key, model, is_last=True, stream=True), timeout_s=20
                )
                statuses.append(200 if b"[DONE]" in answer and answer.startswith(b"HTTP/1.1 200") else 0)

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(load())
            gateway.signal(signal.SIGHUP)
            async with asyncio.timeout(60):
                while gateway.log_text().count("Finished server process") < 2:
                    await asyncio.sleep(0.1)
            is_over.set()

    assert len(statuses) > 20
    assert set(statuses) == {200}


async def test_several_workers_leave_no_caller_in_the_kernels_queue(house: House) -> None:
    """The supervisor holds the socket too: while it waits for its workers nobody may be taken in whom nobody answers."""
    key = await house.key()
    fast, model = await house.model(), await house.model(Scenario(chunks=80, completion_tokens=80, gap_ms=80))
    env = house.env | {"WORKERS": "2", "SHUTDOWN_DELAY_SECONDS": "0.3", "SHUTDOWN_GRACE_SECONDS": "20"}
    async with GatewayProcess(env, entry="serve", name="workers") as gateway:
        await served(gateway, key, fast)
        async with SseStream.opened(gateway.port, request(key, model, stream=True)) as stream:
            gateway.terminate()
            async with asyncio.timeout(15):
                while await ready_status(gateway) != 0:
                    await asyncio.sleep(0.02)
            assert gateway.returncode is None, "the stream still runs"
            assert (await stream.rest())[-1].is_done_marker
        assert await gateway.wait(timeout_s=15) in (0, -signal.SIGTERM)


async def served(gateway: GatewayProcess, key: str, model: str) -> None:
    """Until every worker knows the model."""
    in_a_row = 0
    async with asyncio.timeout(20):
        while in_a_row < 10:
            answer = await raw_http.exchange(gateway.port, request(key, model, is_last=True))
            in_a_row = in_a_row + 1 if answer.startswith(b"HTTP/1.1 200") else 0
