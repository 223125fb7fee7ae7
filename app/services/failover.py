"""Failover: ask one endpoint after another, then the model's fallbacks, until one begins to answer.

1. The balancer names an endpoint. Where all that could be asked are full, the call waits for room, briefly and in a bounded crowd.
2. The kind of a failure decides what follows: a caller's fault is answered at once, for every endpoint would say the same; a call that
   was never sent, or was sent without an answer beginning, goes to the next endpoint; an answer that has begun is never tried again,
   for its caller has seen it. An endpoint that cannot carry the call at all is left out as if the model did not have it.
3. Asking again has three bounds: the call's deadline, the model's `max_retries`, and the process's retry budget. What was never sent
   costs nothing of the budget.
4. When a model has nobody left to ask, or nobody who could carry the call, or says that the prompt is too long for it or against its
   rules, its fallbacks are asked in their order, theirs after them. What is reserved for the call is exchanged before: a dearer model
   is asked only where the budgets can pay for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from types import TracebackType

import msgspec

from app.clock import Clock
from app.dialects.base import Dialect
from app.domain.breaker import Fault
from app.domain.call import Attempt, Call, Candidate, Meter, Quality
from app.domain.catalog import Catalog, Endpoint, Model, ProviderKind
from app.domain.retry_budget import RetryBudget
from app.exceptions import (
    AttemptFailed,
    ContextLengthExceeded,
    EndpointUnfit,
    FailureKind,
    GatewayError,
    InvalidRequest,
    ModelNotAllowed,
    ModelNotFound,
    NoHealthyEndpoint,
    Overloaded,
    UpstreamFailed,
    UpstreamRejected,
)
from app.providers.base import Answer, Provider
from app.services import error_sanitizer
from app.services.budget import bill_failed
from app.services.endpoint_faults import fault_of
from app.services.endpoint_limits import EndpointLimits
from app.services.live_endpoint import LiveEndpoint
from app.services.load_balancer import LoadBalancer
from app.services.waiting_room import WaitingRoom
from app.storage.endpoint_ports import EndpointClaim, EndpointFull, LimitName

MAX_RETRIES = 2
"""More endpoints than three in a row failing says more about the call, or about the hour, than about any one of them."""
MAX_MODELS = 6
"""The model asked for and its fallbacks, theirs among them."""
POLICY_CODES = frozenset({"content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation"})
"""How upstreams say that a prompt is against their rules; another model's rules may differ."""
MAX_CROWDED = 8
"""How often a call asks again at endpoints that other processes have filled, a quarter of a second apart."""
FULL_RETRY_S = 1.0
"""When to come back to endpoints that are full: by then calls of ordinary length have ended."""

Exchange = AbstractAsyncContextManager[Answer]
Told = tuple[Dialect, Call]
"""A call as an endpoint is told it, and the dialect that reads its answer."""
Swap = Callable[[Model, Meter], Awaitable[bool]]
"""Exchange what is reserved for a call for what another model needs. False: that is not to be had, and nothing changed."""


class Begun(msgspec.Struct):
    """An attempt whose answer has begun."""

    answer: Answer
    exchange: Exchange
    attempt: Attempt
    live: LiveEndpoint
    ticket: int
    took_s: float
    claim: EndpointClaim | None


