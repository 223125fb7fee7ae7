"""The public proof: its short form, and the proof that it can fail."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from app.torture.evidence import BudgetCounter, Counters, Evidence, LedgerRow, Rollup
from app.torture.invoice import InvoiceLine, Price
from app.torture.judge import Kind, judge
from app.torture.notes import CallNote, Ending
from app.torture.plan import ALL_FAULTS, CALM_TAIL_S, Fault, Options, parse_faults, schedule
from app.torture.stage import BudgetRule, LimitRule
from tests.kit.clients import REPO_ROOT

PRICE: Final = Price(input_picousd=2_500_001, output_picousd=10_000_003, request_nanousd=7)
PROMPT_TOKENS: Final = 10
COST_NANOUSD: Final = PRICE.cost_nanousd(prompt_tokens=PROMPT_TOKENS, completion_tokens=8)
AT: Final = 1_800_000_000.0


# ── A run in which every promise was kept ─────────────────────────────────────────────────────────────────────────────


def honest(calls: int = 6) -> Evidence:
    """One key with a budget and every kind of limit, used up exactly: one call a second, each half a second long."""
    evidence = Evidence(lease_s=3, prices={"plain": PRICE})
    for number in range(calls):
        add_call(evidence, number, at=AT + number)
    evidence.limits = [
        LimitRule("key", "key-1", "requests", 5, 5),
        LimitRule("key", "key-1", "tokens", 18 * 5, 5),
        LimitRule("key", "key-1", "concurrency", 1, 0),
    ]
    evidence.budgets = [
        BudgetRule("key", "key-1", calls * COST_NANOUSD),
        BudgetRule("user", "user-1", calls * COST_NANOUSD),
    ]
    evidence.counters = Counters(budgets=(BudgetCounter("key", "key-1", calls * COST_NANOUSD, 0),))
    sums = (calls, 0, PROMPT_TOKENS * calls, 8 * calls, 0, 0, COST_NANOUSD * calls)
    evidence.rollups = [Rollup((str(int(AT // 3600)), "user-1", "key-1", "", "plain", "endpoint-1"), sums)]
    evidence.notes.append(note("refused", AT, ending=Ending.REFUSED, status=402))
    evidence.refused = [("id-refused", "refused")]
    return evidence


def note(marker: str, at: float, *, ending: Ending = Ending.ANSWERED, status: int | None = 200) -> CallNote:
    return CallNote(
        marker=marker,
        gateway=0,
        key_id="key-1",
        user_oid="user-1",
        model="plain",
        is_stream=True,
        max_tokens=None,
        began_at=at,
        ended_at=at + 0.6,
        ending=ending,
        status=status,
        request_id=f"id-{marker}",
        received_words=8 if status == 200 else 0,
    )


def row(marker: str, at: float, **changes: object) -> LedgerRow:
    fields: dict[str, object] = {
        "request_id": f"id-{marker}",
        "marker": marker,
        "created_at": at,
        "user_oid": "user-1",
        "key_id": "key-1",
        "app_id": None,
        "served_model": "plain",
        "endpoint_id": "endpoint-1",
        "outcome": "ok",
        "usage_quality": "exact",
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": 8,
        "cached_tokens": 0,
        "reasoning_tokens": 0,
        "cost_nanousd": COST_NANOUSD,
        "sent_after_ms": 2,
    }
    return LedgerRow(**{**fields, **changes})  # type: ignore[arg-type]


def add_call(evidence: Evidence, number: int, *, at: float) -> None:
    marker = f"call-{number}"
    evidence.notes.append(note(marker, at))
    evidence.lines.append(
        InvoiceLine(
            marker=marker,
            model="plain",
            arrived_at=at + 0.005,
            prompt_tokens=PROMPT_TOKENS,
            written=[(at + 0.1, 8)],
            completion_tokens=8,
            is_reported=True,
            ending="ok",
            ended_at=at + 0.5,
        )
    )
    evidence.rows.append(row(marker, at))


def kinds(evidence: Evidence) -> set[Kind]:
    return {violation.kind for violation in judge(evidence)}


def replaced(evidence: Evidence, number: int, **changes: object) -> None:
    old = evidence.rows[number]
    fields = {name: getattr(old, name) for name in LedgerRow.__slots__}
    evidence.rows[number] = LedgerRow(**{**fields, **changes})


def test_a_run_that_used_every_limit_up_exactly_is_acquitted() -> None:
    assert judge(honest()) == []


# ── Planted lies, one for each promise ────────────────────────────────────────────────────────────────────────────────


def overspend(evidence: Evidence) -> None:
    evidence.budgets[0] = BudgetRule("key", "key-1", 6 * COST_NANOUSD - 1)


def overspend_of_a_user(evidence: Evidence) -> None:
    evidence.budgets[1] = BudgetRule("user", "user-1", 6 * COST_NANOUSD - 1)


def hide_spending_from_the_ledger(evidence: Evidence) -> None:
    replaced(evidence, 0, outcome="lost", completion_tokens=0, cost_nanousd=1)
    evidence.budgets[0] = BudgetRule("key", "key-1", 6 * COST_NANOUSD - 1)


def lose_an_answered_call(evidence: Evidence) -> None:
    del evidence.rows[2]


def lose_an_unanswered_call(evidence: Evidence) -> None:
    del evidence.rows[2]
    evidence.notes[2].status = evidence.notes[2].request_id = None


def lose_a_failed_call(evidence: Evidence) -> None:
    lose_an_unanswered_call(evidence)
    evidence.lines[2].ending, evidence.lines[2].is_reported = "error", False


def lose_a_refusal(evidence: Evidence) -> None:
    evidence.refused.clear()


def double_a_row(evidence: Evidence) -> None:
    evidence.rows.append(evidence.rows[0])


def double_a_call(evidence: Evidence) -> None:
    evidence.rows.append(row("call-0", AT, request_id="id-another"))


def refuse_and_serve(evidence: Evidence) -> None:
    evidence.refused.append(("id-call-0", "call-0"))


def leak_a_slot(evidence: Evidence) -> None:
    evidence.counters = Counters(slots=(("key:key-1:concurrency:0", "id-call-0"),))


def leak_a_reservation(evidence: Evidence) -> None:
    evidence.counters = Counters(open_reservations=("id-call-0",))


def leak_a_lease(evidence: Evidence) -> None:
    evidence.counters = Counters(leases=("id-call-0",))


def leak_reserved_money(evidence: Evidence) -> None:
    evidence.counters = Counters(budgets=(BudgetCounter("key", "key-1", 6 * COST_NANOUSD, 1),))


def leave_money_negative(evidence: Evidence) -> None:
    evidence.counters = Counters(budgets=(BudgetCounter("key", "key-1", 6 * COST_NANOUSD, -1),))


def leave_records_in_the_stream(evidence: Evidence) -> None:
    evidence.counters = Counters(undrained_records=1)


def miscount_a_budget(evidence: Evidence) -> None:
    evidence.counters = Counters(budgets=(BudgetCounter("key", "key-1", 6 * COST_NANOUSD + 1, 0),))


def miscount_a_rollup(evidence: Evidence) -> None:
    told = evidence.rollups[0]
    evidence.rollups[0] = Rollup(told.holder, (*told.sums[:-1], told.sums[-1] + 1))


def drop_a_rollup(evidence: Evidence) -> None:
    evidence.rollups.clear()


def invent_a_rollup(evidence: Evidence) -> None:
    told = evidence.rollups[0]
    evidence.rollups.append(Rollup((*told.holder[:-1], "endpoint-2"), told.sums))


def fail_the_operators_check(evidence: Evidence) -> None:
    evidence.ledger_check = "one sum is wrong"


def admit_too_many_requests(evidence: Evidence) -> None:
    evidence.limits[0] = LimitRule("key", "key-1", "requests", 4, 5)


def admit_too_many_tokens(evidence: Evidence) -> None:
    evidence.limits[1] = LimitRule("key", "key-1", "tokens", 18 * 5 - 1, 5)


def admit_too_many_at_once(evidence: Evidence) -> None:
    evidence.lines[0].ended_at = AT + 1.2


def admit_thrice_after_a_loss_of_memory(evidence: Evidence) -> None:
    evidence.limits[0] = LimitRule("key", "key-1", "requests", 2, 5)
    evidence.redis_spans = [(AT + 2, AT + 2.5)]


def book_too_few_tokens(evidence: Evidence) -> None:
    cost = PRICE.cost_nanousd(prompt_tokens=PROMPT_TOKENS, completion_tokens=7)
    replaced(evidence, 0, completion_tokens=7, cost_nanousd=cost)


def book_an_estimate_for_a_reported_usage(evidence: Evidence) -> None:
    replaced(evidence, 0, usage_quality="estimated")


def book_an_answer_nobody_gave(evidence: Evidence) -> None:
    evidence.rows.append(row("ghost", AT, cost_nanousd=0))


def book_one_nanodollar_less(evidence: Evidence) -> None:
    replaced(evidence, 0, cost_nanousd=COST_NANOUSD - 1)


def give_a_delivered_part_away(evidence: Evidence) -> None:
    evidence.lines[0].is_reported = False
    replaced(evidence, 0, outcome="client_cancelled", prompt_tokens=0, completion_tokens=0, cost_nanousd=0)


def give_a_lost_call_away(evidence: Evidence) -> None:
    evidence.notes[0].received_words = 0
    replaced(evidence, 0, outcome="lost", completion_tokens=0, cost_nanousd=0)


def leave_an_upstream_running(evidence: Evidence) -> None:
    evidence.lines[0].ending, evidence.lines[0].ended_at = "in_flight", None


def garble_an_answer(evidence: Evidence) -> None:
    evidence.notes[0].is_garbled = True


def end_a_stream_in_silence(evidence: Evidence) -> None:
    evidence.notes[0].ending = Ending.SILENT


def answer_500(evidence: Evidence) -> None:
    evidence.notes.append(note("broken", AT, ending=Ending.REFUSED, status=500))


def lose_a_gateway(evidence: Evidence) -> None:
    evidence.gateways_missing = {1: "its process has ended"}


def ignore_sigterm(evidence: Evidence) -> None:
    evidence.gateways_undrained = [1]


LIES: Final[dict[Callable[[Evidence], None], Kind]] = {
    overspend: Kind.OVERSPENT,
    overspend_of_a_user: Kind.OVERSPENT,
    hide_spending_from_the_ledger: Kind.OVERSPENT_BY_INVOICE,
    lose_an_answered_call: Kind.LOST_RECORD,
    lose_an_unanswered_call: Kind.LOST_RECORD,
    lose_a_failed_call: Kind.LOST_RECORD,
    lose_a_refusal: Kind.LOST_REFUSAL,
    double_a_row: Kind.DOUBLED_RECORD,
    double_a_call: Kind.DOUBLED_RECORD,
    refuse_and_serve: Kind.DOUBLED_RECORD,
    leak_a_slot: Kind.LEAKED_SLOT,
    leak_a_reservation: Kind.LEAKED_RESERVATION,
    leak_a_lease: Kind.LEAKED_RESERVATION,
    leak_reserved_money: Kind.LEAKED_RESERVATION,
    leave_money_negative: Kind.LEAKED_RESERVATION,
    leave_records_in_the_stream: Kind.UNDRAINED,
    miscount_a_budget: Kind.DRIFT,
    miscount_a_rollup: Kind.DRIFT,
    drop_a_rollup: Kind.DRIFT,
    invent_a_rollup: Kind.DRIFT,
    fail_the_operators_check: Kind.DRIFT,
    admit_too_many_requests: Kind.LIMIT_EXCEEDED,
    admit_too_many_tokens: Kind.LIMIT_EXCEEDED,
    admit_too_many_at_once: Kind.LIMIT_EXCEEDED,
    admit_thrice_after_a_loss_of_memory: Kind.LIMIT_EXCEEDED,
    book_too_few_tokens: Kind.INVOICE_MISMATCH,
    book_an_estimate_for_a_reported_usage: Kind.INVOICE_MISMATCH,
    book_an_answer_nobody_gave: Kind.INVOICE_MISMATCH,
    book_one_nanodollar_less: Kind.WRONG_ARITHMETIC,
    give_a_delivered_part_away: Kind.UNPAID,
    give_a_lost_call_away: Kind.UNPAID,
    leave_an_upstream_running: Kind.STILL_RUNNING,
    garble_an_answer: Kind.GARBLED,
    end_a_stream_in_silence: Kind.SILENT_END,
    answer_500: Kind.SERVER_ERROR,
    lose_a_gateway: Kind.GATEWAY_DOWN,
    ignore_sigterm: Kind.GATEWAY_DOWN,
}


@pytest.mark.parametrize(("lie", "kind"), LIES.items(), ids=[lie.__name__ for lie in LIES])
def test_each_planted_violation_is_found(lie: Callable[[Evidence], None], kind: Kind) -> None:
    evidence = honest()
    lie(evidence)

    assert kind in kinds(evidence)


def test_every_kind_of_violation_has_a_planted_lie() -> None:
    assert set(LIES.values()) == set(Kind)


@pytest.mark.parametrize("lie", [double_a_call, lose_an_answered_call, leak_a_slot, book_too_few_tokens])
def test_a_violation_names_its_request(lie: Callable[[Evidence], None]) -> None:
    evidence = honest()
    lie(evidence)

    assert any(violation.subject.startswith("id-call-") for violation in judge(evidence))


# ── What is allowed ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_window_may_hold_twice_its_limit_across_a_loss_of_memory_and_only_there() -> None:
    evidence = honest()
    evidence.limits = [LimitRule("key", "key-1", "requests", 3, 5)]
    assert kinds(evidence) == {Kind.LIMIT_EXCEEDED}

    evidence.redis_spans = [(AT + 2, AT + 2.5)]
    assert kinds(evidence) == set()

    evidence.redis_spans = [(AT + 100, AT + 101)]
    assert kinds(evidence) == {Kind.LIMIT_EXCEEDED}


def test_what_an_upstream_wrote_in_the_last_moment_of_a_broken_connection_is_not_held_against_a_budget() -> None:
    evidence = honest()
    line = evidence.lines[0]
    line.is_reported, line.ending, line.ended_at = False, "hung_up", AT + 5
    seen = PRICE.cost_nanousd(prompt_tokens=PROMPT_TOKENS, completion_tokens=3)
    line.written, line.completion_tokens = [(AT + 1, 3), (AT + 4.5, 8)], 8
    replaced(evidence, 0, outcome="client_cancelled", usage_quality="partial", completion_tokens=3, cost_nanousd=seen)
    evidence.budgets = [BudgetRule("key", "key-1", 5 * COST_NANOUSD + seen)]
    assert Kind.OVERSPENT_BY_INVOICE not in kinds(evidence)

    line.written = [(AT + 1, 8)]
    assert Kind.OVERSPENT_BY_INVOICE in kinds(evidence)


def test_an_admission_that_may_have_been_in_the_next_window_is_not_called_one_too_many() -> None:
    evidence = honest()
    evidence.limits = [LimitRule("key", "key-1", "requests", 4, 5)]
    assert kinds(evidence) == {Kind.LIMIT_EXCEEDED}

    for number in range(6):
        replaced(evidence, number, sent_after_ms=2_000)
    assert kinds(evidence) == set()


# ── The plan ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_seed_gives_the_same_schedule_and_another_seed_another() -> None:
    assert schedule(Options(seed=7)) == schedule(Options(seed=7))
    assert schedule(Options(seed=7)) != schedule(Options(seed=8))


@pytest.mark.parametrize("seed", range(20))
def test_a_short_run_has_every_kind_of_fault(seed: int) -> None:
    events = schedule(Options(seed=seed, duration_s=25))

    assert {event.fault for event in events} == set(ALL_FAULTS) - {Fault.DISCONNECT}
    assert all(0 < event.at_s <= 25 - CALM_TAIL_S for event in events)


def test_faults_can_be_chosen_one_by_one() -> None:
    assert parse_faults("kill, pause") == (Fault.KILL, Fault.PAUSE)
    assert {event.fault for event in schedule(Options(faults=(Fault.FLUSH,)))} == {Fault.FLUSH}
    assert schedule(Options(faults=parse_faults("none"))) == []
    with pytest.raises(ValueError, match="'earthquake' is no fault"):
        parse_faults("kill,earthquake")


# ── The whole ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def started(*arguments: str, cwd: Path) -> asyncio.subprocess.Process:
    if (
        signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):  # as in a shell's background job, whose children would ignore it too
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app", "torture", *arguments),
        env={"PYTHONPATH": str(REPO_ROOT), "PATH": "/usr/bin:/bin", "TMPDIR": str(cwd)},
        cwd=cwd,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


def left_behind(folder: Path) -> list[str]:
    """What a folder holds, and the processes whose working directory lies below it."""
    found = [path.name for path in folder.iterdir()]
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                home = os.readlink(f"/proc/{entry}/cwd")
            except OSError:
                continue
            if home.startswith(f"{folder}/"):
                found.append(f"process {entry}")
    return found


@pytest.mark.timeout(240)
async def test_the_short_form_finds_every_promise_kept_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """T107–T115, T117, T119, T127, T128 in one storm of every fault there is."""
    process = await started("--short", "--json", "--seed", "1", cwd=tmp_path)
    said, complained = await process.communicate()

    assert said, complained.decode()
    verdict = json.loads(said)
    assert verdict["violations"] == []
    assert (verdict["passed"], process.returncode) == (True, 0)
    assert set(verdict["counts"]) == set(Kind)
    assert set(verdict["summary"]["faults"]) == set(ALL_FAULTS), "a proof in which nothing was broken proves nothing"
    assert verdict["summary"]["endings"]["answered"] > 200
    assert left_behind(tmp_path) == []


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_whatever_ends_the_proof_ends_all_that_it_started(tmp_path: Path, number: signal.Signals) -> None:
    process = await started("--duration", "60", "--faults", "none", "--clients", "2", cwd=tmp_path)
    try:
        assert process.stderr is not None
        async with asyncio.timeout(60):
            while b"calls" not in (await process.stderr.readline()):  # the first line of progress: all of it runs
                assert process.returncode is None
        assert len(left_behind(tmp_path)) >= 6

        process.send_signal(number)
        await process.wait()
        deadline = time.monotonic() + 20
        while left_behind(tmp_path) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)

        assert left_behind(tmp_path) == []
        assert process.returncode != 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
