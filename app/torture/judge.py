"""The judge: a pure function from the evidence of a run to what was broken. It has no tolerance but what the promises themselves allow.

What it cannot know for certain it does not call broken:
- A gateway cannot have seen what an upstream wrote in the last moment before their connection ended (`UNSEEN_S`, which the contract
  grants for closing it). Such tokens are not held against a budget.
- An admission happened between the arrival of its call and the beginning of its first attempt. A window counts as exceeded only
  when too many such intervals lie wholly inside of it.
- A counter store that lost its memory forgot its windows: across such a moment twice the limit may pass, not more.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from app.torture.evidence import Evidence, LedgerRow
from app.torture.invoice import InvoiceLine
from app.torture.notes import CallNote, Ending
from app.torture.stage import BudgetRule, LimitRule

UNSEEN_S: Final = 1.0
CLOCK_S: Final = 0.005
"""Times on record are cut to milliseconds."""
NOTICED_S: Final = 1.0
"""How long a process may take to notice that the counter store is gone or back."""
LOST = "lost"
Holder = tuple[str, ...]


class Kind(StrEnum):
    OVERSPENT = "overspent"
    OVERSPENT_BY_INVOICE = "overspent_by_invoice"
    LOST_RECORD = "lost_record"
    LOST_REFUSAL = "lost_refusal"
    DOUBLED_RECORD = "doubled_record"
    LEAKED_SLOT = "leaked_slot"
    LEAKED_RESERVATION = "leaked_reservation"
    UNDRAINED = "undrained"
    DRIFT = "drift"
    LIMIT_EXCEEDED = "limit_exceeded"
    INVOICE_MISMATCH = "invoice_mismatch"
    WRONG_ARITHMETIC = "wrong_arithmetic"
    UNPAID = "unpaid"
    STILL_RUNNING = "still_running"
    GARBLED = "garbled"
    SILENT_END = "silent_end"
    SERVER_ERROR = "server_error"
    GATEWAY_DOWN = "gateway_down"


@dataclass(frozen=True, slots=True)
class Violation:
    """One promise broken. `subject` is a request id where there is one, else the holder or the client's marker."""

    kind: Kind
    subject: str
    what: str


@dataclass(frozen=True, slots=True)
class _Served:
    """An invoice line with the note of its client."""

    line: InvoiceLine
    note: CallNote


class _Case:
    """The evidence, indexed once."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.notes = {note.marker: note for note in evidence.notes}
        self.rows: defaultdict[str, list[LedgerRow]] = defaultdict(list)
        """By marker."""
        for row in evidence.rows:
            self.rows[row.marker or ""].append(row)
        self.request_ids = {row.request_id for row in evidence.rows}
        self.served = [_Served(line, self.notes[line.marker]) for line in evidence.lines if line.marker in self.notes]
        self.lines: defaultdict[str, list[InvoiceLine]] = defaultdict(list)
        for line in evidence.lines:
            self.lines[line.marker].append(line)

    def subject(self, marker: str) -> str:
        """The request id of a client's call, as far as anybody knows it."""
        note = self.notes.get(marker)
        rows = self.rows.get(marker)
        return (note.request_id if note else None) or (rows[0].request_id if rows else marker)


def judge(evidence: Evidence) -> list[Violation]:
    """Everything that was broken; empty when every promise was kept."""
    case = _Case(evidence)
    checks: tuple[Callable[[_Case], Iterable[Violation]], ...] = (
        _overspent,
        _overspent_by_invoice,
        _lost,
        _doubled,
        _leaked,
        _drifted,
        _exceeded_windows,
        _exceeded_concurrency,
        _mismatched,
        _miscalculated,
        _unpaid,
        _mistreated,
    )
    return [violation for check in checks for violation in check(case)]


# ── Money ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _overspent(case: _Case) -> Iterator[Violation]:
    for rule in case.evidence.budgets:
        spent = sum(row.cost_nanousd for row in case.evidence.rows if _pays(rule, row))
        if spent > rule.hard_nanousd:
            yield _over(Kind.OVERSPENT, rule, spent, "the ledger")


def _overspent_by_invoice(case: _Case) -> Iterator[Violation]:
    for rule in case.evidence.budgets:
        spent = sum(_price_of(case, served.line) for served in case.served if _is_of(rule, served.note))
        if spent > rule.hard_nanousd:
            yield _over(Kind.OVERSPENT_BY_INVOICE, rule, spent, "the upstream's invoice")


