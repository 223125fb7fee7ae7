"""The operator's proofs: that the books agree to the last nanodollar, and that nobody rewrote the audit trail.

Each command returns an exit status: 0 it holds, 1 it does not, or could not be looked at. What was found goes to standard output,
progress to standard error where somebody watches.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import TaskID
from rich.table import Table
from rich.text import Text

from app.database import Engine
from app.diagnostics import Target, command_over, engine_of
from app.domain.money import nano_to_usd
from app.domain.record import CallRecord, decode_record
from app.exceptions import SettingsError
from app.providers.price_map import PriceMap
from app.services.audit_anchor import read_anchors
from app.services.fallback import Entry
from app.services.verify_ledger import Drift, LedgerVerification, Progress, Proof, silent
from app.storage.journal import read_frames
from app.storage.management_ports import Anchor, AuditVerdict
from app.storage.redis_verify import RedisCounterProof
from app.storage.sql_audit import SqlAudit
from app.storage.sql_verify import SqlLedgerProof

JOURNAL = "journal"
"""The journals' place in the data folder."""
SHOWN_DRIFTS = 200
"""More than anybody reads; `--json` has them all."""
MONEY = frozenset({"cost_nanousd", "spent", "reserved"})


def verify_ledger(*, as_json: bool = False) -> int:
    """Compare everything that is a sum of something else."""

    async def run(target: Target, console: Console) -> int:
        with _watched() as on_progress:
            async with engine_of(target) as engine, _counter_proof(target) as counters:
                proof = await verification(target, engine, counters, on_progress=on_progress).run()
        if as_json:
            print_json(console, as_mapping(proof))
        else:
            print_proof(console, proof)
        return 0 if proof.holds else 1

    return command_over(run)


def verify_audit(*, anchors: Path | None = None, as_json: bool = False) -> int:
    """Recompute the audit trail's hashes, and compare them with those that were told elsewhere. Raises: SettingsError."""
    told = _anchors_in(anchors)

    async def run(target: Target, console: Console) -> int:
        async with engine_of(target) as engine:
            verdict = await SqlAudit(engine).verify(told)
        if as_json:
            print_json(console, {"ok": verdict.is_valid, **_verdict(verdict)})
        elif verdict.is_valid:
            console.print(f"The audit trail holds: {verdict.verified:,} entries, each on the one before it.")
        else:
            console.print(
                f"The audit trail is broken at entry {verdict.first_invalid_id}; {verdict.verified:,} before it hold."
            )
        return 0 if verdict.is_valid else 1

    return command_over(run)


def _anchors_in(path: Path | None) -> list[Anchor]:
    if path is None:
        return []
    try:
        return read_anchors(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read: {error}.") from None


def _verdict(verdict: AuditVerdict) -> dict[str, object]:
    return {"verified": verdict.verified, "first_invalid_id": verdict.first_invalid_id}


def verification(
    target: Target, engine: Engine, counters: RedisCounterProof | None, *, on_progress: Progress = silent
) -> LedgerVerification:
    return LedgerVerification(
        ledger=SqlLedgerProof(engine),
        counters=counters,
        zone=target.zone,
        mapped_price=PriceMap.installed().price_by_id,
        journal=lambda: asyncio.to_thread(journaled, target.settings.data_dir / JOURNAL),
        on_progress=on_progress,
    )


def journaled(folder: Path) -> list[CallRecord]:
    """The records in the journals of this machine's processes, those that run and those that are gone."""
    records = []
    for path in sorted(folder.glob("*.journal")):
        for payload in read_frames(path):
            try:
                records.append(decode_record(_entry(payload).record))
            except msgspec.MsgspecError:
                continue  # named in the log by whoever replays it
    return records


_entry = msgspec.msgpack.Decoder(Entry).decode


@asynccontextmanager
async def _counter_proof(target: Target) -> AsyncIterator[RedisCounterProof | None]:
    if not target.redis_url:
        yield None
        return
    from app.redis_client import open_redis

    settings = target.settings
    redis = open_redis(target.redis_url, timeout_ms=settings.redis_timeout_ms, is_cluster=settings.redis_cluster)
    async with redis.pumping():
        yield RedisCounterProof(redis)


@contextmanager
def _watched() -> Iterator[Progress]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield silent
        return
    with Bars(console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=of or None)
            bars.update(tasks[what], completed=done, total=max(of, done) or None)

        yield show


# ── What is shown ─────────────────────────────────────────────────────────────────────────────────────────────────────


def as_mapping(proof: Proof) -> dict[str, object]:
    """The proof as `--json` prints it. Money in nanodollars, as everywhere inside."""
    return {
        "ok": proof.holds,
        "checked": {
            "months": proof.months,
            "records": proof.records,
            "budget_counters": proof.counters,
            "open_reservations": proof.reservations,
        },
        "on_their_way": proof.on_their_way,
        "months_skipped": proof.months_skipped,
        "notes": proof.notes,
        "drifts_found": proof.drifts_found,
        "drifts": [msgspec.to_builtins(drift) for drift in proof.drifts],
    }


def print_json(console: Console, found: Mapping[str, object]) -> None:
    console.out(msgspec.json.format(msgspec.json.encode(found), indent=2).decode(), highlight=False)


def print_proof(console: Console, proof: Proof) -> None:
    if proof.drifts:
        console.print(_drift_table(proof.drifts[:SHOWN_DRIFTS]))
        if proof.drifts_found > SHOWN_DRIFTS:
            console.print(f"These are the first {SHOWN_DRIFTS} of {proof.drifts_found:,}. All of them: --json.")
    console.print(
        f"Looked at: {proof.records:,} records of {len(proof.months)} months and their rollups, "
        f"{proof.counters:,} budget counters, {proof.reservations:,} open reservations."
    )
    if proof.on_their_way:
        console.print(f"On their way to the ledger, and counted as such: {proof.on_their_way:,} records.")
    if proof.months_skipped:
        console.print(f"Not provable, for their records are no longer kept: {', '.join(proof.months_skipped)}.")
    for note in proof.notes:
        console.print(Text(note))
    console.print("The books agree." if proof.holds else f"The books do not agree: {proof.drifts_found:,} drifts.")


def _drift_table(drifts: list[Drift]) -> Table:
    shown = Table("what", "where", "column", box=None, pad_edge=False)
    for heading in ("expected", "found"):
        shown.add_column(heading, justify="right")
    for drift in drifts:
        figures = (_figure(drift, drift.expected), _figure(drift, drift.found))
        shown.add_row(*map(Text, (drift.kind, drift.where, drift.column, *figures)))
    return shown


def _figure(drift: Drift, figure: int | str) -> str:
    if isinstance(figure, str):
        return figure
    return f"${nano_to_usd(figure)}" if drift.column in MONEY or drift.kind == "arithmetic" else f"{figure:,}"
