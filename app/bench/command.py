"""The command `python -m app bench`: options in, a table or JSON out."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import typer

from app.bench.plan import FULL, SCENARIOS, SHORT, Against
from app.bench.processes import BenchError
from app.bench.report import as_json as outcome_as_json
from app.bench.report import show
from app.bench.run import bench as run
from app.embedded import EmbeddedError

MOST_WORKERS = 64


def bench(
    *,
    is_short: bool,
    as_json: bool,
    workers: str,
    against: Against | None,
    beside: Path | None,
    upstream_port: int,
    rounds: int | None,
    only: str | None,
) -> int:
    """Measure and show. Ends with one line if it cannot be done."""
    scenarios = tuple(s for s in SCENARIOS if only is None or s.name in only.split(","))
    if not scenarios:
        raise typer.BadParameter(f"one or more of {','.join(s.name for s in SCENARIOS)}", param_hint="--only")
    numbers = [int(each) for each in workers.split(",") if each.isdigit() and 1 <= int(each) <= MOST_WORKERS]
    if len(numbers) != workers.count(",") + 1:
        raise typer.BadParameter(f"numbers from 1 to {MOST_WORKERS}: 1,2", param_hint="--workers")
    base = SHORT if is_short else FULL
    options = replace(
        base,
        rounds=rounds or base.rounds,
        workers=tuple(numbers),
        against=against,
        beside=beside,
        upstream_port=upstream_port,
        scenarios=scenarios,
    )
    try:
        outcome = run(options, is_silent=as_json)
    except (BenchError, EmbeddedError) as error:
        sys.exit(f"The measurement could not be made: {error}")
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit("Stopped; nothing was measured.")
    if as_json:
        typer.echo(outcome_as_json(outcome))
    else:
        show(outcome)
    return 0