class Failover:
    def __init__(
        self,
        *,
        providers: Mapping[ProviderKind, Provider],
        balancer: LoadBalancer,
        clock: Clock,
        retries: RetryBudget,
        room: WaitingRoom,
        limits: EndpointLimits,
        swap: Swap,
    ) -> None:
        self._providers = providers
        self._balancer = balancer
        self._clock = clock
        self._retries = retries
        self._room = room
        self._limits = limits
        self._swap = swap

    def opened(self, dialect: Dialect, model: Model, meter: Meter, catalog: Catalog) -> OpenedCall:
        """Inside the context one endpoint answers. Raises, on entering: GatewayError when none did."""
        return OpenedCall(self, dialect, model, meter, catalog)

    async def end(self, begun: Begun, meter: Meter, error: BaseException | None) -> bool | None:
        """Leave the endpoint that answers. Returns whether the error was its exchange's own business."""
        try:
            if error is None:
                took_s = begun.took_s if meter.call.is_stream else 0.0
                self._end(begun.attempt, "ok", meter)
                self._balancer.succeeded(begun.live, begun.ticket, took_s=took_s)
                return await begun.exchange.__aexit__(None, None, None)
            self._broke(begun, error, meter)
            return await begun.exchange.__aexit__(type(error), error, error.__traceback__)
        finally:
            await self._left(begun.live, begun.claim, meter)

    # ── Models ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def begin(self, dialect: Dialect, model: Model, meter: Meter, catalog: Catalog) -> Begun:
        """The answer of the model, or of the first of its fallbacks that gives one. Raises: GatewayError."""
        try:
            return await self._answer_of(dialect, model, meter)
        except GatewayError as error:
            if not model.fallbacks:
                raise
            told = error
        asked = {model.name}
        ahead = list(model.fallbacks)
        while ahead and len(asked) < MAX_MODELS and _may_fall_back(told):
            name = ahead.pop(0)
            if name in asked:
                continue
            asked.add(name)
            fallback = await self._exchanged(name, meter, catalog)
            if fallback is None:
                continue
            ahead[:0] = fallback.fallbacks
            try:
                return await self._answer_of(dialect, fallback, meter)
            except GatewayError as error:
                told = error
        raise told

    async def _exchanged(self, name: str, meter: Meter, catalog: Catalog) -> Model | None:
        """The fallback of this name, with everything reserved that it needs; None where it may not or cannot be used."""
        try:
            fallback = catalog.model_for(meter.identity, name)
        except (ModelNotFound, ModelNotAllowed) as error:
            meter.candidates.append(Candidate(f"model {name}", f"fallback refused: {error.code}"))
            return None
        if await self._swap(fallback, meter):
            return fallback
        meter.candidates.append(Candidate(f"model {name}", "fallback refused: limits or budgets"))
        return None

    # ── Endpoints ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _answer_of(self, dialect: Dialect, model: Model, meter: Meter) -> Begun:
        """The answer of the first of the model's endpoints that begins one. Raises: GatewayError."""
        last: GatewayError | None = None
        cause: AttemptFailed | None = None
        tried: tuple[str, ...] = ()
        fit = model  # without the endpoints that turn out not to be able to carry the call
        left = 1 + (MAX_RETRIES if model.max_retries is None else model.max_retries)
        crowded = 0
        while left > 0:
            claim: EndpointClaim | None = None
            endpoint = await self._next(fit, meter, tried)
            if endpoint is None:
                break
            try:
                told = _told(dialect, endpoint, meter)
                if endpoint.is_limited:
                    claimed = await self._limits.claim(endpoint, meter)
                    if isinstance(claimed, EndpointFull):
                        self._refused(endpoint, claimed, meter)
                        crowded += 1
                        if claimed.by is not LimitName.CONCURRENCY or crowded > MAX_CROWDED:
                            tried += (endpoint.id,)
                        continue
                    claim = claimed
                obstacle = await self._obstacle(endpoint, model, meter, claim)
                if obstacle is not None:
                    tried += (endpoint.id,)
                    meter.candidates[-1] = Candidate(endpoint.id, obstacle)
                    continue
                return await self._attempted(told, endpoint, model, meter, claim)
            except EndpointUnfit as unfit:
                fit = _without(endpoint, fit)
                meter.candidates[-1] = Candidate(endpoint.id, f"unfit: {unfit.error.message}")
                if not fit.endpoints:
                    last, cause, meter.error_reason = unfit.error, unfit, unfit.reason
            except AttemptFailed as failure:
                left -= 1
                tried += (endpoint.id,)
                last, cause = self._caller_error(endpoint, failure), failure
                if failure.is_caller_fault or failure.kind is FailureKind.CLIENT_LEFT:
                    break
        raise self._exhausted(fit, last) from cause

    async def _is_paid_for(self, model: Model, meter: Meter) -> bool:
        """Whether a hard budget can pay for the failed attempt beside the next one."""
        if not meter.attempts or meter.attempts[-1].bill is None or meter.granted_tokens is None:
            return True
        return await self._swap(model, meter)

    async def _next(self, model: Model, meter: Meter, tried: tuple[str, ...]) -> Endpoint | None:
        endpoint = self._balancer.pick(model, meter, tried)
        if endpoint is None and not tried and self._balancer.has_full(model):
            return await self._room.waited(model, lambda: self._again(model, meter))
        return endpoint

    def _again(self, model: Model, meter: Meter) -> Endpoint | None:
        """Another look while waiting; that one was in vain is not noted every time."""
        notes = len(meter.candidates)
        endpoint = self._balancer.pick(model, meter)
        if endpoint is None:
            del meter.candidates[notes:]
        return endpoint

    async def _obstacle(
        self, endpoint: Endpoint, model: Model, meter: Meter, claim: EndpointClaim | None
    ) -> str | None:
        """Why the call may not be sent (again), if it may not; what it has claimed of the endpoint is then free again."""
        if not meter.attempts:
            self._retries.called(self._clock.monotonic())
            return None
        obstacle: str | None = "not sent"
        try:
            obstacle = self._bound(endpoint, meter)
            if obstacle is None and not await self._is_paid_for(model, meter):
                obstacle = "no money left after a failed attempt"
        finally:
            if obstacle is not None and claim is not None:
                await self._limits.free(claim, meter)
        return obstacle

    def _bound(self, endpoint: Endpoint, meter: Meter) -> str | None:
        """Which bound on asking again the call has reached, if it has."""
        now_s = self._clock.monotonic()
        if now_s >= meter.started_s + endpoint.timeouts.total_s:
            return "no time left"
        if not meter.attempts[-1].is_free and not self._retries.may_retry(now_s):
            return "retry budget spent"
        return None

    def _refused(self, endpoint: Endpoint, full: EndpointFull, meter: Meter) -> None:
        """One of the endpoint's own limits has no room over all processes: nobody here asks again before it can have some."""
        self._balancer.limited(self._balancer.live(endpoint), full.by, full.retry_after_ms / 1000)
        meter.candidates[-1] = Candidate(endpoint.id, f"rate limited: {full.by}")

    async def _attempted(
        self, told: Told, endpoint: Endpoint, model: Model, meter: Meter, claim: EndpointClaim | None
    ) -> Begun:
        """One attempt, until its answer begins. Raises: AttemptFailed."""
        balancer = self._balancer
        live = balancer.live(endpoint)
        attempt = self._begin(endpoint, meter)
        ticket = balancer.begin(live)
        began_s = self._clock.monotonic()
        try:
            exchange = self._exchange(told, endpoint, meter)
            answer = await exchange.__aenter__()
        except EndpointUnfit:
            self._unasked(live, ticket, meter)
            await self._left(live, claim, meter)
            raise
        except AttemptFailed as failure:
            self._failed(attempt, live, ticket, failure, meter)
            await self._left(live, claim, meter)
            raise
        except BaseException:
            self._end(attempt, "cancelled", meter)
            if meter.has_client_left:
                deadline_s = endpoint.timeouts.first_byte_s(is_stream=meter.call.is_stream)
                balancer.hung_up(live, ticket, began_s=began_s, deadline_s=deadline_s)
            else:
                balancer.abandoned(live, ticket)
            await self._left(live, claim, meter)
            raise
        took_s = self._clock.monotonic() - began_s
        attempt.first_byte_ms = self._elapsed_ms(meter)
        balancer.answered(live, ticket, took_s=took_s)
        balancer.explain_rest(model, meter)
        return Begun(answer, exchange, attempt, live, ticket, took_s, claim)

    async def _left(self, live: LiveEndpoint, claim: EndpointClaim | None, meter: Meter) -> None:
        """An attempt has left its endpoint."""
        self._balancer.end(live)
        try:
            if claim is not None:
                await self._limits.free(claim, meter)
        finally:
            self._room.left(live.endpoint.model)

    def _exchange(self, told: Told, endpoint: Endpoint, meter: Meter) -> Exchange:
        provider = self._providers[endpoint.provider]
        dialect, call = told
        deadline_s = meter.started_s + endpoint.timeouts.total_s
        return provider.opened(
            call, endpoint, dialect, meter, max_tokens=meter.capped_max_tokens, deadline_s=deadline_s
        )

    def _begin(self, endpoint: Endpoint, meter: Meter) -> Attempt:
        attempt = Attempt(endpoint.id, str(endpoint.provider), self._elapsed_ms(meter))
        meter.attempts.append(attempt)
        meter.endpoint = endpoint
        # What an attempt that failed had noted before it did says nothing about this one.
        meter.usage, meter.quality, meter.delivered_tokens = None, Quality.ESTIMATED, 0
        meter.finish_reason = meter.first_token_ms = None
        return attempt

    def _unasked(self, live: LiveEndpoint, ticket: int, meter: Meter) -> None:
        """The provider found that it cannot carry the call before it had sent anything: that was no attempt."""
        meter.attempts.pop()
        meter.endpoint = None
        if meter.attempts and not meter.attempts[-1].is_free:
            self._retries.given_back(self._clock.monotonic())
        self._balancer.abandoned(live, ticket)

    # ── Failures ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _failed(self, attempt: Attempt, live: LiveEndpoint, ticket: int, failure: AttemptFailed, meter: Meter) -> None:
        """Note a failure before the answer began."""
        attempt.upstream_status = failure.upstream_status
        attempt.reason = failure.reason
        attempt.is_free = failure.is_caller_fault or failure.kind is FailureKind.NOTHING_SENT
        meter.error_reason = failure.reason
        if failure.may_be_billed or meter.usage is not None:
            bill_failed(meter, attempt)
        meter.endpoint = None  # nobody answered
        self._end(attempt, "failed", meter)
        self._blame(live, ticket, failure)

    def _broke(self, begun: Begun, error: BaseException, meter: Meter) -> None:
        attempt = begun.attempt
        if isinstance(error, AttemptFailed):
            attempt.reason, attempt.upstream_status = error.reason, error.upstream_status
            self._blame(begun.live, begun.ticket, error, has_begun=True)
            self._end(attempt, "broke_off", meter)
        else:
            self._balancer.abandoned(begun.live, begun.ticket)
            self._end(attempt, "cancelled", meter)

    def _blame(self, live: LiveEndpoint, ticket: int, failure: AttemptFailed, *, has_begun: bool = False) -> None:
        fault = fault_of(failure)
        if fault is None or failure.kind is FailureKind.CLIENT_LEFT:
            self._balancer.abandoned(live, ticket)
            return
        if has_begun and fault is Fault.ERROR:
            fault = Fault.TRUNCATED
        message = None
        if failure.upstream_message:
            message = error_sanitizer.clean(failure.upstream_message, secrets=_secrets(live.endpoint))
        self._balancer.failed(live, ticket, failure, fault, message)

    def _caller_error(self, endpoint: Endpoint, failure: AttemptFailed) -> GatewayError:
        """What a failure means to the caller, should nothing better come."""
        return error_sanitizer.caller_error(failure, secrets=_secrets(endpoint))

    def _exhausted(self, model: Model, last: GatewayError | None) -> GatewayError:
        """What the caller is told when nobody is left to ask. When to come back is true: somebody may be asked by then."""
        if last is None and self._balancer.has_full(model):
            return Overloaded(retry_after_s=FULL_RETRY_S)
        if last is None or isinstance(last, NoHealthyEndpoint):
            return NoHealthyEndpoint(retry_after_s=self._balancer.next_try_s(model))
        return last

    def _end(self, attempt: Attempt, outcome: str, meter: Meter) -> None:
        attempt.outcome, attempt.ended_ms = outcome, self._elapsed_ms(meter)

    def _elapsed_ms(self, meter: Meter) -> int:
        return round((self._clock.monotonic() - meter.started_s) * 1000)


