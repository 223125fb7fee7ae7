"""Three times what one process can carry: how much of its capacity is still served, what a refusal costs, how health and pages fare.

Capacity is what a closed loop gets through; before and after every flood, for the machine's moods. The flood comes at three times its rate
whatever is answered, from callers who hang up after `PATIENCE_S`. The gateway has a core to itself, all else shares the others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import mean, median
from typing import Final

import msgspec
import uvloop

from app.bench import load
from app.bench.plan import UNARY, Options
from app.bench.processes import BenchError, Program, cpu_s, python
from app.bench.stage import OWN_ENV, Gateway, Stage, Target, staged, until_idle
from bench import flood
from bench.measure import Ratio
from tests.kit import raw_http

TIMES: Final = 3.0
PATIENCE_S: Final = 4.0
CALLERS: Final = 64
"""Of the closed loop: enough that the gateway is never idle, too few to be late."""
WARM_UP_S: Final = 2.0
REST_S: Final = 2.0
"""After a flood, before the closed loop is tried."""
OVER_WITHIN_S: Final = 10.0
"""After a flood: from then on nobody is refused any more, or the closed loop that begins then says so."""
LOOK_EVERY_S: Final = 0.1
LOOKED_AT: Final = ("/health", "/health/ready", "/admin/api/keys", "/metrics")


@dataclass(slots=True)
class Outcome:
    peaks: list[float] = field(default_factory=list)
    """Calls per second of the closed loop, before, between and after the floods."""
    served_us: list[float] = field(default_factory=list)
    """CPU of the gateway for each of its calls."""
    floods: list[flood.Result] = field(default_factory=list)
    flood_cpu_s: list[float] = field(default_factory=list)
    """CPU of the gateway for each flood, until it had written what that left behind."""
    over_s: list[float] = field(default_factory=list)
    """How long after each flood the closed loop began that was served whole."""
    looks_ms: list[float] = field(default_factory=list)
    """What health, metrics and administration took during floods."""
    failed_looks: list[str] = field(default_factory=list)

    @property
    def shares(self) -> list[float]:
        """Of the capacity around each flood, what was served in it. Where others use the gateway's core it says little."""
        around = (mean(pair) for pair in pairwise(self.peaks))
        return [each.served / each.seconds / peak for each, peak in zip(self.floods, around, strict=True)]

    @property
    def efficiencies(self) -> list[float]:
        """Of the calls that the CPU spent on each flood would have served around it, those that it did serve."""
        around = (mean(pair) for pair in pairwise(self.served_us))
        return [
            each.served * served_us / 1e6 / cpu_s
            for each, served_us, cpu_s in zip(self.floods, around, self.flood_cpu_s, strict=True)
        ]

    @property
    def refused_us(self) -> float:
        """CPU of all in the floods that was not spent on served calls, for each refused one."""
        served_us = median(self.served_us)
        spent_us = sum(self.flood_cpu_s) * 1e6 - sum(each.served for each in self.floods) * served_us
        return spent_us / max(1, sum(each.refused for each in self.floods))

    @property
    def lines(self) -> list[str]:
        """All that is promised of an overload, flood by flood."""
        each_flood = [
            f"served {share:.0%} of capacity ({efficiency:.0%} by CPU), {each.served:,} calls, p99 {each.served_p99_ms:.0f} ms; "
            f"refused {each.refused:,}, {each.hopeful:,} told when to come back, p50 {each.refused_p50_ms:.0f} ms, "
            f"p95 {each.refused_p95_ms:.0f} ms; gave up {each.gave_up:,}; served whole again within {over_s:.0f} s"
            for share, efficiency, each, over_s in zip(
                self.shares, self.efficiencies, self.floods, self.over_s, strict=True
            )
        ]
        looked = (
            f"health, metrics and administration: p95 {self.looks_p95_ms:.0f} ms, slowest {max(self.looks_ms):.0f} ms"
        )
        return [*each_flood, f"{looked}, failed: {self.failed_looks or 'none'}"]

    @property
    def looks_p95_ms(self) -> float:
        return sorted(self.looks_ms)[int(len(self.looks_ms) * 0.95)]


async def overloaded(*, rounds: int, peak_s: float, flood_s: float, times: float = TIMES) -> Outcome:
    outcome = Outcome()
    async with staged(Options(rounds=1, seconds=peak_s, starts=0)) as stage:
        (target,) = [each for each in stage.targets if each.gateway is not None]
        assert target.gateway is not None
        beside = target.gateway.program
        home = beside.home.parent / "flood"
        flooding = Program(
            "flood", python("-m", "bench.flood"), home, OWN_ENV, beside.keeper, stage.cores.rest, talks=True
        )
        flooding.launch()
        try:
            await _peak(stage, target, WARM_UP_S)
            outcome.peaks.append(await _peak(stage, target, peak_s, outcome))
            for _ in range(rounds):
                await _flood(flooding, target, outcome, flood_s, times)
                outcome.peaks.append(await _peak_after(stage, target, peak_s, outcome))
        finally:
            flooding.stop()
    return outcome


