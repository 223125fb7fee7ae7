"""Which endpoint next: of those that may be asked now, the highest priority; among these, by the model's strategy.

An endpoint may be asked now if it does not drain, its breaker lets an attempt begin, it has room for another call, and none of its
limits is known to be used up. Why others were passed over is noted in the call's record.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import timedelta
from math import inf

from app.clock import Clock
from app.domain import routing
from app.domain.breaker import Breaker, BreakerState, Change, Fault
from app.domain.call import Candidate, Meter
from app.domain.catalog import EMPTY, Catalog, Endpoint, Model, Sticky, Strategy
from app.domain.hang_up import shows_hanging
from app.domain.pricing import Price
from app.exceptions import AttemptFailed
from app.services.live_endpoint import Checked, LiveEndpoint, Mishap
from app.storage.endpoint_ports import LimitName

MAX_IN_FLIGHT = 512
"""Calls at once that one process sends to an endpoint without a `max_concurrency`: a hung endpoint must not eat a whole process."""
FAILED_CHECKS = 2
"""In a row, before an endpoint that nobody calls is taken for dead: one may be a hiccup."""
PROBE_PATIENCE_S = 1.0
"""When to come back while a probe is under way: nobody knows how long it takes."""
NOBODY_S = 5.0
"""When to come back to a model whose endpoints all drain, or that has none: an administrator is at work."""
PREFIX_BYTES = 1024
"""Of a prompt, what decides where it sticks: a system prompt and the beginning of a conversation."""

PROMPT_FIELDS = ("system", "instructions", "messages", "prompt", "input")
"""Where the dialects have what a model reads, in the order in which it reads it."""

FULL = "full"
PROBED = "half open: another call is its probe"

OnChange = Callable[[LiveEndpoint, Change, Mishap | None], None]


def nobody(_: LiveEndpoint, __: Change, ___: Mishap | None) -> None:
    """Is told of changes of state, and does nothing."""


class LoadBalancer:
    def __init__(
        self,
        clock: Clock,
        *,
        chance: Callable[[], float],
        on_change: OnChange = nobody,
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> None:
        """`chance` gives random numbers from 0 to 1. `on_change` is told of every change of a breaker that was decided here."""
        self._clock = clock
        self._chance = chance
        self._on_change = on_change
        self._max_in_flight = max_in_flight
        self._live: dict[str, LiveEndpoint] = {}
        self._followed = EMPTY

    # ── Choosing ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def pick(self, model: Model, meter: Meter, tried: Collection[str] = ()) -> Endpoint | None:
        """The endpoint to ask next; None when none of those that were not tried yet may be asked now.

        Notes in the meter which it is, and why others were passed over.
        """
        now_s = self._clock.monotonic()
        endpoints = model.endpoints
        if len(endpoints) == 1 and not tried:
            return self._only(endpoints[0], meter, now_s)
        ready: list[LiveEndpoint] = []
        for endpoint in endpoints:
            if endpoint.id in tried:
                continue
            live = self.live(endpoint)
            why = self._obstacle(endpoint, live, now_s)
            if why is None:
                ready.append(live)
            else:
                meter.candidates.append(Candidate(endpoint.id, why))
        if not ready:
            return None
        highest = max(live.endpoint.priority for live in ready)
        group = [live for live in ready if live.endpoint.priority == highest]
        chosen = group[0] if len(group) == 1 else self._chosen(model, group, meter, now_s)
        meter.candidates.append(chosen.tried)
        return next(endpoint for endpoint in endpoints if endpoint.id == chosen.id)

    def explain_rest(self, model: Model, meter: Meter) -> None:
        """Note of the endpoints that were not looked at closely why that was: called once an answer has begun."""
        endpoints, known = model.endpoints, meter.candidates
        if len(endpoints) == 1 or len(known) == len(endpoints):
            return
        mentioned = {candidate.endpoint_id for candidate in known}
        asked = meter.endpoint
        for endpoint in endpoints:
            if endpoint.id in mentioned:
                continue
            if asked is not None and endpoint.priority < asked.priority:
                known.append(Candidate(endpoint.id, "lower priority"))
            elif model.sticky is not None:
                known.append(Candidate(endpoint.id, "sticky elsewhere"))
            else:
                known.append(self.live(endpoint).spare)

    def next_try_s(self, model: Model) -> float:
        """In how many seconds an endpoint of the model may be asked again."""
        now_s = self._clock.monotonic()
        waits = [self._wait_s(endpoint, now_s) for endpoint in model.endpoints if not endpoint.is_draining]
        return min(waits, default=NOBODY_S)

    def has_full(self, model: Model) -> bool:
        """Whether an endpoint of the model could be asked if it had room."""
        now_s = self._clock.monotonic()
        return any(self._obstacle(endpoint, self.live(endpoint), now_s) == FULL for endpoint in model.endpoints)

    # ── What attempts came to ─────────────────────────────────────────────────────────────────────────────────────────

    def live(self, endpoint: Endpoint) -> LiveEndpoint:
        live = self._live.get(endpoint.id)
        if live is None:
            live = self._live[endpoint.id] = LiveEndpoint(endpoint, Breaker(endpoint.breaker))
        return live

    def find(self, endpoint_id: str) -> LiveEndpoint | None:
        return self._live.get(endpoint_id)

    def begin(self, live: LiveEndpoint) -> int:
        """An attempt begins. Its ticket goes to `answered` and one of `succeeded`, `failed` and `abandoned`; then `end`."""
        live.in_flight += 1
        return live.breaker.begin(self._clock.monotonic())

    def end(self, live: LiveEndpoint) -> None:
        live.in_flight -= 1

    def answered(self, live: LiveEndpoint, ticket: int, *, took_s: float) -> None:
        """The answer has begun, so long after the request went out."""
        live.latency.observe(took_s, self._clock.monotonic())
        change = live.breaker.answered(ticket)
        if change is not None:
            self._on_change(live, change, None)

    def succeeded(self, live: LiveEndpoint, ticket: int, *, took_s: float) -> None:
        now_s = self._clock.monotonic()
        slow_s = live.breaker.rules.slow_first_token_s
        if slow_s is not None and took_s > slow_s:
            mishap = Mishap(now_s, Fault.SLOW, f"first token after {took_s:.1f} s", None, None)
            self._failed(live, ticket, Fault.SLOW, mishap)
            return
        live.last_success_s = now_s
        live.breaker.succeeded(ticket, now_s)

    def failed(
        self, live: LiveEndpoint, ticket: int, failure: AttemptFailed, fault: Fault, message: str | None
    ) -> None:
        """`message` is what may be shown of the upstream's own words."""
        mishap = Mishap(self._clock.monotonic(), fault, failure.reason, failure.upstream_status, message)
        self._failed(live, ticket, fault, mishap, failure.retry_after_s)

    def abandoned(self, live: LiveEndpoint, ticket: int) -> None:
        live.breaker.abandoned(ticket)

    def hung_up(self, live: LiveEndpoint, ticket: int, *, began_s: float, deadline_s: float) -> None:
        """The attempt's caller left before its answer began. Where others have answers meanwhile, that says nothing."""
        now_s, latency = self._clock.monotonic(), live.latency
        answered_ago_s = now_s - latency.observed_at_s if latency.last_s else inf
        if shows_hanging(
            waited_s=now_s - began_s, deadline_s=deadline_s, usual_s=latency.last_s, answered_ago_s=answered_ago_s
        ):
            mishap = Mishap(now_s, Fault.TIMEOUT, "caller_gave_up", None, None)
            self._failed(live, ticket, Fault.TIMEOUT, mishap)
        else:
            self.abandoned(live, ticket)

    def limited(self, live: LiveEndpoint, by: str, retry_after_s: float) -> None:
        """One of the endpoint's own limits has nothing left for so long."""
        live.limited_until_s, live.limited_by = self._clock.monotonic() + retry_after_s, by

    # ── From outside ──────────────────────────────────────────────────────────────────────────────────────────────────

    def told_open(self, endpoint_id: str, fault: Fault, open_s: float) -> None:
        """Another process has opened its breaker of this endpoint."""
        live = self._live.get(endpoint_id)
        if live is not None:
            live.breaker.told(fault, open_s, self._clock.monotonic())

    def told_well(self, endpoint_id: str) -> None:
        """Another process had an answer of an endpoint that it had found failing."""
        live = self._live.get(endpoint_id)
        if live is not None:
            live.breaker.told_well(self._clock.monotonic())

    def told_checked(self, endpoint_id: str, *, is_ok: bool, reason: str | None, took_ms: int) -> None:
        """An active check was made, here or elsewhere. A good one overrules nothing that calls have shown, except where calls have
        shown nothing: where only checks had failed, it closes the breaker again."""
        live = self._live.get(endpoint_id)
        if live is None:
            return
        now_s = self._clock.monotonic()
        live.check = Checked(now_s, is_ok, reason, took_ms)
        live.failed_checks = 0 if is_ok else live.failed_checks + 1
        breaker = live.breaker
        if is_ok:
            if breaker.fault is Fault.CHECK and not breaker.is_closed:
                breaker.reset(now_s)
            return
        is_in_use = (
            live.last_success_s is not None and now_s - live.last_success_s < live.endpoint.health_check.interval_s
        )
        if live.failed_checks >= FAILED_CHECKS and not is_in_use and breaker.is_closed:
            breaker.told(Fault.CHECK, breaker.rules.max_open_s, now_s)

    def reset(self, endpoint_id: str) -> Change | None:
        live = self._live.get(endpoint_id)
        if live is None:
            return None
        live.mishap, live.failed_checks, live.limited_until_s = None, 0, 0.0
        return live.breaker.reset(self._clock.monotonic())

    def follow(self, catalog: Catalog) -> None:
        """Take over a new catalog: forget endpoints that are gone, and what is remembered of one that is another upstream now.

        Models that are the same objects as before are not looked at.
        """
        before, self._followed = self._followed.models, catalog
        now = catalog.models
        changed = [model for name, model in now.items() if before.get(name) is not model]
        for model in before.values():
            if now.get(model.name) is not model:
                self._forget(model, kept={endpoint.id for endpoint in _endpoints_at(now, model.name)})
        for model in changed:
            for endpoint in model.endpoints:
                self._take_over(endpoint)
        if len(self._live) > sum(len(model.endpoints) for model in now.values()):
            self._forget_strays(catalog)

    def _take_over(self, endpoint: Endpoint) -> None:
        live = self.live(endpoint)
        is_other = _upstream(live.endpoint) != _upstream(endpoint)
        live.endpoint, live.breaker.rules = endpoint, endpoint.breaker
        if is_other:
            self.reset(endpoint.id)

    def _forget(self, model: Model, *, kept: Collection[str]) -> None:
        for endpoint in model.endpoints:
            if endpoint.id not in kept:
                self._live.pop(endpoint.id, None)

    def _forget_strays(self, catalog: Catalog) -> None:
        """A call that began before its endpoint was deleted may have brought it back."""
        known = {endpoint.id for model in catalog.models.values() for endpoint in model.endpoints}
        self._live = {id: live for id, live in self._live.items() if id in known}

    def state_of(self, endpoint_id: str) -> str:
        live = self._live.get(endpoint_id)
        return BreakerState.CLOSED if live is None else live.breaker.state(self._clock.monotonic())

    def healthy(self, catalog: Catalog) -> tuple[int, int]:
        """How many endpoints are well, and how many are not (their breaker is not closed, or they drain)."""
        endpoints = [endpoint for model in catalog.models.values() for endpoint in model.endpoints]
        well = sum(not endpoint.is_draining and self.live(endpoint).breaker.is_closed for endpoint in endpoints)
        return well, len(endpoints) - well

    def all_live(self) -> Iterator[LiveEndpoint]:
        return iter(self._live.values())

    # ── Inside ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _only(self, endpoint: Endpoint, meter: Meter, now_s: float) -> Endpoint | None:
        live = self._live.get(endpoint.id) or self.live(endpoint)
        why = self._obstacle(endpoint, live, now_s)
        meter.candidates.append(live.tried if why is None else Candidate(endpoint.id, why))
        return endpoint if why is None else None

    def _obstacle(self, endpoint: Endpoint, live: LiveEndpoint, now_s: float) -> str | None:
        """Why the endpoint may not be asked now; None if it may."""
        if endpoint.is_draining:
            return "draining"
        breaker = live.breaker
        if not breaker.is_closed and not breaker.may_begin(now_s):
            return PROBED if breaker.is_probing else self._open_until(breaker, now_s)
        if live.in_flight >= (endpoint.max_concurrency or self._max_in_flight):
            return FULL
        if now_s < live.limited_until_s:
            return FULL if live.limited_by == LimitName.CONCURRENCY else f"rate limited: {live.limited_by}"
        return None

    def _open_until(self, breaker: Breaker, now_s: float) -> str:
        until = self._clock.now() + timedelta(seconds=breaker.opens_in_s(now_s))
        return f"open until {until:%H:%M:%S} UTC ({breaker.fault})"

    def _wait_s(self, endpoint: Endpoint, now_s: float) -> float:
        live = self.live(endpoint)
        limited_s = max(0.0, live.limited_until_s - now_s)
        if live.breaker.is_probing:
            return max(PROBE_PATIENCE_S, limited_s)
        return max(live.breaker.opens_in_s(now_s), limited_s)

    def _chosen(self, model: Model, group: list[LiveEndpoint], meter: Meter, now_s: float) -> LiveEndpoint:
        if model.sticky is not None:
            return routing.sticky(group, _sticky_key(model.sticky, meter))
        match model.strategy:
            case Strategy.ROUND_ROBIN:
                return routing.round_robin(group)
            case Strategy.LEAST_BUSY:
                return routing.least_busy(group, self._chance)
            case Strategy.LATENCY:
                return routing.lowest_latency(group, lambda live: live.latency.at(now_s))
            case Strategy.COST:
                return routing.cheapest(group, lambda live: _cost(model.price_at(live.endpoint), meter))

    def _failed(
        self, live: LiveEndpoint, ticket: int, fault: Fault, mishap: Mishap, retry_after_s: float | None = None
    ) -> None:
        live.mishap = mishap
        change = live.breaker.failed(
            ticket, fault, now_s=mishap.at_s, chance=self._chance(), retry_after_s=retry_after_s
        )
        if change is not None:
            self._on_change(live, change, mishap)


def _endpoints_at(models: Mapping[str, Model], name: str) -> tuple[Endpoint, ...]:
    model = models.get(name)
    return () if model is None else model.endpoints


def _upstream(endpoint: Endpoint) -> tuple[object, ...]:
    return endpoint.provider, endpoint.api_base, endpoint.upstream_model, endpoint.credential


def _sticky_key(by: Sticky, meter: Meter) -> bytes:
    if by is Sticky.USER:
        return meter.identity.user.oid.encode()
    fields = meter.call.fields
    parts = [fields[name] for name in PROMPT_FIELDS if name in fields]
    # Through a view: a prompt may be megabytes long, and only its beginning is looked at.
    prefix = b"".join(bytes(memoryview(part)[:PREFIX_BYTES]) for part in parts)
    return (prefix or meter.call.body)[:PREFIX_BYTES]


def _cost(price: Price | None, meter: Meter) -> int | None:
    """What the call would cost, about: for comparing, not for billing."""
    if price is None or meter.estimate is None:
        return None
    estimate = meter.estimate
    return price.request + price.rates.input * estimate.prompt_tokens + price.rates.output * estimate.completion_tokens
