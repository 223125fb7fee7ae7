"""What every UsageStore must do with a call that was given up for lost and then found: see `app.storage.sql_usage`."""

from __future__ import annotations

import asyncio
import itertools
import random
from datetime import timedelta

import pytest

from app.domain.limits import Scope
from app.domain.record import CallRecord
from app.storage.ports import LogFilter, ReportStore, UsageStore
from tests.storage.conform_usage import ALWAYS, everything
from tests.storage.records import KEY_A, NOON, a_claim, a_record, a_refusal

GROUPS = ("user", "key", "app", "model", "endpoint", "hour", "day")


def lost_of(record: CallRecord, cost_nanousd: int = 700) -> CallRecord:
    """The record that the reaper writes of a call: no endpoint is known of it, and only its prompt is charged."""
    return a_record(
        record.created_at,
        request_id=record.request_id,
        user_oid=record.user_oid,
        app_id=record.app_id,
        endpoint_id=None,
        provider=None,
        price_id=None,
        outcome="lost",
        http_status=0,
        error_code="lost",
        completion_tokens=0,
        cached_tokens=0,
        reasoning_tokens=0,
        usage_quality="estimated",
        cost_nanousd=cost_nanousd,
        attempts=0,
    )


class LostAndFoundConformance:
    async def test_what_really_happened_takes_the_place_of_a_lost_record(
        self, usage: UsageStore, reports: ReportStore
    ) -> None:
        real = a_record(cost_nanousd=5_000)
        assert await usage.write([lost_of(real)]) == 1
        assert await usage.spent(a_claim(Scope.USER, "user-1")) == 700
        assert await usage.write([real]) == 0
        assert await everything(reports) == [real]
        assert await usage.spent(a_claim(Scope.USER, "user-1")) == 5_000
        (sums,) = await reports.summary(group_by="user", **ALWAYS)
        assert (sums.requests, sums.errors, sums.completion_tokens) == (1, 0, 5)

    async def test_which_calls_are_recorded_can_be_asked_and_which_of_them_only_as_lost(
        self, usage: UsageStore
    ) -> None:
        known, lost, unknown = a_record(), a_record(), a_record()
        await usage.write([known, lost_of(lost)])
        asked = [known.request_id, lost.request_id, unknown.request_id, "no id at all"]
        assert await usage.recorded(asked) == {known.request_id: False, lost.request_id: True}

    async def test_nothing_stays_booked_under_what_the_lost_record_said(
        self, usage: UsageStore, reports: ReportStore
    ) -> None:
        real = a_record()
        await usage.write([lost_of(real)])
        await usage.write([real])
        assert [sums.group for sums in await reports.summary(group_by="endpoint", **ALWAYS)] == [real.endpoint_id]

    async def test_another_call_of_the_same_hour_keeps_what_was_booked_beside_the_lost_one(
        self, usage: UsageStore, reports: ReportStore
    ) -> None:
        real, never_found = a_record(cost_nanousd=5_000), lost_of(a_record())
        await usage.write([lost_of(real), never_found])
        await usage.write([real])
        sums = await reports.summary(group_by="endpoint", **ALWAYS)
        assert [(each.group, each.requests, each.cost_nanousd) for each in sums] == [
            (real.endpoint_id, 1, 5_000),
            ("", 1, 700),
        ]

    async def test_a_lost_record_never_takes_the_place_of_another(
        self, usage: UsageStore, reports: ReportStore
    ) -> None:
        real, other = a_record(cost_nanousd=5_000), a_record()
        await usage.write([real, lost_of(other, 1)])
        assert await usage.write([lost_of(real), lost_of(other, 99)]) == 0
        assert await usage.spent(a_claim(Scope.USER, "user-1")) == 5_001

    async def test_a_second_truth_is_ignored(self, usage: UsageStore, reports: ReportStore) -> None:
        real = a_record(cost_nanousd=5_000)
        await usage.write([lost_of(real)])
        await usage.write([real])
        await usage.write([a_record(request_id=real.request_id, cost_nanousd=9)])
        assert await everything(reports) == [real]

    @pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
    async def test_in_one_batch_the_truth_is_written_whatever_the_order(
        self, usage: UsageStore, reports: ReportStore, order: tuple[int, ...]
    ) -> None:
        real = a_record(cost_nanousd=5_000)
        batch = [lost_of(real), real, lost_of(real, 1)]
        assert await usage.write([batch[i] for i in order]) == 1
        assert await everything(reports) == [real]

    @pytest.mark.parametrize("is_refusal_first", [True, False])
    async def test_a_call_that_turns_out_to_have_been_refused_leaves_the_ledger(
        self, usage: UsageStore, reports: ReportStore, is_refusal_first: bool
    ) -> None:
        refusal = a_refusal(http_status=503, error_code="no_endpoint_available")
        batches = [[refusal], [lost_of(refusal)]] if is_refusal_first else [[lost_of(refusal)], [refusal]]
        for batch in batches:
            await usage.write(batch)
        assert await everything(reports) == [refusal]
        assert await reports.summary(group_by="user", **ALWAYS) == []

    @pytest.mark.parametrize("seed", range(8))
    async def test_any_order_and_repetition_of_lost_and_found_ends_in_the_same_sums(
        self, usage: UsageStore, reports: ReportStore, seed: int
    ) -> None:
        chance = random.Random(seed)
        truths = [_a_truth(chance) for _ in range(25)]
        told = truths + [lost_of(truth) for truth in truths]
        chance.shuffle(told)
        told += chance.choices(told, k=30)
        while told:
            size = chance.randrange(1, 12)
            await usage.write(told[:size])
            told = told[size:]
        await _stands_as(truths, usage, reports)

    async def test_writers_at_the_same_moment_agree_on_what_happened(
        self, usage: UsageStore, reports: ReportStore
    ) -> None:
        chance = random.Random(11)
        truths = [_a_truth(chance) for _ in range(40)]
        told = truths + [lost_of(truth) for truth in truths]
        shuffled = [chance.sample(told, len(told)) for _ in range(6)]
        await asyncio.gather(
            *(usage.write(batch[i : i + 20]) for batch in shuffled for i in range(0, len(batch), 20)),
        )
        await _stands_as(truths, usage, reports)


def _a_truth(chance: random.Random) -> CallRecord:
    at = NOON + timedelta(minutes=chance.randrange(240))
    if chance.random() < 0.2:
        return a_refusal(at, user_oid=f"u{chance.randrange(3)}")
    return a_record(at, user_oid=f"u{chance.randrange(3)}", cost_nanousd=chance.randrange(10_000))


async def _stands_as(truths: list[CallRecord], usage: UsageStore, reports: ReportStore) -> None:
    """The log, the sums by every grouping and what was spent are those of the truths alone."""
    log = await everything(reports, LogFilter())
    assert sorted(log, key=lambda r: r.request_id) == sorted(truths, key=lambda r: r.request_id)
    billed = [truth for truth in truths if not truth.is_refusal]
    total = sum(truth.cost_nanousd for truth in billed)
    for group_by in GROUPS:
        sums = await reports.summary(group_by=group_by, **ALWAYS)
        assert sum(each.cost_nanousd for each in sums) == total
        assert sum(each.requests for each in sums) == len(billed)
        assert all(each.requests > 0 for each in sums)
        assert sum(each.errors for each in sums) == 0
    assert await usage.spent(a_claim(Scope.KEY, KEY_A)) == total