def _over(kind: Kind, rule: BudgetRule, spent: int, witness: str) -> Violation:
    excess = spent - rule.hard_nanousd
    what = f"{spent} nanodollars by {witness}, {excess} more than its hard limit of {rule.hard_nanousd}"
    return Violation(kind, f"{rule.scope} {rule.holder}", what)


def _price_of(case: _Case, line: InvoiceLine) -> int:
    """What a line costs, as far as a gateway can have known."""
    if not line.is_due or (not line.prompt_tokens and not line.completion_tokens):
        return 0
    tokens = line.completion_tokens
    if not line.is_reported and line.ended_at is not None:
        tokens = line.tokens_before(line.ended_at - UNSEEN_S)
    price = case.evidence.prices[line.model]
    return price.cost_nanousd(prompt_tokens=line.prompt_tokens, completion_tokens=tokens)


def _mismatched(case: _Case) -> Iterator[Violation]:
    """Wherever usage was reported and its reader lived: the ledger says the same, to the token and the nanodollar."""
    for marker, rows in case.rows.items():
        reported = [line for line in case.lines.get(marker, ()) if line.is_reported]
        for row in rows if len(reported) == 1 else ():
            if row.outcome == LOST or (row.outcome != "ok" and row.usage_quality != "exact"):
                continue  # nobody lived to read it, or the call ended before it was read
            line = reported[0]
            due = _price_of(case, line)
            answered = row.cost_nanousd - row.failed_nanousd
            told = (row.usage_quality, row.prompt_tokens, row.completion_tokens, answered)
            truth = ("exact", line.prompt_tokens, line.completion_tokens, due)
            if told != truth:
                yield Violation(Kind.INVOICE_MISMATCH, row.request_id, f"the ledger has {told}, the invoice {truth}")
        for row in rows if not reported else ():
            if row.outcome == "ok":
                yield Violation(Kind.INVOICE_MISMATCH, row.request_id, "the ledger has an answer that no upstream gave")


def _miscalculated(case: _Case) -> Iterator[Violation]:
    for row in case.evidence.rows:
        if row.outcome == LOST or row.endpoint_id is None or row.served_model not in case.evidence.prices:
            continue
        price = case.evidence.prices[row.served_model]
        due = price.cost_nanousd(prompt_tokens=row.prompt_tokens, completion_tokens=row.completion_tokens)
        if row.cost_nanousd - row.failed_nanousd != due:
            what = f"cost {row.cost_nanousd} with {row.failed_nanousd} for failures, but its tokens at its price make {due}"
            yield Violation(Kind.WRONG_ARITHMETIC, row.request_id, what)


def _unpaid(case: _Case) -> Iterator[Violation]:
    """What was delivered, and what a killed process had sent, costs something."""
    for marker, rows in case.rows.items():
        note = case.notes.get(marker)
        is_delivered = note is not None and note.received_words > 0
        is_lost = rows[0].outcome == LOST and any(line.is_due for line in case.lines.get(marker, ()))
        if (is_delivered or is_lost) and not sum(row.cost_nanousd for row in rows):
            yield Violation(Kind.UNPAID, rows[0].request_id, f"outcome {rows[0].outcome}, and it cost nothing")


# ── Records ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _lost(case: _Case) -> Iterator[Violation]:
    refused_ids = {request_id for request_id, _ in case.evidence.refused}
    for note in case.evidence.notes:
        subject = note.request_id or note.marker
        if note.status == 200 and note.request_id not in case.request_ids:
            yield Violation(
                Kind.LOST_RECORD, subject, f"{_when(note)} answered ({note.ending}), and there is no record of it"
            )
        if note.status in (402, 429) and note.request_id not in case.request_ids | refused_ids:
            yield Violation(
                Kind.LOST_REFUSAL, subject, f"{_when(note)} refused with {note.status}, and there is no record of it"
            )
    for marker, lines in case.lines.items():
        is_answered = marker in case.notes and case.notes[marker].status == 200
        if not case.rows.get(marker) and not is_answered:
            what = f"an upstream was called ({lines[0].ending}), and there is no record of it"
            yield Violation(Kind.LOST_RECORD, case.subject(marker), what)


