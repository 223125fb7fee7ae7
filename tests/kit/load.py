"""A steady load: so many calls a second over kept connections, whatever the answers are and however long they take."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from tests.kit.stalls import stalled_s


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one call came to. `at` is in Unix seconds, as the upstream's invoice has it; `took_s` is without the
    time in which the machine stood still."""

    at: float
    took_s: float
    status: int
    code: str | None
    retry_after: str | None
    request_id: str


class Load:
    """Calls of one model with one key. `start` begins, `stop` ends and gives all outcomes."""

    def __init__(self, port: int, key: str, model: str, *, per_second: float) -> None:
        self._port = port
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}]}).encode()
        self._request = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n"
            + f"Authorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        self._pause_s = 1 / per_second
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._is_over = False
        self._driver: asyncio.Task[None] | None = None
        self.outcomes: list[Outcome] = []

    def start(self) -> None:
        self._driver = asyncio.create_task(self._drive())

    async def stop(self) -> list[Outcome]:
        self._is_over = True
        assert self._driver is not None
        await self._driver
        for _, writer in self._idle:
            writer.close()
        return sorted(self.outcomes, key=lambda outcome: outcome.at)

    async def until(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _drive(self) -> None:
        began = time.monotonic()
        sent = 0
        async with asyncio.TaskGroup() as calls:
            while not self._is_over:
                # Without the time in which the machine stood still: after a pause no crowd is to come that nobody sent.
                due = int((time.monotonic() - began - stalled_s(began)) / self._pause_s) + 1
                for _ in range(sent, due):
                    calls.create_task(self._call())
                sent = due
                await asyncio.sleep(self._pause_s)

    async def _asked(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, str]:
        """Send the request; a kept connection that the server has closed meanwhile is given up for another one."""
        while True:
            is_kept = bool(self._idle)
            reader, writer = self._idle.pop() if is_kept else await asyncio.open_connection("127.0.0.1", self._port)
            try:
                writer.write(self._request)
                return reader, writer, (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()
                if not is_kept:
                    raise

    async def _call(self) -> None:
        at, began = time.time(), time.monotonic()
        reader, writer, head = await self._asked()
        lines = head.split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        body = await reader.readexactly(int(headers["content-length"]))
        self._idle.append((reader, writer))
        status = int(lines[0].split(" ")[1])
        code = None if status == 200 else msgspec.json.decode(body)["error"]["code"]
        took_s = time.monotonic() - began - stalled_s(began)
        request_id = headers.get("x-request-id", "")
        self.outcomes.append(Outcome(at, took_s, status, code, headers.get("retry-after"), request_id))


def busiest(times: Sequence[float], start: float, window_s: float = 10.0) -> int:
    """How many of these times fall into the window that begins at `start`."""
    return sum(start <= at < start + window_s for at in times)


def percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
