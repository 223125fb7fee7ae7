"""Active checks: is anybody there? Made by one process for the whole cluster, told to all.

A check is free unless the operator asks for a paid one (`completion`): that is a call like any other, of one token, on the house's own
account. What a check says counts only where no call says otherwise; see `LoadBalancer.told_checked`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from app.clock import Clock
from app.dialects.base import Dialect
from app.domain.breaker import Fault
from app.domain.call import Attempt, Meter
from app.domain.catalog import Catalog, Endpoint, HealthCheckKind, Model, ProviderKind
from app.domain.ids import RANDOM_BYTES, time_of, uuid7
from app.exceptions import AttemptFailed, DependencyUnavailable, GatewayError
from app.providers.base import Answer, Prober, Provider, Seen
from app.services import house_accounts
from app.services.admission import Admission
from app.services.endpoint_events import EndpointEvents
from app.services.estimation import Estimation
from app.services.load_balancer import LoadBalancer
from app.services.maintenance import Election
from app.services.usage_log import UsageLog
from app.storage.endpoint_ports import EventKind

LOOK_EVERY_S: Final = 1.0
AT_ONCE: Final = 16
"""Checks under way at once; the others wait a second."""
QUESTION: Final = msgspec.json.encode(
    {"model": "", "messages": [{"role": "user", "content": "ping"}], "max_tokens": 1, "stream": False}
)
"""A reasoning model may find `max_tokens` wrong and say 400: then it is there, and it cost nothing."""


@dataclass(frozen=True, slots=True)
class Check:
    kind: HealthCheckKind
    seen: Seen


class PaidChecks:
    """A call of one token, on the house's account, past the balancer to one endpoint."""

    def __init__(
        self,
        *,
        providers: Mapping[ProviderKind, Provider],
        dialect: Dialect,
        admission: Admission,
        estimation: Estimation,
        usage_log: UsageLog,
        clock: Clock,
    ) -> None:
        self._providers = providers
        self._dialect = dialect
        self._admission = admission
        self._estimation = estimation
        self._usage_log = usage_log
        self._clock = clock

    async def made(self, endpoint: Endpoint, model: Model, catalog: Catalog) -> Seen:
        """Never raises for what the endpoint does, nor where the model's limits or budgets do not let it be asked."""
        began_s = self._clock.monotonic()
        status, reason, is_ok = None, None, True
        meter = self._meter(model)
        try:
            async with self._usage_log.logged(meter):
                meter.estimate = await self._estimation.of(meter.call, model)
                async with self._admission.admitted(model, meter, catalog):
                    await self._ask(endpoint, meter)
                    status = 200
        except _Unanswered as unanswered:
            failure = unanswered.failure
            status, reason = failure.upstream_status, failure.reason
            is_ok = not failure.is_endpoint_fault
        except GatewayError as refused:
            reason = f"not_asked: {refused.code}"
        return Seen(is_ok, reason, status, round((self._clock.monotonic() - began_s) * 1000))

    async def _ask(self, endpoint: Endpoint, meter: Meter) -> None:
        attempt = Attempt(endpoint.id, str(endpoint.provider), 0)
        meter.attempts.append(attempt)
        meter.endpoint = endpoint
        deadline_s = meter.started_s + endpoint.timeouts.total_s
        opened = self._providers[endpoint.provider].opened(
            meter.call, endpoint, self._dialect, meter, max_tokens=meter.capped_max_tokens, deadline_s=deadline_s
        )
        try:
            async with opened as answer:
                await _read(answer)
        except AttemptFailed as failure:
            meter.endpoint = None  # nobody answered, so nobody is paid
            attempt.outcome, attempt.reason, attempt.upstream_status = "failed", failure.reason, failure.upstream_status
            meter.error_reason = failure.reason
            raise _Unanswered(failure) from failure
        attempt.outcome = "ok"

    def _meter(self, model: Model) -> Meter:
        fields = msgspec.json.decode(QUESTION) | {"model": model.name}
        request_id = uuid7(int(self._clock.now().timestamp() * 1000), os.urandom(RANDOM_BYTES))
        return Meter(
            request_id=request_id,
            client_request_id=None,
            identity=house_accounts.CHECKS,
            call=self._dialect.read(msgspec.json.encode(fields)),
            created_at=time_of(request_id),
            started_s=self._clock.monotonic(),
        )


