"""What an administrator sees of an endpoint and does to it, beyond its configuration: its standing, its events, a reset."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from app.clock import Clock
from app.domain.access import Actor
from app.domain.breaker import BreakerState, Fault
from app.domain.catalog import Catalog, Endpoint, HealthCheckKind
from app.domain.endpoint_figures import Figures, LastFault, together
from app.exceptions import Conflict, DependencyUnavailable
from app.services.endpoint_checks import Check
from app.services.endpoint_events import EndpointEvents, News
from app.services.live_endpoint import Checked, Mishap
from app.services.load_balancer import LoadBalancer
from app.services.manage_catalog import EndpointCommands
from app.storage.endpoint_ports import EndpointEvent, EndpointEventStore, EndpointFigures, EventKind
from app.storage.management_ports import EndpointRow, Page


@dataclass(frozen=True, slots=True)
class Standing:
    """How one endpoint stands: its figures by what `processes` of them know, all else by what this one knows."""

    state: BreakerState
    processes: int = 1
    figures: Figures = Figures()
    opened_by: str | None = None
    opens_in_s: float = 0.0
    last_words: str | None = None
    """The upstream's, at the last fault; None where another process heard them."""
    last_check: Checked | None = None
    last_check_at: datetime | None = None


UNKNOWN = Standing(BreakerState.CLOSED)


PACE: Final = 100
"""Endpoints looked at in one turn of the event loop: about a millisecond. Some companies have thousands."""

MakeCheck = Callable[[Endpoint, HealthCheckKind], Awaitable[Check]]
"""One active check, now; its finding is told to every process."""


class EndpointCare:
    def __init__(
        self,
        *,
        balancer: LoadBalancer,
        events: EndpointEvents,
        store: EndpointEventStore,
        figures: EndpointFigures,
        commands: EndpointCommands,
        check: MakeCheck,
        catalog: Callable[[], Catalog],
        clock: Clock,
    ) -> None:
        self._balancer = balancer
        self._events = events
        self._store = store
        self._figures = figures
        self._commands = commands
        self._check = check
        self._catalog = catalog
        self._clock = clock

    async def tell(self) -> None:
        """Tell the other processes what this one knows of endpoints. Raises: DependencyUnavailable."""
        figures: dict[str, Figures] = {}
        for live in [live for live in self._balancer.all_live() if not live.is_untouched]:
            figures[live.id] = self.standing(live.id).figures
            if len(figures) % PACE == 0:
                await asyncio.sleep(0)
        await self._figures.tell(figures)

    async def standings(self, endpoint_ids: Sequence[str]) -> dict[str, Standing]:
        """How endpoints stand over all processes. What the others know is up to two seconds old; while Redis is away it is left out."""
        try:
            others = await self._figures.told(endpoint_ids)
        except DependencyUnavailable:
            others = []
        return {
            endpoint_id: _over_all(
                self.standing(endpoint_id),
                [told[endpoint_id] for told in others if endpoint_id in told],
                1 + len(others),
            )
            for endpoint_id in endpoint_ids
        }

    def standing(self, endpoint_id: str) -> Standing:
        """How it stands as far as this process knows."""
        live = self._balancer.find(endpoint_id)
        if live is None:
            return UNKNOWN
        now_s, breaker, mishap = self._clock.monotonic(), live.breaker, live.mishap
        calls, faults = breaker.counted(now_s)
        return Standing(
            state=breaker.state(now_s),
            figures=Figures(
                in_flight=live.in_flight,
                calls=calls,
                faults=faults,
                faults_in_row=breaker.faults_in_row,
                first_token_ms=round(live.latency.last_s * 1000) or None,
                open_in=0 if breaker.is_closed else 1,
                limited_by=live.limited_by if now_s < live.limited_until_s else None,
                last_fault=None if mishap is None else self._last_fault(mishap, now_s),
            ),
            opened_by=None if breaker.is_closed else breaker.fault,
            opens_in_s=breaker.opens_in_s(now_s),
            last_words=None if mishap is None else mishap.message,
            last_check=live.check,
            last_check_at=None if live.check is None else self._moment(live.check.at_s, now_s),
        )

    async def events(self, endpoint_id: str, *, limit: int, cursor: str | None) -> Page[EndpointEvent]:
        """What happened to an endpoint, also to one that is gone, newest first."""
        await self._events.write_once()
        page = await self._store.page(endpoint_id, limit=limit, cursor=cursor)
        if not page.items and cursor is None:
            await self._commands.get(endpoint_id)  # 404 for what never was
        return page

    async def alerts(self, *, limit: int, cursor: str | None) -> Page[EndpointEvent]:
        """What somebody has to act upon, of all endpoints, newest first."""
        await self._events.write_once()
        return await self._store.alerts(limit=limit, cursor=cursor)

    async def reset(self, actor: Actor, endpoint_id: str) -> EndpointRow:
        """Forget, in every process, that the endpoint failed: the next call may go there."""
        row = await self._commands.reset(actor, endpoint_id)
        self._balancer.reset(endpoint_id)
        self._events.note(endpoint_id, row.spec.model, EventKind.RESET, reason=actor.name)
        self._events.tell("reset", endpoint_id)
        return row

    async def check(self, endpoint_id: str, kind: HealthCheckKind | None) -> Check:
        """Is anybody there, now? By the endpoint's own kind of check, or the free one, or the one that is asked for."""
        row = await self._commands.get(endpoint_id)
        model = self._catalog().models.get(row.spec.model)
        for endpoint in model.endpoints if model else ():
            if endpoint.id == endpoint_id:
                own = endpoint.health_check.kind
                return await self._check(
                    endpoint, kind or (HealthCheckKind.MODELS if own is HealthCheckKind.NONE else own)
                )
        raise Conflict("The endpoint is not in use: its credential cannot be opened, or its row cannot be read.")

    async def drain(self, actor: Actor, endpoint_id: str, *, draining: bool) -> EndpointRow:
        before = await self._commands.get(endpoint_id)
        row = await self._commands.drain(actor, endpoint_id, draining=draining)
        if before.spec.is_draining != draining:
            kind = EventKind.DRAINED if draining else EventKind.UNDRAINED
            self._events.note(endpoint_id, row.spec.model, kind, reason=actor.name)
        return row

    def heard(self, news: News) -> None:
        """Act upon what another process says."""
        match news.kind:
            case "opened":
                fault = Fault(news.fault) if news.fault in set(Fault) else Fault.ERROR
                self._balancer.told_open(news.endpoint_id, fault, news.open_s)
            case "closed":
                self._balancer.told_well(news.endpoint_id)
            case "reset":
                self._balancer.reset(news.endpoint_id)
            case "checked":
                self._balancer.told_checked(
                    news.endpoint_id, is_ok=news.is_ok, reason=news.reason, took_ms=news.took_ms
                )
            case _:
                return  # of a newer version

    def _last_fault(self, mishap: Mishap, now_s: float) -> LastFault:
        at_ms = round(self._moment(mishap.at_s, now_s).timestamp() * 1000)
        return LastFault(at_ms, str(mishap.fault), mishap.reason, mishap.upstream_status)

    def _moment(self, at_s: float, now_s: float) -> datetime:
        return self._clock.now() - timedelta(seconds=now_s - at_s)


def _over_all(own: Standing, others: Sequence[Figures], processes: int) -> Standing:
    figures = together([own.figures, *others])
    words = own.last_words if figures.last_fault == own.figures.last_fault else None
    return replace(own, processes=processes, figures=figures, last_words=words)
