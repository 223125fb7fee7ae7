"""One run, from the curtain to the verdict."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections import Counter

from app.torture.chaos import Chaos
from app.torture.clients import Clients
from app.torture.collect import collect, quiet
from app.torture.judge import judge
from app.torture.plan import Fault, Options, schedule
from app.torture.report import Progress, Result, progress_line
from app.torture.stage import Stage, staged

PROGRESS_EVERY_S = 0.25
OVERTIME_S = 20.0


def torture(options: Options, *, is_silent: bool) -> Result:
    """Run the proof to its end. SIGTERM and Ctrl-C end it early, with everything it started."""
    with Progress(is_silent=is_silent) as progress:
        return asyncio.run(_ended_by_signals(options, progress))


async def _ended_by_signals(options: Options, progress: Progress) -> Result:
    task = asyncio.create_task(run(options, progress))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGHUP):
        with contextlib.suppress(ValueError, NotImplementedError):
            loop.add_signal_handler(number, task.cancel)
    return await task


async def run(options: Options, progress: Progress) -> Result:
    began_s = time.monotonic()
    progress.say(
        f"Torture: {options.processes} gateways, {options.clients} clients, {options.duration_s:.0f} s, seed {options.seed}, "
        f"faults {','.join(options.faults) or 'none'}. Starting its own PostgreSQL, Valkey and upstream."
    )
    async with staged(options) as stage:
        clients, chaos = Clients(stage, options), Chaos(stage)
        await _played(stage, clients, chaos, options, progress)
        progress.show("Waiting for quiet: leases run out, what waits is written.")
        is_quiet = await quiet(stage)
        progress.show("Judging.")
        evidence = await collect(stage, clients, chaos)
    violations = judge(evidence)
    faults: Counter[str] = Counter({str(fault): count for fault, count in chaos.done.items()})
    faults[str(Fault.DISCONNECT)] = sum(note.ending == "hung_up" for note in clients.notes)
    return Result(options, violations, evidence, faults, sorted(chaos.timeline), time.monotonic() - began_s, is_quiet)


async def _played(stage: Stage, clients: Clients, chaos: Chaos, options: Options, progress: Progress) -> None:
    """The load and the faults, until both are over and all is whole again."""
    rng = random.Random(f"{options.seed}/keys")  # noqa: S311 - sizes of budgets, not secrets
    ends_s = time.monotonic() + options.duration_s
    replacing = asyncio.create_task(stage.replace_spent_keys(rng))
    try:
        async with asyncio.TaskGroup() as group:
            calling = group.create_task(clients.call_until_over())
            breaking = group.create_task(chaos.carry_out(schedule(options)))
            while not (calling.done() and breaking.done()):
                # A fault that had to wait for another shall still meet calls.
                past_s = time.monotonic() - ends_s
                clients.is_over = past_s > (0 if breaking.done() else OVERTIME_S)
                progress.show(progress_line(clients, chaos, ends_s - time.monotonic()))
                await asyncio.sleep(PROGRESS_EVERY_S)
    finally:
        replacing.cancel()
        await asyncio.gather(replacing, return_exceptions=True)