def _when(note: CallNote) -> str:
    return f"at {note.ended_at:.3f} by gateway {note.gateway}:"


def _doubled(case: _Case) -> Iterator[Violation]:
    counts = Counter(row.request_id for row in case.evidence.rows)
    for request_id, count in counts.items():
        if count > 1:
            yield Violation(Kind.DOUBLED_RECORD, request_id, f"{count} rows in the ledger")
    for request_id, _ in case.evidence.refused:
        if request_id in counts:
            yield Violation(Kind.DOUBLED_RECORD, request_id, "a row in the ledger, and one among the refusals")
    for marker, rows in case.rows.items():
        ids = {row.request_id for row in rows}
        if marker and len(ids) > 1:
            yield Violation(Kind.DOUBLED_RECORD, rows[0].request_id, f"one call, {len(ids)} records: {sorted(ids)}")


# ── What must be given back ───────────────────────────────────────────────────────────────────────────────────────────


def _leaked(case: _Case) -> Iterator[Violation]:
    counters = case.evidence.counters
    for name, call_id in counters.slots:
        yield Violation(Kind.LEAKED_SLOT, call_id, f"still holds a slot of {name}")
    for call_id in sorted({*counters.open_reservations, *counters.leases}):
        yield Violation(Kind.LEAKED_RESERVATION, call_id, "its reservation is still open")
    for budget in counters.budgets:
        if budget.reserved_nanousd:
            what = f"{budget.reserved_nanousd} nanodollars are still reserved"
            yield Violation(Kind.LEAKED_RESERVATION, f"{budget.scope} {budget.holder}", what)
    if counters.undrained_records:
        yield Violation(Kind.UNDRAINED, "the stream", f"{counters.undrained_records} records never reached the ledger")
    for line in case.evidence.lines:
        if line.ending == "in_flight":
            yield Violation(Kind.STILL_RUNNING, case.subject(line.marker), "its upstream connection is still open")


def _drifted(case: _Case) -> Iterator[Violation]:
    for holder, told, truth in _rollup_drifts(case.evidence):
        yield Violation(Kind.DRIFT, " ".join(holder), f"the hourly sums say {told}, the ledger {truth}")
    for budget in case.evidence.counters.budgets:
        rule = BudgetRule(budget.scope, budget.holder, 0)
        spent = sum(row.cost_nanousd for row in case.evidence.rows if _pays(rule, row))
        if budget.spent_nanousd not in (None, spent):
            what = f"the counter says {budget.spent_nanousd} nanodollars were spent, the ledger {spent}"
            yield Violation(Kind.DRIFT, f"{budget.scope} {budget.holder}", what)
    if case.evidence.ledger_check is not None:
        yield Violation(Kind.DRIFT, "verify-ledger", case.evidence.ledger_check)


