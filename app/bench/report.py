"""What is shown: one table of medians and ratios, or all of it as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Final

from rich.console import Console
from rich.table import Table

from app.bench.plan import LATENCY, PACED, STREAM, UNARY, Scenario
from app.bench.run import Outcome
from app.bench.stage import Measured, as_fields
from app.bench.wire import STREAM_CHUNKS

DIRECT: Final = "direct"
FLOOR: Final = "nginx"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of every target."""

    title: str
    unit: str
    figure: Callable[[Outcome, str], float | None]
    has_ratio: bool = False


def _of(scenario: Scenario, pick: Callable[[Measured], float | None]) -> Callable[[Outcome, str], float | None]:
    def figure(outcome: Outcome, target: str) -> float | None:
        found = [value for m in outcome.measured.get((target, scenario.name), ()) if (value := pick(m)) is not None]
        return median(found) if found else None

    return figure


def _added(scenario: Scenario, pick: Callable[[Measured], float]) -> Callable[[Outcome, str], float | None]:
    """More than the upstream alone."""

    def figure(outcome: Outcome, target: str) -> float | None:
        own, direct = _of(scenario, pick)(outcome, target), _of(scenario, pick)(outcome, DIRECT)
        return None if target == DIRECT or own is None or direct is None else own - direct

    return figure


def _cpu(measured: Measured) -> float | None:
    return measured.cpu_us


def _beyond_idle(outcome: Outcome, target: str) -> float | None:
    """Of a unary call, without what the process would have used in the same time anyway."""
    idle = outcome.idle_cpu.get(target)
    if idle is None:
        return None
    return _of(UNARY, lambda m: m.cpu_us and m.cpu_us - idle * m.took_s / m.load.calls * 1e6)(outcome, target)


def _carried(measured: Measured) -> float | None:
    """Calls that a core for each worker carries: so many seconds of CPU, shared out."""
    return measured.workers * 1e6 / measured.cpu_us if measured.cpu_us else None


def _idle(outcome: Outcome, target: str) -> float | None:
    found = outcome.idle_cpu.get(target)
    return None if found is None else found * 1000


def _per_chunk(outcome: Outcome, target: str) -> float | None:
    stream, unary = _of(STREAM, _cpu)(outcome, target), _of(UNARY, _cpu)(outcome, target)
    return None if stream is None or unary is None else (stream - unary) / STREAM_CHUNKS


def _memory(outcome: Outcome, target: str) -> float | None:
    size = outcome.memory_bytes.get(target)
    return None if size is None else size / 1e6


def _start(outcome: Outcome, target: str) -> float | None:
    found = outcome.starts_s.get(target)
    return median(found) if found else None


ROWS: Final = (
    Row("CPU per unary call, 32 connections", "µs", _of(UNARY, _cpu), has_ratio=True),
    Row("CPU of it beyond what it uses idle", "µs", _beyond_idle, has_ratio=True),
    Row("CPU while nobody calls", "ms/s", _idle),
    Row("unary calls that a core for each worker carries", "/s", _of(UNARY, _carried)),
    Row("CPU per stream of 64 chunks, back to back", "µs", _of(STREAM, _cpu), has_ratio=True),
    Row("CPU per chunk of it, beyond a unary call", "µs", _per_chunk, has_ratio=True),
    Row("CPU per paced stream (50 ms + 64 × 20 ms)", "µs", _of(PACED, _cpu), has_ratio=True),
    Row("unary calls per second, as measured", "/s", _of(UNARY, lambda m: m.load.in_time / m.load.seconds)),
    Row("added latency at 100/s, 50 ms upstream, p50", "ms", _added(LATENCY, lambda m: m.load.p50_ms)),
    Row("added latency at 100/s, 50 ms upstream, p99", "ms", _added(LATENCY, lambda m: m.load.p99_ms)),
    Row("added time to first token, p50", "ms", _added(PACED, lambda m: m.load.first_p50_ms)),
    Row("added time to first token, p99", "ms", _added(PACED, lambda m: m.load.first_p99_ms)),
    Row("memory per worker after load", "MB", _memory),
    Row("start to first answered call", "s", _start),
)


def show(outcome: Outcome) -> None:
    """The table for people."""
    console = Console(highlight=False)
    targets = [target for target in outcome.targets if target != DIRECT]
    options = outcome.options
    where = "gateways pinned apart from the load" if outcome.is_pinned else "gateways and load share their cores"
    title = f"Medians of {options.rounds} rounds of {options.seconds:.0f} s, WORKERS={','.join(map(str, options.workers))}, {where}"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for target in targets:
        table.add_column(target, justify="right")
        if target != FLOOR and FLOOR in targets:
            table.add_column(f"÷ {FLOOR}", justify="right", style="dim")
    for row in ROWS:
        floor = row.figure(outcome, FLOOR)
        cells = []
        for target in targets:
            value = row.figure(outcome, target)
            cells.append(_shown(value))
            if target != FLOOR and FLOOR in targets:
                cells.append(f"{value / floor:.1f} x" if row.has_ratio and value and floor else "")
        table.add_row(f"{row.title} ({row.unit})", *cells)
    console.print(table)


def as_json(outcome: Outcome) -> str:
    """The medians, and every measurement that they come from."""
    options = outcome.options
    return json.dumps(
        {
            "rounds": options.rounds,
            "seconds": options.seconds,
            "workers": options.workers,
            "is_pinned": outcome.is_pinned,
            "figures": [
                {
                    "title": row.title,
                    "unit": row.unit,
                    "medians": {target: _finite(row.figure(outcome, target)) for target in outcome.targets},
                }
                for row in ROWS
            ],
            "measurements": [
                {"target": target, "scenario": scenario, "rounds": [as_fields(m) for m in found]}
                for (target, scenario), found in outcome.measured.items()
            ],
            "idle_cpu": outcome.idle_cpu,
            "memory_bytes": outcome.memory_bytes,
            "starts_s": outcome.starts_s,
        },
        indent=2,
    )


def _finite(value: float | None) -> float | None:
    return None if value is None or value != value else round(value, 4)  # NaN is no JSON


def _shown(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
