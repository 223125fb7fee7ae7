"""What every UsageStore and ReportStore must do. A test module subclasses these and gives the fixtures `usage` and
`reports`, which look at the same ledger."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, date, datetime, timedelta
from typing import TypedDict
from zoneinfo import ZoneInfo

import pytest

from app.domain.budget import PeriodKind
from app.domain.limits import Scope
from app.domain.record import CallRecord, RecordDetail
from app.exceptions import InvalidRequest
from app.storage.keyset import encode_cursor
from app.storage.ports import LogFilter, ReportStore, UsageStore, UsageSums
from app.storage.rejected import RecordsRejected
from tests.storage.records import DETAIL, ENDPOINT, KEY_A, KEY_B, NOON, a_claim, a_content, a_record, a_refusal, an_id

HOUR = timedelta(hours=1)


class Span(TypedDict):
    since: date
    until: date


ALWAYS: Span = {"since": date(2020, 1, 1), "until": date(2099, 1, 1)}
ANY = LogFilter()
INJECTIONS = ["' OR 1=1--", "';SELECT pg_sleep(5)--", "$1", "\\", "%", "_", "%%%%", "x" * 10_000, "\x00", "\ud800", ""]


async def everything(reports: ReportStore, log_filter: LogFilter = ANY, limit: int = 200) -> list[CallRecord]:
    """All pages of the log."""
    found: list[CallRecord] = []
    cursor = None
    while True:
        page = await reports.log_page(log_filter, limit=limit, cursor=cursor)
        found += page.items
        cursor = page.next_cursor
        if cursor is None:
            return found


class UsageStoreConformance:
    async def test_a_record_reads_back_as_it_was_written(self, usage: UsageStore, reports: ReportStore) -> None:
        record = a_record(app_id="crm", is_stream=True, outcome="truncated", error_code="e", error_reason="r")
        assert await usage.write([record]) == 1
        assert await reports.record(record.request_id) == record

    async def test_a_refusal_reads_back_as_it_was_written(self, usage: UsageStore, reports: ReportStore) -> None:
        refusal = a_refusal()
        assert await usage.write([refusal]) == 1
        assert await reports.record(refusal.request_id) == refusal

    async def test_nothing_to_write_is_nothing_written(self, usage: UsageStore) -> None:
        assert await usage.write([]) == 0

    async def test_a_record_written_again_is_ignored_and_counted_once(
        self, usage: UsageStore, reports: ReportStore
    ) -> None:
        first, second, refusal = a_record(), a_record(), a_refusal()
        assert await usage.write([first, first, refusal]) == 2
        assert await usage.write([second, first, refusal]) == 1
        assert await usage.spent(a_claim(Scope.USER, "user-1")) == 3_000
        assert len(await everything(reports)) == 3

    async def test_writers_at_the_same_moment_count_every_record_once(self, usage: UsageStore) -> None:
        records = [a_record(NOON + i * HOUR, user_oid=f"u{i % 3}") for i in range(30)]
        shuffled = [random.Random(i).sample(records, len(records)) for i in range(6)]
        written = await asyncio.gather(*(usage.write(batch) for batch in shuffled))
        assert sum(written) == 30
        assert await usage.spent(a_claim(Scope.KEY, KEY_A)) == 30 * 1_500

    async def test_a_refusal_is_no_part_of_the_sums(self, usage: UsageStore, reports: ReportStore) -> None:
        await usage.write([a_refusal(), a_record()])
        (sums,) = await reports.summary(group_by="user", **ALWAYS)
        assert (sums.requests, sums.errors) == (1, 0)

    async def test_only_what_the_caller_did_not_ask_for_is_an_error(
        self, usage: UsageStore, reports: ReportStore
    ) -> None:
        outcomes = ["ok", "client_cancelled", "truncated", "upstream_error", "timeout", "interrupted", "lost"]
        await usage.write([a_record(outcome=outcome) for outcome in outcomes])
        (sums,) = await reports.summary(group_by="user", **ALWAYS)
        assert (sums.requests, sums.errors) == (7, 5)

    async def test_rollups_equal_the_ledger_whatever_is_repeated(self, usage: UsageStore, reports: ReportStore) -> None:
        chance = random.Random(7)
        pool = [_random_record(chance) for _ in range(120)]
        for _ in range(25):
            await usage.write(chance.choices(pool, k=chance.randrange(1, 40)))
        ledger = [record for record in await everything(reports) if not record.is_refusal]
        groupings = {
            "user": lambda r: r.user_oid,
            "key": lambda r: r.key_id or "",
            "app": lambda r: r.app_id or "",
            "model": lambda r: r.served_model,
            "endpoint": lambda r: r.endpoint_id or "",
            "hour": lambda r: r.created_at.strftime("%Y-%m-%dT%H:00:00Z"),
            "day": lambda r: r.created_at.strftime("%Y-%m-%d"),
        }
        for group_by, group_of in groupings.items():
            sums = await reports.summary(group_by=group_by, **ALWAYS)
            assert sorted(sums, key=lambda s: s.group) == _summed(ledger, group_of), group_by

    async def test_characters_that_no_database_holds_do_not_cost_the_batch(
        self, usage: UsageStore, reports: ReportStore
    ) -> None:
        bad = a_record(
            user_oid="us\x00er",
            client_request_id="\x00" * 5,
            error_reason="\x00",
            requested_model="m\x00",
            detail=RecordDetail(finish_reason="\x00 and \\u0000", price_source="\x00"),
        )
        good = a_record()
        assert await usage.write([good, bad, a_refusal(user_oid="a\x00b")]) == 3
        stored = await reports.record(bad.request_id)
        assert stored is not None
        assert (stored.user_oid, stored.requested_model) == ("us\ufffder", "m\ufffd")
        assert stored.detail.finish_reason == "\ufffd and \\u0000"

    async def test_endless_text_is_cut(self, usage: UsageStore, reports: ReportStore) -> None:
        long = "ü" * 100_000
        record = a_record(
            user_oid=long, app_id=long, requested_model=long, served_model=long, error_reason=long, provider=long
        )
        huge = a_record(detail=RecordDetail(finish_reason="x" * 5_000_000, estimated_prompt_tokens=7))
        assert await usage.write([record, huge, a_refusal(requested_model=long)]) == 3
        stored, stored_huge = await reports.record(record.request_id), await reports.record(huge.request_id)
        assert stored is not None
        assert stored.user_oid == "ü" * 200
        assert stored_huge is not None
        assert stored_huge.detail == RecordDetail(estimated_prompt_tokens=7)

    @pytest.mark.parametrize(
        "changes",
        [
            {"cost_nanousd": -1},
            {"prompt_tokens": 2**80},
            {"http_status": 2**20},
            {"key_id": "no uuid"},
            {"request_id": "no uuid"},
            {"created_at_ms": 0},
            {"created_at_ms": 2**62},
            {"cost_nanousd": 2**63 - 1},
        ],
    )
    async def test_one_impossible_record_is_named_and_all_others_are_written(
        self, usage: UsageStore, reports: ReportStore, changes: dict[str, int | str]
    ) -> None:
        good = [a_record(user_oid="good") for _ in range(9)]
        bad = a_record(NOON, user_oid="bad", **changes)
        both = [bad, a_record(user_oid="bad")] if changes == {"cost_nanousd": 2**63 - 1} else [bad]
        with pytest.raises(RecordsRejected) as rejected:
            await usage.write([*good[:4], *both, *good[4:]])
        assert len(rejected.value.reasons) == 1
        assert rejected.value.written == 8 + len(both)
        assert await usage.spent(a_claim(Scope.USER, "good")) == 9 * 1_500

    async def test_bodies_read_back_and_a_repeat_is_ignored(self, usage: UsageStore, reports: ReportStore) -> None:
        record = a_record()
        content = a_content(record, response_body=b"\x00\xff" * 1000, is_truncated=True)
        await usage.write_content([content, content])
        await usage.write_content([a_content(record, response_body=b"later")])
        assert await reports.content(record.request_id) == content
        assert await reports.content(an_id()) is None
        assert await reports.content("' OR 1=1--") is None

    async def test_impossible_bodies_do_not_cost_the_others(self, usage: UsageStore, reports: ReportStore) -> None:
        good, bad = a_record(), a_record(request_id="no uuid")
        with pytest.raises(RecordsRejected) as rejected:
            await usage.write_content([a_content(bad), a_content(good, user_oid="\x00")])
        assert list(rejected.value.reasons) == ["no uuid"]
        assert await reports.content(good.request_id) is not None


class SpendingConformance:
    async def test_nothing_spent_is_zero(self, usage: UsageStore) -> None:
        for scope in Scope:
            assert await usage.spent(a_claim(scope, "nobody")) == 0

    async def test_each_holder_has_spent_what_its_calls_cost(self, usage: UsageStore) -> None:
        await usage.write(
            [
                a_record(cost_nanousd=1),
                a_record(cost_nanousd=10, key_id=KEY_B, app_id="crm"),
                a_record(cost_nanousd=100, key_id=None, app_id="crm", user_oid="user-2"),
                a_record(cost_nanousd=1_000, requested_model="alias", served_model="gpt-5"),
            ]
        )
        claims = [(Scope.KEY, KEY_A), (Scope.KEY, KEY_B), (Scope.USER, "user-1"), (Scope.APP, "crm")]
        assert [await usage.spent(a_claim(*claim)) for claim in claims] == [1_001, 10, 1_011, 110]
        assert await usage.spent(a_claim(Scope.MODEL, "gpt-5")) == 1_000
        assert await usage.spent(a_claim(Scope.MODEL, "alias")) == 0

    @pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Asia/Kolkata", "America/St_Johns", "Asia/Kathmandu"])
    @pytest.mark.parametrize("period", list(PeriodKind))
    async def test_a_period_is_exact_to_the_millisecond_in_any_zone(
        self, usage: UsageStore, zone: str, period: PeriodKind
    ) -> None:
        now = datetime(2026, 10, 25, 12, tzinfo=UTC)  # the day on which Berlin's clocks go back
        claim = a_claim(Scope.USER, "user-1", period, now=now, zone=ZoneInfo(zone))
        start = claim.period.starts_at or datetime(2026, 10, 1, tzinfo=UTC)
        end = claim.period.ends_at or datetime(2026, 11, 1, tzinfo=UTC)
        tick = timedelta(milliseconds=1)
        inside = [start, start + tick, start + timedelta(minutes=45), end - timedelta(minutes=45), end - tick]
        outside = [start - tick, start - timedelta(minutes=45), end, end + timedelta(minutes=45)]
        await usage.write([a_record(at.astimezone(UTC), cost_nanousd=1) for at in inside])
        await usage.write([a_record(at.astimezone(UTC), cost_nanousd=1_000) for at in outside])
        assert await usage.spent(claim) == (4_005 if period is PeriodKind.TOTAL else 5)


class ReportStoreConformance:
    async def test_the_newest_come_first_refusals_among_them(self, usage: UsageStore, reports: ReportStore) -> None:
        records = [(a_refusal if i % 3 == 0 else a_record)(NOON + timedelta(seconds=i)) for i in range(10)]
        await usage.write(records)
        page = await reports.log_page(LogFilter(), limit=4, cursor=None)
        assert page.items == records[:5:-1]
        assert page.next_cursor is not None

    @pytest.mark.parametrize("limit", [1, 2, 7, 40])
    async def test_pages_miss_nothing_and_repeat_nothing_when_times_are_equal(
        self, usage: UsageStore, reports: ReportStore, limit: int
    ) -> None:
        records = [(a_refusal if i % 2 else a_record)(NOON + timedelta(seconds=i // 10)) for i in range(40)]
        await usage.write(records)
        found = await everything(reports, limit=limit)
        assert [record.request_id for record in found] == sorted((r.request_id for r in records), reverse=True)

    async def test_what_is_written_while_paging_does_not_disturb(self, usage: UsageStore, reports: ReportStore) -> None:
        old = [a_record(NOON + timedelta(seconds=i)) for i in range(6)]
        await usage.write(old)
        first = await reports.log_page(LogFilter(), limit=3, cursor=None)
        await usage.write([a_record(NOON + HOUR) for _ in range(5)])
        second = await reports.log_page(LogFilter(), limit=3, cursor=first.next_cursor)
        assert [*first.items, *second.items] == old[::-1]
        assert second.next_cursor is None

    async def test_a_page_is_never_longer_than_200(self, usage: UsageStore, reports: ReportStore) -> None:
        await usage.write([a_record() for _ in range(205)])
        assert len((await reports.log_page(LogFilter(), limit=10**6, cursor=None)).items) == 200
        assert len((await reports.log_page(LogFilter(), limit=-5, cursor=None)).items) == 1

    async def test_every_filter_finds_its_own_and_nothing_else(self, usage: UsageStore, reports: ReportStore) -> None:
        plain, refused = a_record(), a_refusal(NOON + 3 * HOUR, user_oid="r", key_id=KEY_B, app_id="a", http_status=403)
        other = a_record(
            NOON + HOUR,
            user_oid="u",
            key_id=KEY_B,
            app_id="a",
            requested_model="m",
            served_model="m",
            outcome="timeout",
            http_status=504,
            client_request_id="mine",
            endpoint_id=KEY_B,
            error_code="upstream_timeout",
            duration_ms=90_000,
            cost_nanousd=777_000_000,
        )
        await usage.write([plain, other, refused])
        expected: list[tuple[LogFilter, list[CallRecord]]] = [
            (LogFilter(), [refused, other, plain]),
            (LogFilter(request_id=other.request_id), [other]),
            (LogFilter(request_id=refused.request_id.upper()), [refused]),
            (LogFilter(user_oid="u"), [other]),
            (LogFilter(key_id=KEY_B), [refused, other]),
            (LogFilter(app_id="a"), [refused, other]),
            (LogFilter(model="m"), [other]),
            (LogFilter(outcome="timeout"), [other]),
            (LogFilter(outcome="refused"), [refused]),
            (LogFilter(outcome="ok"), [plain]),
            (LogFilter(http_status=403), [refused]),
            (LogFilter(http_status=200), [plain]),
            (LogFilter(since=NOON + HOUR), [refused, other]),
            (LogFilter(until=NOON + HOUR), [plain]),
            (LogFilter(since=NOON + HOUR, until=NOON + 2 * HOUR, key_id=KEY_B), [other]),
            (
                LogFilter(since=datetime.min.replace(tzinfo=UTC), until=datetime.max.replace(tzinfo=UTC)),
                [refused, other, plain],
            ),
            (LogFilter(user_oid="u", outcome="ok"), []),
            (LogFilter(served_model="m"), [other]),
            (LogFilter(client_request_id="mine"), [other]),
            (LogFilter(endpoint_id=KEY_B), [other]),
            (LogFilter(endpoint_id=KEY_B, outcome="refused"), []),
            (LogFilter(error_code="upstream_timeout"), [other]),
            (LogFilter(min_cost_nanousd=0, min_duration_ms=90_000), [other]),
            (LogFilter(max_duration_ms=89_999, user_oid="u"), []),
            (LogFilter(min_cost_nanousd=777_000_000), [other]),
            (LogFilter(min_cost_nanousd=777_000_001), []),
            (LogFilter(max_cost_nanousd=776_999_999, key_id=KEY_B), [refused]),
            (LogFilter(dialect="messages"), []),
        ]
        for log_filter, records in expected:
            assert await everything(reports, log_filter, limit=1) == records, log_filter

    @pytest.mark.parametrize(
        "field", ["request_id", "user_oid", "key_id", "app_id", "model", "outcome", "client_request_id", "endpoint_id"]
    )
    async def test_words_that_would_be_sql_are_only_words(
        self, usage: UsageStore, reports: ReportStore, field: str
    ) -> None:
        await usage.write([a_record(), a_refusal()])
        for term in INJECTIONS:
            log_filter = LogFilter(**{field: term})  # type: ignore[arg-type]
            assert await everything(reports, log_filter) == []
        assert await reports.record("' OR 1=1--") is None

    async def test_an_impossible_status_finds_nothing(self, usage: UsageStore, reports: ReportStore) -> None:
        await usage.write([a_record()])
        for status in (-1, 10**9, 2**70):
            assert await everything(reports, LogFilter(http_status=status)) == []

    @pytest.mark.parametrize(
        "cursor",
        [
            *("", "x", "====", "' OR 1=1--", "a" * 10_000, "\x00", "ü", encode_cursor(NOON, "no uuid")),
            encode_cursor(NOON, "a\x00b"),
        ],
    )
    async def test_a_cursor_that_was_never_given_is_refused(self, reports: ReportStore, cursor: str) -> None:
        with pytest.raises(InvalidRequest) as refused:
            await reports.log_page(LogFilter(), limit=10, cursor=cursor)
        assert refused.value.param == "cursor"

    @pytest.mark.parametrize("year", [1, 9999])
    async def test_a_cursor_at_the_end_of_the_calendar_is_harmless(self, reports: ReportStore, year: int) -> None:
        cursor = encode_cursor(datetime(year, 1, 1, tzinfo=UTC), an_id())
        assert (await reports.log_page(LogFilter(), limit=10, cursor=cursor)).items == []

    async def test_an_export_is_the_whole_log(self, usage: UsageStore, reports: ReportStore) -> None:
        records = [(a_refusal if i % 5 == 0 else a_record)(NOON + timedelta(seconds=i // 7)) for i in range(2_100)]
        await usage.write(records)
        exported = [record.request_id async for record in reports.export(LogFilter())]
        assert exported == sorted((record.request_id for record in records), reverse=True)
        some = [record async for record in reports.export(LogFilter(outcome="refused"))]
        assert len(some) == 420

    async def test_an_export_can_be_left_half_way(self, usage: UsageStore, reports: ReportStore) -> None:
        await usage.write([a_record() for _ in range(10)])
        async for _record in reports.export(LogFilter()):
            break
        assert len(await everything(reports)) == 10

    async def test_sums_cover_the_hours_asked_for(self, usage: UsageStore, reports: ReportStore) -> None:
        await usage.write([a_record(NOON + i * HOUR) for i in range(-13, 13)])  # 23:00 the day before to midnight after
        day = NOON.date()
        (whole,) = await reports.summary(group_by="user", since=day, until=day)
        assert whole.requests == 24
        (part,) = await reports.summary(group_by="user", since=NOON, until=NOON + 2 * HOUR)
        assert part.requests == 2
        hours = await reports.summary(group_by="hour", since=NOON, until=NOON + 2 * HOUR)
        assert [sums.group for sums in hours] == ["2026-11-23T12:00:00Z", "2026-11-23T13:00:00Z"]
        days = await reports.summary(group_by="day", since=date.min, until=date.max)
        assert [(sums.group[-2:], sums.requests) for sums in days] == [("22", 1), ("23", 24), ("24", 1)]

    async def test_the_dearest_come_first(self, usage: UsageStore, reports: ReportStore) -> None:
        await usage.write([a_record(user_oid=f"u{cost}", cost_nanousd=cost) for cost in (5, 50, 20)])
        assert [s.group for s in await reports.summary(group_by="user", **ALWAYS)] == ["u50", "u20", "u5"]

    async def test_sums_are_grouped_by_two_and_narrowed(self, usage: UsageStore, reports: ReportStore) -> None:
        await usage.write(
            [
                *(a_record(NOON + i * HOUR, user_oid="u", served_model="m", key_id=KEY_B) for i in (0, 0, 24)),
                a_record(user_oid="u", served_model="n"),
                a_record(user_oid="v", served_model="m"),
            ]
        )
        found = await reports.summary(group_by="model,day", of=LogFilter(user_oid="u"), **ALWAYS)
        shown = sorted((each.group, (each.subgroup or "")[-2:], each.requests) for each in found)
        assert shown == [("m", "23", 2), ("m", "24", 1), ("n", "23", 1)]
        for of, requests in (
            (LogFilter(key_id=KEY_B), 3),
            (LogFilter(model="m"), 4),
            (LogFilter(model="' OR 1=1--"), 0),
            (LogFilter(key_id="no uuid"), 0),
        ):
            assert sum(each.requests for each in await reports.summary(group_by="user", of=of, **ALWAYS)) == requests

    @pytest.mark.parametrize("group_by", ["", "user,", "user,user", "user,model,day", "user;model", "user, model"])
    async def test_a_grouping_that_is_none_is_refused(self, reports: ReportStore, group_by: str) -> None:
        with pytest.raises(InvalidRequest) as refused:
            await reports.summary(group_by=group_by, **ALWAYS)
        assert refused.value.param == "group_by"

    async def test_an_unknown_grouping_is_refused(self, reports: ReportStore) -> None:
        with pytest.raises(InvalidRequest) as refused:
            await reports.summary(group_by="user_oid; DROP TABLE users", **ALWAYS)
        assert refused.value.param == "group_by"


def _random_record(chance: random.Random) -> CallRecord:
    at = NOON + timedelta(minutes=chance.randrange(-600, 600))
    if chance.random() < 0.2:
        return a_refusal(at)
    return a_record(
        at,
        user_oid=f"user-{chance.randrange(3)}",
        key_id=chance.choice([KEY_A, KEY_B, None]),
        app_id=chance.choice([None, "crm", "chat"]),
        served_model=chance.choice(["gpt-4", "gpt-5"]),
        endpoint_id=chance.choice([ENDPOINT, None]),
        outcome=chance.choice(["ok", "ok", "timeout", "client_cancelled"]),
        prompt_tokens=chance.randrange(10**6),
        completion_tokens=chance.randrange(10**6),
        cost_nanousd=chance.randrange(10**12),
        detail=chance.choice([DETAIL, RecordDetail()]),
    )


def _summed(records: list[CallRecord], group_of: object) -> list[UsageSums]:
    assert callable(group_of)
    sums: dict[str, UsageSums] = {}
    for record in records:
        group = str(group_of(record))
        before = sums.get(group, UsageSums(group, 0, 0, 0, 0, 0))
        sums[group] = UsageSums(
            group,
            before.requests + 1,
            before.errors + (record.outcome == "timeout"),
            before.prompt_tokens + record.prompt_tokens,
            before.completion_tokens + record.completion_tokens,
            before.cost_nanousd + record.cost_nanousd,
        )
    return [sums[group] for group in sorted(sums)]
