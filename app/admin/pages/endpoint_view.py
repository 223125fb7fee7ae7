"""An endpoint as pages show it: its row, how it is now, and how it was in the last day."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from app.admin.visit import Visit
from app.services.endpoint_care import Standing
from app.storage.management_ports import EndpointRow, ListQuery
from app.storage.overview_ports import HourOfEndpoint

HOURS: Final = 24
SPARK_WIDTH, SPARK_HEIGHT = 120, 24
ENDPOINTS_MAX: Final = 400


@dataclass(frozen=True, slots=True)
class EndpointView:
    row: EndpointRow
    standing: Standing
    hours: Sequence[HourOfEndpoint]

    @property
    def state(self) -> str:
        return "draining" if self.row.spec.is_draining else str(self.standing.state)

    @property
    def requests(self) -> int:
        return sum(hour.requests for hour in self.hours)

    @property
    def errors(self) -> int:
        return sum(hour.errors for hour in self.hours)

    @property
    def last_p50_ms(self) -> int | None:
        return next((hour.p50_ms for hour in reversed(self.hours) if hour.p50_ms is not None), None)

    @property
    def spark(self) -> str:
        """The median latency of each hour as the points of a line; empty where there are fewer than two."""
        known = [(hour.hour, hour.p50_ms) for hour in self.hours if hour.p50_ms is not None]
        if len(known) < 2:
            return ""
        first, last = known[0][0], known[-1][0]
        top, width_s = max(ms for _, ms in known) or 1, (last - first).total_seconds() or 1
        return " ".join(
            f"{(at - first).total_seconds() / width_s * SPARK_WIDTH:.1f},{SPARK_HEIGHT - 2 - ms / top * (SPARK_HEIGHT - 4):.1f}"
            for at, ms in known
        )


async def endpoint_views(visit: Visit, *, model: str | None = None) -> list[EndpointView]:
    """The endpoints (of one model), in order of their making."""
    rows: list[EndpointRow] = []
    cursor: str | None = None
    while len(rows) < ENDPOINTS_MAX:
        page = await visit.services.management.endpoints.page(ListQuery(limit=200, model=model, cursor=cursor))
        rows += page.items
        cursor = page.next_cursor
        if cursor is None:
            break
    since = visit.now - timedelta(hours=HOURS - 1)
    hours = await visit.services.overview.endpoint_hours(since, visit.now + timedelta(hours=1))
    standings = await visit.services.endpoint_care.standings([row.id for row in rows])
    return [
        EndpointView(row, standings[row.id], [hour for hour in hours if hour.endpoint_id == row.id])
        for row in reversed(rows)
    ]


async def view_of(visit: Visit, row: EndpointRow, hours: Sequence[HourOfEndpoint]) -> EndpointView:
    standings = await visit.services.endpoint_care.standings([row.id])
    return EndpointView(row, standings[row.id], hours)
