"""The command `python -m app torture`: options in, a verdict and an exit status out."""

from __future__ import annotations

import asyncio
import sys

import typer

from app.embedded import EmbeddedError
from app.torture.plan import Options, parse_faults
from app.torture.processes import TortureError
from app.torture.report import as_json as verdict_as_json
from app.torture.report import show
from app.torture.run import torture as run


def torture(*, duration_s: float, processes: int, clients: int, seed: int, faults: str, as_json: bool) -> int:
    """Run the proof. Returns 0 when every promise was kept, 1 when one was broken; ends with one line if it cannot be run."""
    try:
        chosen = parse_faults(faults)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--faults") from None
    options = Options(duration_s=duration_s, processes=processes, clients=clients, seed=seed, faults=chosen)
    try:
        result = run(options, is_silent=as_json)
    except (TortureError, EmbeddedError) as error:
        sys.exit(f"The proof could not be run: {error}")
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit("Stopped; there is no verdict.")
    if as_json:
        typer.echo(verdict_as_json(result))
    else:
        show(result)
    return 0 if result.has_passed else 1
