"""One run: round after round, each scenario against each target in turn, so that the machine's moods meet all alike."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import defaultdict
from dataclasses import dataclass, field

from app.bench.plan import Options, Scenario
from app.bench.stage import Measured, Stage, Target, staged
from app.torture.report import Progress

WARM_UP_S = 1.0
"""Connections, caches and the interpreter's own specialisation."""


@dataclass(slots=True)
class Outcome:
    """What a run found. Keyed by target and scenario."""

    options: Options
    is_pinned: bool = False
    targets: list[str] = field(default_factory=list)
    measured: dict[tuple[str, str], list[Measured]] = field(default_factory=lambda: defaultdict(list))
    idle_cpu: dict[str, float | None] = field(default_factory=dict)
    """Seconds of CPU a second that each uses while nobody calls."""
    memory_bytes: dict[str, int | None] = field(default_factory=dict)
    starts_s: dict[str, list[float]] = field(default_factory=dict)


def bench(options: Options, *, is_silent: bool) -> Outcome:
    """Measure. SIGTERM and Ctrl-C end it early, with everything it started."""
    with Progress(is_silent=is_silent) as progress:
        return asyncio.run(_ended_by_signals(options, progress))


async def _ended_by_signals(options: Options, progress: Progress) -> Outcome:
    task = asyncio.create_task(run(options, progress))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGHUP):
        with contextlib.suppress(ValueError, NotImplementedError):
            loop.add_signal_handler(number, task.cancel)
    return await task


async def run(options: Options, progress: Progress) -> Outcome:
    progress.say("Bench: starting PostgreSQL, Valkey, an upstream, the load and the gateway, all of its own.")
    outcome = Outcome(options)
    async with staged(options) as stage:
        outcome.is_pinned = stage.cores.are_apart
        outcome.targets = [target.name for target in stage.targets]
        for target in stage.targets:
            progress.show(f"warming up: {target.name}")
            for scenario in options.scenarios:
                if not scenario.is_paced:
                    await stage.measured(target, scenario, WARM_UP_S)
        for target in stage.targets:
            progress.show(f"idle: {target.name}")
            outcome.idle_cpu[target.name] = await stage.idle_cpu(target)
        await _rounds(stage, options, outcome, progress)
        for target in stage.targets:
            outcome.memory_bytes[target.name] = stage.worker_bytes(target)
        for target in stage.targets:
            if target.gateway is not None:
                progress.show(f"starting: {target.name}")
                outcome.starts_s[target.name] = [await target.gateway.timed_start() for _ in range(options.starts)]
    return outcome


async def _rounds(stage: Stage, options: Options, outcome: Outcome, progress: Progress) -> None:
    for number in range(1, options.rounds + 1):
        for scenario in options.scenarios:
            for target in _in_turn(stage.targets, number):
                progress.show(f"round {number} of {options.rounds}: {scenario.title}: {target.name}")
                measured = await stage.measured(target, scenario, options.seconds)
                outcome.measured[(target.name, scenario.name)].append(measured)
                progress.say(
                    f"  {number}/{options.rounds} {scenario.name:8} {target.name:8} {_line(scenario, measured)}"
                )


def _in_turn(targets: list[Target], number: int) -> list[Target]:
    """Every other round backwards: nobody is always first."""
    return targets if number % 2 else targets[::-1]


def _line(scenario: Scenario, measured: Measured) -> str:
    load = measured.load
    cpu = f"{measured.cpu_us:8.0f} µs CPU per call" if measured.cpu_us is not None else " " * 24
    first = f"   first token {load.first_p50_ms:.2f} ms" if scenario.is_stream else ""
    return f"{cpu}   {load.in_time / load.seconds:8.1f}/s   p50 {load.p50_ms:.2f}   p99 {load.p99_ms:.2f} ms{first}"