class OpenedCall:
    """`Failover.opened`."""

    __slots__ = ("_asked", "_begun", "_failover", "_meter")
    _begun: Begun

    def __init__(self, failover: Failover, dialect: Dialect, model: Model, meter: Meter, catalog: Catalog) -> None:
        self._failover = failover
        self._asked = (dialect, model, meter, catalog)
        self._meter = meter

    async def __aenter__(self) -> Answer:
        self._begun = begun = await self._failover.begin(*self._asked)
        return begun.answer

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Awaitable[bool | None]:
        return self._failover.end(self._begun, self._meter, error)


def _may_fall_back(error: GatewayError) -> bool:
    """Whether another model may do better: where nobody answered, or what was asked does not fit this one."""
    if isinstance(error, UpstreamRejected):
        return error.code == ContextLengthExceeded.code or error.code in POLICY_CODES
    return isinstance(error, UpstreamFailed | Overloaded | ContextLengthExceeded | InvalidRequest)


def _told(dialect: Dialect, endpoint: Endpoint, meter: Meter) -> Told:
    """Raises: EndpointUnfit."""
    try:
        return dialect.towards(endpoint.provider, meter.call)
    except InvalidRequest as error:
        raise EndpointUnfit(error, reason="not_translatable") from error


def _without(endpoint: Endpoint, model: Model) -> Model:
    return replace(model, endpoints=tuple(each for each in model.endpoints if each.id != endpoint.id))


def _secrets(endpoint: Endpoint) -> tuple[str, ...]:
    return (endpoint.credential,) if endpoint.credential else ()