class _Unanswered(GatewayError):
    """A paid check came to nothing; told as the failure's own error."""

    def __init__(self, failure: AttemptFailed) -> None:
        super().__init__(failure.error.message)
        self.status, self.code, self.type = failure.error.status, failure.error.code, failure.error.type
        self.failure = failure


async def _read(answer: Answer) -> None:
    if answer.chunks is not None:
        async for _ in answer.chunks:
            pass


class EndpointChecks:
    def __init__(
        self,
        *,
        prober: Prober,
        paid: PaidChecks,
        balancer: LoadBalancer,
        events: EndpointEvents,
        catalog: Callable[[], Catalog],
        election: Election,
        clock: Clock,
        chance: Callable[[], float],
    ) -> None:
        self._prober = prober
        self._paid = paid
        self._balancer = balancer
        self._events = events
        self._catalog = catalog
        self._election = election
        self._clock = clock
        self._chance = chance
        self._due_s: dict[str, float] = {}
        self._under_way: set[str] = set()

    async def run(self) -> None:
        """Check what is due while this process is the one that does, for ever."""
        async with asyncio.TaskGroup() as checks:
            while True:
                if await self._leads():
                    for endpoint in self._due():
                        self._under_way.add(endpoint.id)
                        checks.create_task(self._scheduled(endpoint), name=f"check-{endpoint.id}")
                await self._clock.sleep(LOOK_EVERY_S)

    async def check(self, endpoint: Endpoint, kind: HealthCheckKind) -> Check:
        """One check, now. Its finding is told to every process."""
        if kind is HealthCheckKind.COMPLETION or not self._prober.can_look_at(endpoint):
            kind = HealthCheckKind.COMPLETION
            catalog = self._catalog()
            seen = await self._paid.made(endpoint, catalog.models[endpoint.model], catalog)
        else:
            seen = await self._prober.look_at(endpoint)
        self._found(endpoint, seen)
        return Check(kind, seen)

    async def _leads(self) -> bool:
        """While the store is away nobody knows who checks: then nobody does, and calls show who is there."""
        try:
            return await self._election.leads("checks")
        except DependencyUnavailable:
            return False

    def _due(self) -> list[Endpoint]:
        """Those that are due now. A check that was just put on the list comes within its first interval, at a moment of its own."""
        now_s = self._clock.monotonic()
        due: list[Endpoint] = []
        wanted = {endpoint.id: endpoint for endpoint in self._wanted()}
        self._due_s = {id: at_s for id, at_s in self._due_s.items() if id in wanted}
        for endpoint in wanted.values():
            at_s = self._due_s.setdefault(endpoint.id, now_s + endpoint.health_check.interval_s * self._chance())
            if now_s >= at_s and endpoint.id not in self._under_way and len(self._under_way) + len(due) < AT_ONCE:
                self._due_s[endpoint.id] = now_s + endpoint.health_check.interval_s
                due.append(endpoint)
        return due

    def _wanted(self) -> list[Endpoint]:
        return [
            endpoint
            for model in self._catalog().models.values()
            for endpoint in model.endpoints
            if endpoint.health_check.kind is HealthCheckKind.COMPLETION
            or (endpoint.health_check.kind is HealthCheckKind.MODELS and self._prober.can_look_at(endpoint))
        ]

    async def _scheduled(self, endpoint: Endpoint) -> None:
        try:
            if endpoint.model in self._catalog().models:
                await self.check(endpoint, endpoint.health_check.kind)
        finally:
            self._under_way.discard(endpoint.id)

    def _found(self, endpoint: Endpoint, seen: Seen) -> None:
        live = self._balancer.live(endpoint)
        failed_before, was_closed = live.failed_checks > 0, live.breaker.is_closed
        self._balancer.told_checked(endpoint.id, is_ok=seen.is_ok, reason=seen.reason, took_ms=seen.took_ms)
        self._events.tell("checked", endpoint.id, is_ok=seen.is_ok, reason=seen.reason, took_ms=seen.took_ms)
        if was_closed != live.breaker.is_closed:
            changed = EventKind.OPENED if was_closed else EventKind.CLOSED
            self._events.note(endpoint.id, endpoint.model, changed, reason=Fault.CHECK, message=seen.reason)
        if seen.is_ok == failed_before:
            kind = EventKind.CHECK_RECOVERED if seen.is_ok else EventKind.CHECK_FAILED
            self._events.note(
                *(endpoint.id, endpoint.model, kind), reason=seen.reason, upstream_status=seen.upstream_status
            )
