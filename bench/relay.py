"""The outgoing client: one exchange, and one streamed chunk. The floor is a bare protocol that reads no HTTP worth the name.

Beside it the candidates that it was chosen from, where they are installed, in the same rounds.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import aiohttp

from app.bench.load import Job, Play
from app.bench.wire import STREAM_CHUNKS, request
from app.domain.egress import LAPTOP
from app.providers.transport import Deadlines, Outgoing, Transport
from bench.measure import Ratio, in_turns

CALLERS = 32


@asynccontextmanager
async def upstream() -> AsyncIterator[int]:
    """The bench's own upstream, in a process of its own. Yields its port."""
    process = subprocess.Popen(  # noqa: ASYNC220 - once, and it answers at once
        [sys.executable, "-m", "app.bench.upstream", "0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait(10)


class Clients:
    """Each makes `each` calls on every one of `CALLERS` at once; returns how many in all."""

    def __init__(self, port: int, *, is_stream: bool, each: int) -> None:
        self.whole = request(host="127.0.0.1", key="k", model="bench", is_stream=is_stream, is_paced=False)
        self.body = self.whole.partition(b"\r\n\r\n")[2]
        self.url = f"http://127.0.0.1:{port}/v1/chat/completions"
        self.port, self.each = port, each

    async def _together(self, one: Any) -> int:
        async def caller() -> None:
            for _ in range(self.each):
                await one()

        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(caller())
        return CALLERS * self.each

    async def bare(self) -> int:
        seconds = self.each / 100
        result = await Play(Job("127.0.0.1", self.port, self.whole, CALLERS, seconds)).run()
        return result.calls

    async def ours(self, transport: Transport) -> int:
        async def one() -> None:
            deadlines = Deadlines(5, 30, 30, monotonic() + 60)
            headers = {"Content-Type": "application/json", "Authorization": "Bearer sk-bench"}
            async with transport.opened(Outgoing("POST", self.url, deadlines, headers, self.body)) as exchange:
                async for _ in exchange.chunks():
                    pass

        return await self._together(one)

    async def aiohttps(self, session: aiohttp.ClientSession) -> int:
        async def one() -> None:
            headers = {"Content-Type": "application/json", "Authorization": "Bearer sk-bench"}
            async with session.post(self.url, data=self.body, headers=headers) as answer:
                async for _ in answer.content.iter_any():
                    pass

        return await self._together(one)

    async def pyreqwests(self, client: Any) -> int:
        async def one() -> None:
            built = client.post(self.url).headers({"content-type": "application/json", "authorization": "Bearer x"})
            async with built.body_bytes(self.body).build_streamed() as answer:
                while await answer.body_reader.read_chunk() is not None:
                    pass

        return await self._together(one)


async def relay(*, is_short: bool, is_stream: bool = False) -> list[Ratio]:
    """Ours first, then the other candidates, each beside the same floor."""
    each = (5 if is_stream else 30) if is_short else (40 if is_stream else 300)
    what = f"stream of {STREAM_CHUNKS} chunks" if is_stream else "exchange"
    async with contextlib.AsyncExitStack() as stack:
        clients = Clients(await stack.enter_async_context(upstream()), is_stream=is_stream, each=each)
        transport = Transport(LAPTOP)
        stack.push_async_callback(transport.close)
        connector = aiohttp.TCPConnector(limit=0)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector, auto_decompress=False))
        names = ["ours", "aiohttp"]
        works = [lambda: clients.ours(transport), lambda: clients.aiohttps(session)]
        if importlib.util.find_spec("pyreqwest") is not None:
            client = await stack.enter_async_context(_pyreqwest())
            names.append("pyreqwest")
            works.append(lambda: clients.pyreqwests(client))
        floor, *costs = await in_turns(clients.bare, *works)
    return [
        Ratio(f"relay: one {what} with {name}", cost, "a bare protocol", floor)
        for name, cost in zip(names, costs, strict=True)
    ]


def _pyreqwest() -> Any:
    """By name, so that nothing needs it installed."""
    return importlib.import_module("pyreqwest.client").ClientBuilder().build()
