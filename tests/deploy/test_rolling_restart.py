"""Three gateways behind the shipped nginx, each restarted in turn while calls go on."""

from __future__ import annotations

import asyncio

from tests.e2e.house import House
from tests.kit import raw_http
from tests.kit.front import Front
from tests.kit.mixed_load import STREAMED, UNARY, MixedLoad
from tests.kit.processes import GatewayProcess, free_port


async def test_no_call_fails_and_no_stream_is_cut_while_replicas_are_replaced(house: House) -> None:
    """T132: 50 calls a second, streams of a second among them; each reaches an upstream once."""
    key = await house.key()
    unary, streamed = await house.model(), await house.model()
    await house.upstream.script(by_model={streamed: STREAMED, unary: UNARY})
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
                async with asyncio.timeout(30):
                    while (await raw_http.call(gateway.port, "GET", "/health/ready")).status != 200:
                        await asyncio.sleep(0.05)
            load = MixedLoad(front.port, [key], unary, streamed)
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