def _rollup_drifts(evidence: Evidence) -> Iterator[tuple[Holder, tuple[int, ...], tuple[int, ...]]]:
    truth: defaultdict[Holder, list[int]] = defaultdict(lambda: [0] * 7)
    for row in evidence.rows:
        hour = str(int(row.created_at // 3600))
        who = (row.user_oid, row.key_id or "", row.app_id or "", row.served_model, row.endpoint_id or "")
        is_error = row.outcome not in ("ok", "client_cancelled")
        tokens = (row.prompt_tokens, row.completion_tokens, row.cached_tokens, row.reasoning_tokens)
        for index, amount in enumerate((1, is_error, *tokens, row.cost_nanousd)):
            truth[(hour, *who)][index] += amount
    told = {rollup.holder: rollup.sums for rollup in evidence.rollups}
    nothing = (0,) * 7
    for holder in sorted(set(truth) | set(told)):
        real = tuple(truth[holder]) if holder in truth else nothing
        if told.get(holder, nothing) != real:
            yield holder, told.get(holder, nothing), real


# ── Limits ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _exceeded_windows(case: _Case) -> Iterator[Violation]:
    for rule in case.evidence.limits:
        if rule.kind == "concurrency":
            continue
        admitted = sorted(
            (row.created_at, row.created_at + row.sent_after_ms / 1000 + CLOCK_S, _weight(rule, row))
            for row in case.evidence.rows
            if row.sent_after_ms is not None and _pays(rule, row)
        )
        worst, started_at = _fullest_window(case, rule, admitted)
        if worst:
            what = f"{worst} {rule.kind} admitted within {rule.window_s} s from {started_at:.3f}, limit {rule.limit}"
            yield Violation(Kind.LIMIT_EXCEEDED, f"{rule.scope} {rule.holder}", what)


def _fullest_window(case: _Case, rule: LimitRule, admitted: list[tuple[float, float, int]]) -> tuple[int, float]:
    """The most that was certainly admitted in one window beyond what is allowed there; 0 when none was exceeded."""
    worst, started_at = 0, 0.0
    for index, (start, _, _) in enumerate(admitted):
        end = start + rule.window_s - CLOCK_S
        total = 0
        for earliest, latest, weight in admitted[index:]:
            if earliest > end:
                break
            total += weight if latest <= end else 0
        if total > _allowed(case, rule, start, end) and total > worst:
            worst, started_at = total, start
    return worst, started_at


def _exceeded_concurrency(case: _Case) -> Iterator[Violation]:
    for rule in case.evidence.limits:
        if rule.kind != "concurrency":
            continue
        moments = []
        for served in case.served:
            if _is_of(rule, served.note):
                start, end = served.line.arrived_at, _certain_end(case, served)
                moments += [(start, 1), (end, -1)] if end > start else []
        at_once = 0
        for moment, change in sorted(moments):
            at_once += change
            if at_once > _allowed(case, rule, moment, moment):
                what = f"{at_once} calls at once at {moment:.3f}, limit {rule.limit}"
                yield Violation(Kind.LIMIT_EXCEEDED, f"{rule.scope} {rule.holder}", what)
                break


def _certain_end(case: _Case, served: _Served) -> float:
    """Until when a call surely held its slot: its gateway alive and its connection to the upstream in use."""
    line, gateway = served.line, served.note.gateway
    end = line.ended_at if line.ended_at is not None else line.arrived_at
    if line.ending == "hung_up":
        # The slot is free before the upstream notices; its last certain use is the last write that was read.
        end = max((at for at, _ in line.written or () if at <= end - UNSEEN_S), default=line.arrived_at)
    for down, _ in case.evidence.gateway_spans.get(gateway, ()):
        if line.arrived_at <= down < end:
            end = down
    # A client that has left has freed its slot, whatever the upstream still wrote into the dead connection.
    left = served.note.ended_at
    return min(end, left) if served.note.ending in (Ending.HUNG_UP, Ending.UNANSWERED) and left else end


def _allowed(case: _Case, rule: LimitRule, start: float, end: float) -> int:
    for lost_at, back_at in case.evidence.redis_spans:
        if lost_at <= end and start <= back_at + NOTICED_S:
            return 2 * rule.limit
    return rule.limit


# ── Treatment of clients ──────────────────────────────────────────────────────────────────────────────────────────────


def _mistreated(case: _Case) -> Iterator[Violation]:
    for note in case.evidence.notes:
        subject = note.request_id or note.marker
        if note.is_garbled:
            yield Violation(Kind.GARBLED, subject, "words of the answer are missing or came twice")
        if note.ending is Ending.SILENT:
            yield Violation(Kind.SILENT_END, subject, "the stream ended without an end and without an error")
        if note.status == 500:
            yield Violation(Kind.SERVER_ERROR, subject, f"answered 500 ({note.error_code})")
    for number, why in case.evidence.gateways_missing.items():
        yield Violation(Kind.GATEWAY_DOWN, f"gateway {number}", f"cannot serve although all is whole again: {why}")
    for number in case.evidence.gateways_undrained:
        yield Violation(Kind.GATEWAY_DOWN, f"gateway {number}", "did not end after SIGTERM")


# ── Whose ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _pays(rule: BudgetRule | LimitRule, row: LedgerRow) -> bool:
    return rule.holder == (row.key_id if rule.scope == "key" else row.user_oid)


def _is_of(rule: BudgetRule | LimitRule, note: CallNote) -> bool:
    return rule.holder == (note.key_id if rule.scope == "key" else note.user_oid)


def _weight(rule: LimitRule, row: LedgerRow) -> int:
    return 1 if rule.kind == "requests" else row.prompt_tokens + row.completion_tokens