async def _peak(stage: Stage, target: Target, seconds: float, outcome: Outcome | None = None) -> float:
    """Calls per second. Raises: BenchError when one was not served."""
    job = msgspec.structs.replace(target.job(UNARY, seconds), connections=CALLERS)
    pid = target.pid or 0
    before_s = cpu_s(pid)
    line = await asyncio.to_thread(stage.load.ask, msgspec.json.encode(job))
    result = msgspec.json.decode(line, type=load.Result)
    if result.failed:
        raise BenchError(f"{result.failed} calls failed: {result.first_problem}")
    if outcome is not None:
        await until_idle(pid)
        outcome.served_us.append((cpu_s(pid) - before_s) / result.calls * 1e6)
    return result.in_time / result.seconds


async def _peak_after(stage: Stage, target: Target, seconds: float, outcome: Outcome) -> float:
    """As `_peak`, once it is served whole. Raises: BenchError when calls are refused long after the flood."""
    flooded = time.monotonic()
    while True:
        await asyncio.sleep(REST_S)
        since_s = time.monotonic() - flooded
        try:
            peak = await _peak(stage, target, seconds, outcome)
        except BenchError:
            if since_s > OVER_WITHIN_S:
                raise
        else:
            outcome.over_s.append(since_s)
            return peak


async def _flood(flooding: Program, target: Target, outcome: Outcome, seconds: float, times: float) -> None:
    assert target.gateway is not None
    asked = target.job(UNARY, seconds)
    job = flood.Job(
        host=asked.host,
        port=asked.port,
        request=asked.request,
        rate=outcome.peaks[-1] * times,
        duration_s=seconds,
        patience_s=PATIENCE_S,
        connections=CALLERS,
    )
    pid = target.pid or 0
    before_s = cpu_s(pid)
    looking = asyncio.create_task(_look(target.gateway, outcome))
    line = await asyncio.to_thread(flooding.ask, msgspec.json.encode(job))
    looking.cancel()
    await asyncio.wait([looking])
    await until_idle(pid)
    outcome.flood_cpu_s.append(cpu_s(pid) - before_s)
    outcome.floods.append(msgspec.json.decode(line, type=flood.Result))


async def _look(gateway: Gateway, outcome: Outcome) -> None:
    """Ask for health, metrics and administration, one after the other, until cancelled."""
    headers = {"Authorization": f"Bearer {gateway.admin_token}"}
    while True:
        for path in LOOKED_AT:
            began_s = time.perf_counter()
            try:
                answer = await raw_http.call(gateway.port, "GET", path, headers=headers, timeout_s=10)
            except (OSError, EOFError, TimeoutError) as fault:
                outcome.failed_looks.append(f"{path}: {fault!r}")
                continue
            outcome.looks_ms.append((time.perf_counter() - began_s) * 1000)
            if answer.status != 200:
                outcome.failed_looks.append(f"{path}: {answer.status}")
            await asyncio.sleep(LOOK_EVERY_S)


async def overload(*, is_short: bool) -> Sequence[Ratio]:
    """The first ratio is the share of what is served at all, upside down: 1.25 x means four calls in five."""
    seconds = {"peak_s": 4.0, "flood_s": 10.0} if is_short else {"peak_s": 8.0, "flood_s": 60.0}
    outcome = await overloaded(rounds=1 if is_short else 3, **seconds)
    at_peak_us, served_us = 1e6 / median(outcome.peaks), median(outcome.served_us)
    load = f"overload: {TIMES:.0f} times the load"
    served = sum(each.served for each in outcome.floods)
    return [
        Ratio(f"{load}, time of a served call", at_peak_us / median(outcome.shares), "at capacity", at_peak_us),
        Ratio(
            f"{load}, CPU of a served call, all included",
            sum(outcome.flood_cpu_s) / served * 1e6,
            "at capacity",
            served_us,
        ),
        Ratio(f"{load}, CPU of a refused call", outcome.refused_us, "of a served one", served_us),
    ]


def main() -> None:
    """`python -m bench.overload`: the long form, told flood by flood."""
    outcome = uvloop.run(overloaded(rounds=3, peak_s=8.0, flood_s=60.0))
    for line in outcome.lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
