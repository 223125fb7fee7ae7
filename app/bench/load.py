"""The load generator. Run as `python -m app.bench.load`: one job a line on standard input, its result a line on standard output.

Closed loop: so many connections, each of which calls again as soon as it was answered; that shows what a call costs. Open loop: calls
start at a fixed rate whatever became of those before, and their time counts from when they were due; that shows what a caller waits.
"""

from __future__ import annotations

import asyncio
import math
import sys
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Final, cast

import msgspec
import uvloop

from app.bench.wire import Answer

PATIENCE_S: Final = 30.0
"""For what is still under way when the time is over."""


class Job(msgspec.Struct, frozen=True):
    host: str
    port: int
    request: bytes
    connections: int
    duration_s: float
    rate: float = 0.0
    """Calls per second; 0: closed loop."""
    spread_s: float = 0.0
    """Over how long the first calls of a closed loop begin, evenly."""


@dataclass(slots=True)
class Result:
    """`calls` are all that were answered well, also after the time was over; `in_time` those before."""

    calls: int = 0
    in_time: int = 0
    failed: int = 0
    first_problem: str = ""
    seconds: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    first_p50_ms: float = 0.0
    first_p99_ms: float = 0.0


class Caller(asyncio.Protocol):
    """One connection."""

    def __init__(self, play: Play) -> None:
        self._play = play
        self._transport: asyncio.WriteTransport | None = None
        self._answer: Answer | None = None
        self._due_s = 0.0
        self._first_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is one, and derives from nothing

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._answer is not None:
            self._answer = None
            self._play.ended(self, f"connection lost: {exc!r}")

    def call(self, due_s: float) -> None:
        self._due_s, self._first_s, self._answer = due_s, 0.0, Answer()
        if self._transport is None:
            self._answer = None
            self._play.ended(self, "the connection is closed")
        else:
            self._transport.write(self._play.job.request)

    def close(self) -> None:
        self._answer = None
        if self._transport is not None:
            self._transport.abort()

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if answer is None:
            return
        answer.feed(data)
        if answer.has_body and not self._first_s:
            self._first_s = perf_counter()
        if answer.is_over:
            self._answer = None
            if answer.status == 200:
                self._play.answered(self, self._due_s, self._first_s)
            else:
                self._play.ended(self, f"status {answer.status}: {data[-300:]!r}")


class Play:
    """One job being played."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.result = Result()
        self._loop = asyncio.get_running_loop()
        self._times: list[float] = []
        self._firsts: list[float] = []
        self._idle: list[Caller] = []
        self._callers: list[Caller] = []
        self._under_way = 0
        self._ends_s = 0.0
        self._is_closed_loop = job.rate == 0
        self._all_done = asyncio.Event()

    async def run(self) -> Result:
        job = self.job
        for _ in range(job.connections):
            self._idle.append(await self._connected())
        began_s = perf_counter()
        self._ends_s = began_s + job.duration_s
        if self._is_closed_loop:
            callers, self._idle = self._idle, []
            self._under_way = len(callers)
            for number, caller in enumerate(callers):
                self._loop.call_later(job.spread_s * number / len(callers), self._begin, caller)
        else:
            await self._at_rate(began_s)
        try:
            async with asyncio.timeout(job.duration_s + PATIENCE_S):
                await self._all_done.wait()
        except TimeoutError:
            self.result.failed += self._under_way
            self.result.first_problem = self.result.first_problem or "no answer came"
        for caller in self._callers:
            caller.close()
        return self._summed()

    def answered(self, caller: Caller, due_s: float, first_s: float) -> None:
        now = perf_counter()
        self.result.calls += 1
        if now <= self._ends_s:
            self.result.in_time += 1
        self._times.append(now - due_s)
        self._firsts.append(first_s - due_s)
        self._next(caller, now)

    def ended(self, caller: Caller, problem: str) -> None:
        """A call that was not answered well. Its connection is not used again."""
        self.result.failed += 1
        self.result.first_problem = self.result.first_problem or problem
        caller.close()
        self._under_way -= 1
        self._look_whether_done()

    def _next(self, caller: Caller, now: float) -> None:
        self._under_way -= 1
        if self._is_closed_loop and now < self._ends_s:
            self._call(caller, now)
        else:
            self._idle.append(caller)
            self._look_whether_done()

    def _begin(self, caller: Caller) -> None:
        caller.call(perf_counter())

    def _call(self, caller: Caller, due_s: float) -> None:
        self._under_way += 1
        caller.call(due_s)

    def _look_whether_done(self) -> None:
        if not self._under_way and (self._is_closed_loop or perf_counter() >= self._ends_s):
            self._all_done.set()

    async def _at_rate(self, began_s: float) -> None:
        number = 0
        while (due_s := began_s + number / self.job.rate) < self._ends_s:
            await asyncio.sleep(max(0.0, due_s - perf_counter()))
            while self._idle and not self._idle[-1].is_open:
                self._idle.pop()
            self._call(self._idle.pop() if self._idle else await self._connected(), due_s)
            number += 1
        await asyncio.sleep(max(0.0, self._ends_s - perf_counter()))
        self._look_whether_done()

    async def _connected(self) -> Caller:
        _, caller = await self._loop.create_connection(lambda: Caller(self), self.job.host, self.job.port)
        self._callers.append(caller)
        return caller

    def _summed(self) -> Result:
        result = self.result
        result.seconds = self.job.duration_s
        if self._times:
            result.p50_ms, result.p99_ms = _percentiles(self._times)
            result.first_p50_ms, result.first_p99_ms = _percentiles(self._firsts)
        return result


def _percentiles(seconds: list[float]) -> tuple[float, float]:
    """The median and the 99th, in milliseconds."""
    ordered = sorted(seconds)
    last = len(ordered) - 1
    return ordered[last // 2] * 1000, ordered[math.ceil(last * 0.99)] * 1000


async def _work() -> None:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.buffer.readline):
        result = await Play(msgspec.json.decode(line, type=Job)).run()
        sys.stdout.buffer.write(msgspec.json.encode(asdict(result)) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    uvloop.run(_work())
