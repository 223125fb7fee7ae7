"""More calls than are answered: so many a second, whatever becomes of those before. Run as `python -m bench.flood`, a job on standard
input, its result on standard output.

A caller who is not answered in his patience hangs up. Connections are kept as long as they are answered on; one who finds none opens one.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Final, cast

import msgspec
import uvloop

from app.bench.wire import Answer

STEP_S: Final = 0.001
SWEEP_S: Final = 0.05


class Job(msgspec.Struct, frozen=True):
    host: str
    port: int
    request: bytes
    rate: float
    duration_s: float
    patience_s: float
    connections: int
    """Open before it begins."""
    most_connections: int = 2_000


@dataclass(slots=True)
class Result:
    served: int = 0
    """Answered with 200, in time."""
    refused: int = 0
    hopeful: int = 0
    """Of those refused, how many were told when to come back."""
    gave_up: int = 0
    unsent: int = 0
    """There were too many connections already."""
    broken: int = 0
    first_problem: str = ""
    opened: int = 0
    seconds: float = 0.0
    served_p50_ms: float = 0.0
    served_p99_ms: float = 0.0
    refused_p50_ms: float = 0.0
    refused_p95_ms: float = 0.0
    behind_ms: float = 0.0
    """The generator's own worst lateness: what it adds to every time above."""
    by_second: list[int] = field(default_factory=list)
    """Served calls that were due in each."""


class Caller(asyncio.Protocol):
    __slots__ = ("_answer", "_flood", "_transport", "due_s", "first_data")

    def __init__(self, flood: Flood) -> None:
        self._flood = flood
        self._transport: asyncio.WriteTransport | None = None
        self._answer: Answer | None = None
        self.due_s = 0.0
        self.first_data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._answer is not None:
            self._answer = None
            self._flood.broke(f"connection lost: {exc!r}")

    def call(self, due_s: float) -> None:
        if self._transport is None:
            self._flood.broke("closed while idle")
            return
        self.due_s, self._answer = due_s, Answer()
        self._transport.write(self._flood.job.request)

    def give_up(self, due_s: float) -> bool:
        """Hang up, if it is still this call that is waited for."""
        if self._answer is None or self.due_s != due_s:
            return False
        self.close()
        return True

    def close(self) -> None:
        self._answer = None
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if answer is None:
            return
        if not answer.status:
            self.first_data = data
        answer.feed(data)
        if answer.is_over:
            self._answer = None
            self._flood.answered(self, answer.status)


class Flood:
    def __init__(self, job: Job) -> None:
        self.job = job
        self.result = Result(by_second=[0] * (int(job.duration_s) + 1))
        self._loop = asyncio.get_running_loop()
        self._idle: list[Caller] = []
        self._waiting: deque[tuple[float, Caller]] = deque()
        self._callers: set[Caller] = set()
        self._dialling = 0
        self._began_s = 0.0
        self._served: list[float] = []
        self._refused: list[float] = []

    async def run(self) -> Result:
        job, sent = self.job, 0
        async with asyncio.TaskGroup() as dialling:
            for _ in range(job.connections):
                self._idle.append(await self._connected())
            self._began_s = swept_s = perf_counter()
            while (now_s := perf_counter()) < self._began_s + job.duration_s:
                due = int((now_s - self._began_s) * job.rate)
                self.result.behind_ms = max(self.result.behind_ms, (due - sent) / job.rate * 1000)
                for number in range(sent, due):
                    self._call(self._began_s + number / job.rate, dialling)
                sent = max(sent, due)
                if now_s - swept_s > SWEEP_S:
                    swept_s = now_s
                    self._sweep(now_s)
                await asyncio.sleep(STEP_S)
        ends_s = perf_counter() + job.patience_s
        while self._waiting and perf_counter() < ends_s + 2 * SWEEP_S:
            await asyncio.sleep(SWEEP_S)
            self._sweep(perf_counter())
        for caller in list(self._callers):
            caller.close()
        return self._summed()

    def answered(self, caller: Caller, status: int) -> None:
        took_s = perf_counter() - caller.due_s
        if status == 200:
            self.result.served += 1
            self.result.by_second[int(caller.due_s - self._began_s)] += 1
            self._served.append(took_s)
        elif status == 503:
            self.result.refused += 1
            self.result.hopeful += b"\r\nretry-after: " in caller.first_data.lower()
            self._refused.append(took_s)
        else:
            self.broke(f"{caller.first_data[:400]!r}")
        self._idle.append(caller)

    def broke(self, problem: str) -> None:
        self.result.broken += 1
        self.result.first_problem = self.result.first_problem or problem

    def _call(self, due_s: float, dialling: asyncio.TaskGroup) -> None:
        while self._idle:
            caller = self._idle.pop()
            if caller.is_open:
                self._waiting.append((due_s, caller))
                caller.call(due_s)
                return
            self._callers.discard(caller)
        if len(self._callers) + self._dialling < self.job.most_connections:
            self._dialling += 1
            dialling.create_task(self._dial(due_s))
        else:
            self.result.unsent += 1

    async def _dial(self, due_s: float) -> None:
        try:
            async with asyncio.timeout(self.job.patience_s):
                caller = await self._connected()
        except TimeoutError:
            self.result.gave_up += 1
        except OSError as fault:
            self.broke(repr(fault))
        else:
            self._waiting.append((due_s, caller))
            caller.call(due_s)
        finally:
            self._dialling -= 1

    async def _connected(self) -> Caller:
        _, caller = await self._loop.create_connection(lambda: Caller(self), self.job.host, self.job.port)
        self._callers.add(caller)
        self.result.opened += 1
        return caller

    def _sweep(self, now_s: float) -> None:
        while self._waiting and self._waiting[0][0] + self.job.patience_s < now_s:
            due_s, caller = self._waiting.popleft()
            if caller.give_up(due_s):
                self._callers.discard(caller)
                self.result.gave_up += 1

    def _summed(self) -> Result:
        result = self.result
        result.seconds = self.job.duration_s
        result.served_p50_ms, result.served_p99_ms = _at(self._served, 0.5), _at(self._served, 0.99)
        result.refused_p50_ms, result.refused_p95_ms = _at(self._refused, 0.5), _at(self._refused, 0.95)
        return result


def _at(seconds: list[float], share: float) -> float:
    """That quantile, in milliseconds."""
    return sorted(seconds)[int(len(seconds) * share)] * 1000 if seconds else 0.0


async def _work() -> None:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.buffer.readline):
        result = await Flood(msgspec.json.decode(line, type=Job)).run()
        sys.stdout.buffer.write(msgspec.json.encode(asdict(result)) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    uvloop.run(_work())
