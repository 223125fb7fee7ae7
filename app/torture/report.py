"""What is shown: a live line while the proof runs, the verdict after it, or all of it as JSON."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from app.torture.chaos import Chaos
from app.torture.clients import Clients
from app.torture.evidence import Evidence
from app.torture.judge import Kind, Violation
from app.torture.notes import Ending
from app.torture.plan import Options

SHOWN_PER_KIND: Final = 12
SHOWN_ERRORS: Final = 5
SHOWN_CHARS: Final = 600
LINE_EVERY_S: Final = 5.0
"""Where there is no terminal to redraw a line on."""


@dataclass(frozen=True, slots=True)
class Result:
    """The end of a run."""

    options: Options
    violations: list[Violation]
    evidence: Evidence
    faults: Counter[str]
    timeline: list[tuple[float, float, str]]
    took_s: float
    is_quiet: bool

    @property
    def has_passed(self) -> bool:
        return not self.violations


class Progress:
    """The line that says what is going on; nothing at all when the answer is to be JSON."""

    def __init__(self, *, is_silent: bool) -> None:
        self._console = Console(stderr=True, quiet=is_silent, highlight=False)
        self._live = Live(console=self._console, refresh_per_second=8, transient=True)
        self._shown_at_s = 0.0
        self._stage = ""

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def say(self, line: str) -> None:
        """One line that stays."""
        self._console.print(line, soft_wrap=True)

    def show(self, line: str) -> None:
        """The line that is redrawn."""
        if self._console.is_terminal:
            self._live.update(Text(line))
        elif time.monotonic() - self._shown_at_s > LINE_EVERY_S:
            self._shown_at_s = time.monotonic()
            self._console.print(line, soft_wrap=True)


def progress_line(clients: Clients, chaos: Chaos, left_s: float) -> str:
    """Calls, answers, refusals and faults so far."""
    endings = Counter(note.ending for note in clients.notes if note.ended_at)
    broken_now = ", ".join(name for name, count in chaos.running.items() if count)
    faults = "  ".join(f"{fault} {count}" for fault, count in sorted(chaos.done.items()))
    return (
        f"{max(0.0, left_s):4.0f} s left   calls {len(clients.notes)}   answered {endings[Ending.ANSWERED]}   "
        f"refused {endings[Ending.REFUSED]}   broken {endings[Ending.BROKEN] + endings[Ending.UNANSWERED]}   "
        f"hung up {endings[Ending.HUNG_UP]}   faults: {faults or 'none'}   {broken_now and 'now: ' + broken_now}"
    )


def show(result: Result) -> None:
    """The verdict for people."""
    console = Console(highlight=False)
    counts = Counter(violation.kind for violation in result.violations)
    table = Table(title=f"Torture, seed {result.options.seed}, {result.took_s:.0f} s", title_justify="left")
    table.add_column("promise broken")
    table.add_column("times", justify="right")
    for kind in Kind:
        style = "bold red" if counts[kind] else "green"
        table.add_row(kind.replace("_", " "), Text(str(counts[kind]), style=style))
    console.print(table)
    for name, value in summary(result).items():
        console.print(f"  {name.replace('_', ' ')}: {value}")
    shown: Counter[Kind] = Counter()
    for violation in result.violations:
        shown[violation.kind] += 1
        if shown[violation.kind] <= SHOWN_PER_KIND:
            console.print(Text(f"{violation.kind}: {violation.subject}: {violation.what}", style="red"))
    for kind, count in counts.items():
        if count > SHOWN_PER_KIND:
            console.print(f"… and {count - SHOWN_PER_KIND} more of {kind}")
    for line in result.evidence.gateway_errors[:SHOWN_ERRORS]:
        console.print(Text(f"log: {line[:SHOWN_CHARS]}", style="yellow"))
    console.print("[bold green]Every promise was kept." if result.has_passed else "[bold red]Promises were broken.")


def as_json(result: Result) -> str:
    """The verdict for programs."""
    counts = Counter(violation.kind for violation in result.violations)
    return json.dumps(
        {
            "passed": result.has_passed,
            "seed": result.options.seed,
            "options": asdict(result.options),
            "summary": summary(result),
            "counts": {str(kind): counts[kind] for kind in Kind},
            "timeline": [{"from": began, "to": ended, "fault": name} for began, ended, name in result.timeline],
            "gateway_errors": result.evidence.gateway_errors[:100],
            "violations": [asdict(violation) for violation in result.violations],
        },
        indent=2,
    )


def summary(result: Result) -> dict[str, object]:
    """Figures that say how hard the run was."""
    evidence = result.evidence
    notes, rows = evidence.notes, evidence.rows
    refusing = {note.key_id for note in notes if note.status == 402}
    return {
        "calls": len(notes),
        "calls_per_second": round(len(notes) / result.options.duration_s, 1),
        "endings": dict(Counter(str(note.ending) for note in notes)),
        "statuses": {str(k): v for k, v in sorted(Counter(note.status or 0 for note in notes).items())},
        "refusals": dict(Counter(note.error_code or "" for note in notes if note.ending is Ending.REFUSED)),
        "records": len(rows),
        "outcomes": dict(Counter(row.outcome for row in rows)),
        "upstream_requests": len(evidence.lines),
        "ledger_usd": f"{sum(row.cost_nanousd for row in rows) / 10**9:.9f}",
        "hard_budgets": len(evidence.budgets),
        "hard_budgets_spent": sum(rule.holder in refusing for rule in evidence.budgets),
        "faults": dict(result.faults),
        "errors_in_the_gateways_logs": len(evidence.gateway_errors),
        "was_quiet_at_the_end": result.is_quiet,
    }
