"""Three gateways behind the shipped nginx, each restarted in turn while calls go on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from tests.e2e.house import HELLO, House
from tests.kit import raw_http
from tests.kit.front import Front
from tests.kit.processes import GatewayProcess, free_port
from tests.kit.raw_http import request_bytes
from tests.kit.scenario import Scenario

RATE_PER_S = 50
STREAM_CHUNKS = 20


@dataclass(slots=True)
class Load:
    """So many calls a second, a third of them streams, until it is told to end. What went wrong is kept."""

    port: int
    key: str
    unary: str
    streamed: str
    faults: list[str] = field(default_factory=list)
    calls: int = 0
    is_over: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        began, number = loop.time(), 0
        async with asyncio.TaskGroup() as group:
            while not self.is_over.is_set():
                group.create_task(self._one(number))
                number += 1
                await asyncio.sleep(max(0.0, began + number / RATE_PER_S - loop.time()))

    async def _one(self, number: int) -> None:
        is_stream = number % 3 == 0
        raw = request_bytes(
            "POST",
            "/v1/chat/completions",
            headers={"Authorization": f"Bearer {self.key}", "Connection": "close"},
            json_body={
                "model": self.streamed if is_stream else self.unary,
                "messages": HELLO,
                **({"stream": True} if is_stream else {}),
            },
        )
        try:
            answer = await raw_http.exchange(self.port, raw, timeout_s=30)
        except OSError as error:
            self.faults.append(repr(error))
            return
        self.calls += 1
        if not answer.startswith(b"HTTP/1.1 200"):
            self.faults.append(answer[:400].decode("latin-1"))
        elif is_stream and not (b"data: [DONE]" in answer and answer.count(b'"content"') >= STREAM_CHUNKS):
            self.faults.append(f"cut: {answer[-300:].decode('latin-1')}")


async def test_no_call_fails_and_no_stream_is_cut_while_replicas_are_replaced(house: House) -> None:
    """T132: 50 calls a second, streams of a second among them; each reaches an upstream once."""
    key = await house.key()
    unary, streamed = await house.model(), await house.model()
    scenario = Scenario(chunks=STREAM_CHUNKS, completion_tokens=STREAM_CHUNKS, gap_ms=50)
    await house.upstream.script(by_model={streamed: scenario, unary: Scenario(delay_ms=20)})
    env = house.env | {"SHUTDOWN_GRACE_SECONDS": "10", "SHUTDOWN_DELAY_SECONDS": "1.5", "TRUSTED_PROXIES": "127.0.0.1"}
    ports = [free_port() for _ in range(3)]
    entries = ("serve", "uvicorn", "serve")
    gateways = [
        GatewayProcess(env, entry=entry, port=port, name=f"rolling{port}")  # type: ignore[arg-type]
        for entry, port in zip(entries, ports, strict=True)
    ]
    try:
        await asyncio.gather(*(gateway.start() for gateway in gateways))
        async with Front(ports) as front:
            for gateway in gateways:
                async with asyncio.timeout(10):
                    while (await raw_http.call(gateway.port, "GET", "/health/ready")).status != 200:
                        await asyncio.sleep(0.05)
            load = Load(front.port, key, unary, streamed)
            async with asyncio.TaskGroup() as group:
                group.create_task(load.run())
                await asyncio.sleep(1)
                for gateway in gateways:
                    gateway.terminate()
                    await gateway.wait(timeout_s=40)
                    await gateway.start()
                await asyncio.sleep(1)
                load.is_over.set()
    finally:
        for gateway in gateways:
            gateway.destroy()

    assert load.faults == []
    assert load.calls > 200
    invoice = await house.upstream.settled()
    assert len(invoice.of_model(unary).lines) + len(invoice.of_model(streamed).lines) == load.calls
