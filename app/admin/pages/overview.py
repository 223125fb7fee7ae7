"""The overview: what went through in a range, what it cost, how fast it was, and what needs somebody's eye. Read from sums only."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from starlette.responses import RedirectResponse, Response, StreamingResponse

from app.admin.looks import render
from app.admin.visit import THEME_COOKIE, THEMES, Family, Visit
from app.domain.alerts import LimitSide
from app.domain.budget import PeriodKind, period_at
from app.domain.limits import Scope
from app.services.standing import BudgetStanding
from app.storage.alert_ports import AlertRow
from app.storage.management_ports import AuditQuery, ListQuery
from app.storage.overview_ports import Refusals, Traffic
from app.storage.sql_rows import is_uuid

family = Family()

RANGES: Final = {
    "6h": timedelta(hours=6),
    "24h": timedelta(hours=24),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
    "90d": timedelta(days=90),
}
HOURLY_UP_TO: Final = timedelta(days=7)
DAY: Final = timedelta(days=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
TOP: Final = 6
NEAR_PERCENT: Final = 80
EVENT_EVERY_S: Final = 2.0
EVENTS_FOR_S: Final = 8.0
"""A stream of events is this long; the browser asks for the next one. No sign-out and no stop of the gateway waits for an old one."""


@dataclass(frozen=True, slots=True)
class Span:
    """A range, whole hours or days up to now."""

    name: str
    since: datetime
    until: datetime
    by_day: bool

    @property
    def before(self) -> tuple[datetime, datetime]:
        """As long a stretch, just before."""
        return self.since - (self.until - self.since), self.since

    @property
    def ends_with_its_day(self) -> datetime:
        """The range ends now, so until midnight (UTC) there is no more; and whole days are summed faster than hours."""
        return -(-(self.until - _EPOCH) // DAY) * DAY + _EPOCH

    @property
    def step(self) -> timedelta:
        return timedelta(days=1) if self.by_day else timedelta(hours=1)

    def end_of(self, beginning: str) -> str:
        """Where the stretch ends that begins there, both in RFC 3339."""
        return (datetime.fromisoformat(beginning) + self.step).isoformat().replace("+00:00", "Z")

    def beginnings(self) -> list[datetime]:
        found, at = [], self.since
        while at < self.until:
            found.append(at)
            at += self.step
        return found


def span_of(name: str | None, now: datetime) -> Span:
    """The range of this name, or a day."""
    name = name if name in RANGES else "24h"
    length = RANGES[name]
    by_day = length > HOURLY_UP_TO
    this_hour = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    this = this_hour.replace(hour=0) if by_day else this_hour
    step = timedelta(days=1) if by_day else timedelta(hours=1)
    return Span(name, this + step - length, this + step, by_day)


@dataclass(frozen=True, slots=True)
class Reason:
    """Why calls were refused, and how many."""

    http_status: int
    error_code: str
    requests: int


def reasons_of(refusals: Sequence[Refusals]) -> list[Reason]:
    """Most frequent first."""
    counts: Counter[tuple[int, str]] = Counter()
    for each in refusals:
        counts[each.http_status, each.error_code] += each.requests
    return [Reason(*reason, count) for reason, count in counts.most_common()]


def total_of(parts: Sequence[Traffic]) -> Traffic:
    return Traffic(
        group="",
        **{name: sum(getattr(part, name) for part in parts) for name in _SUMS},
        durations=_added(part.durations for part in parts),
        first_tokens=_added(part.first_tokens for part in parts),
    )


def _added(counts: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*counts, strict=True)))


_SUMS = ("requests", "errors", "prompt_tokens", "completion_tokens", "cost_nanousd")


def series_of(
    span: Span, parts: Sequence[Traffic], refusals: Sequence[Refusals]
) -> dict[str, list[float | int | None]]:
    """What the charts draw; a stretch without calls is zero, and has no latency."""
    by_beginning = {datetime.fromisoformat(part.group): part for part in parts}
    refused: Counter[datetime] = Counter()
    for each in refusals:
        refused[datetime.fromisoformat(each.began)] += each.requests
    beginnings = span.beginnings()
    found = [by_beginning.get(at) for at in beginnings]
    return {
        "t": [int(at.timestamp()) for at in beginnings],
        "requests": [part.requests if part else 0 for part in found],
        "errors": [part.errors if part else 0 for part in found],
        "refused": [refused[at] for at in beginnings],
        "prompt": [part.prompt_tokens if part else 0 for part in found],
        "completion": [part.completion_tokens if part else 0 for part in found],
        "cost": [round(part.cost_nanousd / 1e9, 6) if part else 0 for part in found],
        "p50": [part.duration_ms(50) if part else None for part in found],
        "p95": [part.duration_ms(95) if part else None for part in found],
        "first": [part.first_token_ms(50) if part else None for part in found],
    }


@dataclass(frozen=True, slots=True)
class Figures:
    span: Span
    parts: list[Traffic]
    total: Traffic
    before: Traffic
    refusals: list[Refusals]

    @property
    def series(self) -> dict[str, list[float | int | None]]:
        return series_of(self.span, self.parts, self.refusals)

    @property
    def refused(self) -> int:
        return sum(each.requests for each in self.refusals)

    def refused_in(self, beginning: str) -> int:
        return sum(each.requests for each in self.refusals if each.began == beginning)

    @property
    def reasons(self) -> list[Reason]:
        return reasons_of(self.refusals)


async def figures_of(visit: Visit, span: Span) -> Figures:
    store = visit.services.overview
    parts, before, refusals = await asyncio.gather(
        store.traffic(span.since, span.until, by_day=span.by_day),
        store.traffic(*span.before, by_day=True),
        store.refusals(span.since, span.until, by_day=span.by_day),
    )
    return Figures(span, parts, total_of(parts), total_of(before), refusals)


@family.get("/")
async def overview(visit: Visit) -> Response:
    span = span_of(visit.query("range"), visit.now)
    figures = await figures_of(visit, span)
    services = visit.services
    store = services.overview
    models, spenders, trail = await asyncio.gather(
        store.top("model", span.since, span.until, limit=TOP),
        store.tops(("user", "key"), span.since, span.ends_with_its_day, limit=TOP),
        services.audit.page(AuditQuery(limit=6, leaves_out_sessions=True)),
    )
    top = {"model": models, **spenders}
    names = await services.overview.key_names([each.group for each in top["key"]])
    near = await near_limits(visit)
    return visit.page(
        "overview/page.html",
        figures=figures,
        ranges=list(RANGES),
        top=top,
        top_since=span.since,
        key_names={**names, **await services.overview.key_names([n.claim.scope_id for n in near])},
        near=near,
        unwell=unwell(visit),
        trail=trail.items,
        is_new=not figures.total.requests and not figures.before.requests and not figures.refused,
    )


@family.get("/overview/events")
async def events(visit: Visit) -> Response:
    """The figures as they change, as server-sent events."""
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(_events(visit), media_type="text/event-stream", headers=headers)


async def _events(visit: Visit) -> AsyncIterator[str]:
    clock = visit.services.clock
    ends_s, last = clock.monotonic() + EVENTS_FOR_S, ""
    yield "retry: 1000\n\n"
    while True:
        figures = await figures_of(visit, span_of(visit.query("range"), visit.now))
        told = json.dumps(
            {"html": render("overview/tiles.html", visit=visit, figures=figures), "series": figures.series}
        )
        yield ": still\n\n" if told == last else f"data: {told}\n\n"
        last = told
        if clock.monotonic() + EVENT_EVERY_S > ends_s or visit.services.health.is_draining:
            return
        await clock.sleep(EVENT_EVERY_S)


async def near_limits(visit: Visit) -> list[BudgetStanding]:
    """Budgets that have passed four fifths of a limit in their present period, fullest first: those that an alert tells of."""
    rows = (await visit.services.alerts.page(limit=100, cursor=None)).items
    present = {kind: period_at(kind, visit.now, visit.zone).name for kind in PeriodKind}
    holders: dict[tuple[Scope, str], set[str]] = {}
    for row in rows:
        if _is_near(row) and row.alert.period_name == present[row.alert.period_kind]:
            holders.setdefault((row.alert.scope, row.alert.scope_id), set()).add(row.alert.period_name)
    budgets = await visit.services.alerts.budgets_of(list(holders))
    gauges = await visit.services.gauges.of((scope, holder, each) for (scope, holder), each in budgets.items())
    near = [
        standing
        for holder, found in gauges.items()
        for standing in found
        if standing.claim.period.name in holders[holder]
    ]
    return sorted(near, key=fullness, reverse=True)[:8]


def _is_near(row: AlertRow) -> bool:
    threshold = row.alert.threshold
    return threshold.side is LimitSide.SOFT or threshold.percent >= NEAR_PERCENT


def fullness(standing: BudgetStanding) -> float:
    budget = standing.claim.budget
    limit = budget.hard_limit_nanousd if budget.hard_limit_nanousd is not None else budget.soft_limit_nanousd
    return (standing.spent_nanousd or 0) / limit if limit else 0.0


@dataclass(frozen=True, slots=True)
class Unwell:
    endpoint_id: str
    model: str
    upstream_model: str
    state: str


def unwell(visit: Visit) -> list[Unwell]:
    """Endpoints that take no calls, or few, as this process sees them."""
    found = []
    for model in visit.services.catalog.current.models.values():
        for endpoint in model.endpoints:
            state = (
                "draining" if endpoint.is_draining else str(visit.services.endpoint_care.standing(endpoint.id).state)
            )
            if state != "closed":
                found.append(Unwell(endpoint.id, model.name, endpoint.upstream_model, state))
    return found


# ── Search, and how it looks ──────────────────────────────────────────────────────────────────────────────────────────


@family.get("/search")
async def search(visit: Visit) -> Response:
    """One box for everything: an id leads straight to what it is, words to lists of what they are found in."""
    wanted = visit.query("q")
    management = visit.services.management
    if wanted is None:
        nothing: dict[str, list[object]] = {"users": [], "keys": [], "apps": [], "models": []}
        return visit.page("overview/search.html", wanted="", found=nothing)
    if is_uuid(wanted) and await visit.services.reports.record(wanted) is not None:
        return visit.see_other(f"/usage/{wanted}")
    query = ListQuery(limit=10, search=wanted)
    found = {
        "users": (await management.users.page(query)).items,
        "keys": (await management.keys.page(query)).items,
        "apps": (await management.apps.page(query)).items,
        "models": (await management.models.page(query)).items,
    }
    return visit.page("overview/search.html", wanted=wanted, found=found)


@family.post("/theme")
async def theme(visit: Visit) -> Response:
    form = await visit.form()
    chosen, back = form.text("theme"), form.text("back")
    is_ours = back.startswith("/admin") and not back.startswith("/admin/api") and "\\" not in back
    answer = RedirectResponse(back if is_ours else "/admin/", status_code=303)
    if chosen in THEMES:
        answer.set_cookie(THEME_COOKIE, chosen, max_age=31_536_000, path="/admin", samesite="lax")
    return answer
