"""A name server that is slow for one host: nobody else waits for it. T106."""

from __future__ import annotations

import asyncio
import socket
import threading
from time import monotonic
from typing import Any

import pytest

from app.domain.egress import EgressPolicy
from app.providers.transport import Deadlines, ExchangeFailed, Outgoing, Transport
from tests.kit.stalls import stalled_s
from tests.kit.upstream import ScriptedUpstream

BODY = b'{"model":"m","messages":[]}'


def outgoing(host: str, port: int, connect_s: float) -> Outgoing:
    deadlines = Deadlines(connect_s, 5.0, 5.0, monotonic() + 10)
    return Outgoing("POST", f"http://{host}:{port}/v1/chat/completions", deadlines, {}, BODY)


async def test_a_slow_name_costs_its_own_calls_their_time_and_nobody_else_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    may_answer = threading.Event()
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, **kinds: Any) -> Any:
        asked.append(host)
        if host == "slow.test":
            may_answer.wait(30)
            raise socket.gaierror("no such name")
        return real("127.0.0.1", port, **kinds)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    transport = Transport(EgressPolicy.parse("loopback, slow.test, quick0.test, quick1.test, quick2.test, quick3.test"))

    async def failed_at_the_slow_one() -> ExchangeFailed:
        with pytest.raises(ExchangeFailed) as fault:
            async with transport.opened(outgoing("slow.test", upstream.port, 0.5)):
                raise AssertionError("nobody answers there")
        return fault.value

    async def longest_stall() -> float:
        longest = 0.0
        for _ in range(40):
            began = monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, monotonic() - began - 0.01 - stalled_s(began))
        return longest

    async with ScriptedUpstream() as upstream:
        try:
            slow = [asyncio.create_task(failed_at_the_slow_one()) for _ in range(50)]
            stall = asyncio.create_task(longest_stall())
            for number in range(4):
                # Its time to connect is a tenth of the slow one's delay: it waits for no thread.
                async with transport.opened(outgoing(f"quick{number}.test", upstream.port, 3.0)) as exchange:
                    assert exchange.status == 200
                    await exchange.read_all()
            faults = await asyncio.gather(*slow)

            assert {(fault.reason, fault.is_sent) for fault in faults} == {("connect_timeout", False)}
            assert asked.count("slow.test") == 1, "one lookup for all of them"
            assert await stall < 0.25, "50 ms on a machine that does nothing else"
        finally:
            may_answer.set()
            await transport.close()
