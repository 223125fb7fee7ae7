"""Admission: every limit and budget of key, user, app and model, claimed in one atomic step, and settled on the way out.

1. What the call needs is computed from the identity, the model and the estimate: pure arithmetic, no I/O.
2. One script takes all of the claims or none. Near a limit it grants fewer output tokens than the most there could be; the upstream is
   then asked for no more. Budgets that the store does not know are counted from the ledger first (see `app.services.recovery`).
3. A refusal by a limit goes the way of its key's overflow policy. A refusal by a budget whose money is *spent* is final. Money that is
   only reserved by running calls comes free as they settle: the call waits for it, briefly, before it is told to come back.
4. A call that took its time until it was admitted (its body came slowly, it waited in a queue) is looked at again as whoever stands at
   the door is: its credential, its model, its limits. What was revoked or changed meanwhile holds for it.
5. Inside the context the call runs. Its lease is renewed for as long as this process lives. A process that stood still for longer
   than its leases learns which of its calls have lost theirs, and ends them.
6. However the call ends, it is concluded, billed and settled: counters corrected, reservation released, record appended, in one
   step. The settlement is queued before anything is awaited, so a cancellation cannot stop it; while the store is away it is kept
   and tried again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import tzinfo
from types import TracebackType

from app.clock import Clock
from app.domain.budget import BudgetClaim, ReserveMode
from app.domain.call import Estimate, EstimateKind, Meter
from app.domain.catalog import Catalog, Model
from app.domain.identity import Overflow, OverflowMode
from app.domain.limits import Claim, Limit, Scope, TokenNeed, claims_for
from app.domain.record import encode_record
from app.exceptions import (
    BudgetExceeded,
    BudgetReserved,
    ContextLengthExceeded,
    DependencyUnavailable,
    GatewayError,
    LeaseLost,
    ModelNotAllowed,
    ModelNotFound,
    PriceUnknown,
    RateLimited,
)
from app.services import budget
from app.services.checkpoints import Checkpoints
from app.services.estimation import Estimation
from app.services.expectations import USEFUL_TOKENS, Expectations
from app.services.overflow import OverflowQueues
from app.services.recording import record_if_lost, record_of
from app.services.running import RunningCalls
from app.services.turnstile import Turnstiles
from app.storage.ports import (
    Admitted,
    BudgetRefused,
    Counters,
    LimitRefused,
    Reservation,
    Settlement,
)
from app.telemetry import logger

FRESH_S = 0.1
"""How long ago a caller may have come when his call is admitted; after more than this he is identified again. That is a look into memory,
and no call pays for it that is read and admitted at once."""
BUDGET_WAIT_S = 2.0
"""How long a call waits for money that running calls hold, before it is told to come back."""
BUDGET_RETRY_S = 1.0
"""What it is then told: by that time calls of ordinary length have settled."""


class Admission:
    def __init__(
        self,
        *,
        counters: Counters,
        clock: Clock,
        conclude: Callable[[Meter, BaseException | None], None],
        default_limits: tuple[Limit, ...],
        zone: tzinfo,
        lease_s: int,
        estimation: Estimation,
        expectations: Expectations,
        catalog: Callable[[], Catalog],
    ) -> None:
        """`catalog`: the one that holds at this moment."""
        self._counters = counters
        self._clock = clock
        self._conclude = conclude
        self._default_limits = default_limits
        self._zone = zone
        self._lease_s = lease_s
        self._estimation = estimation
        self._expectations = expectations
        self._catalog = catalog
        self._turnstiles = Turnstiles()
        self._queues = OverflowQueues(clock=clock, turnstiles=self._turnstiles, room_in_ms=counters.room_in_ms)
        self.running = RunningCalls()
        self.checkpoints = Checkpoints(counters=counters, clock=clock)
        self._unsettled: deque[Settlement] = deque()
        self._doubtful: deque[str] = deque()

    def admitted(self, model: Model, meter: Meter, catalog: Catalog) -> AdmittedCall:
        """Inside the context the call may be made, of the model that it gives: another than asked for only where the key's overflow
        policy names one.

        Raises, on entering: RateLimited, BudgetExceeded, BudgetReserved, PriceUnknown, DependencyUnavailable; where it took its time,
        also what is said at the door to one who may not call, or not this model.
        """
        return AdmittedCall(self, model, meter, catalog)

    async def begin(self, model: Model, meter: Meter, catalog: Catalog) -> Model:
        model = await self._admit(model, meter, catalog)
        if self._clock.monotonic() - meter.started_s > FRESH_S:
            model = await self._confirmed(model, meter, catalog)
        meter.is_admitted = True
        self.running.add(meter.request_id, meter)
        if meter.call.is_stream:
            self.checkpoints.add(meter)
        return model

    async def end(self, meter: Meter, error: BaseException | None) -> None:
        try:
            self._conclude(meter, error)
        finally:
            self.running.discard(meter.request_id)
            self.checkpoints.discard(meter)
            await self._settle(meter)

    async def swapped(self, model: Model, meter: Meter) -> bool:
        """Exchange what is reserved for a running call for what it needs now: another model, or the same one beside the cost of an
        attempt that failed. In one step; False: that is not to be had, or its prompt is too long for the model. It then has what it had.

        Raises: DependencyUnavailable.
        """
        had = _Held.of(meter)
        try:
            if model is not meter.model:
                meter.estimate = await self._estimation.of(meter.call, model)
            meter.capped_max_tokens = meter.granted_tokens = meter.grow = None
            if await self._tried(model, meter) is None:
                if meter.call.is_stream:
                    self.checkpoints.add(meter)
                return True
        except (BudgetExceeded, BudgetReserved, PriceUnknown, ContextLengthExceeded):
            pass
        had.put_back(meter)
        return False

    # ── Chores ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def renew_leases(self) -> None:
        if self.running:
            gone = await self._counters.renew(list(self.running), self._lease_s)
            if self.running.end(gone, LeaseLost()):
                logger.warning("calls_ended_without_lease", calls=len(gone))

    async def settle_again(self) -> None:
        """Repeat the settlements that the store could not take, and give back what was perhaps admitted and is not wanted."""
        while self._unsettled:
            await self._counters.settle(self._unsettled[0])
            self._unsettled.popleft()
        while self._doubtful:
            await self._counters.release(self._doubtful[0])
            self._doubtful.popleft()

    @property
    def running_calls(self) -> int:
        return len(self.running)

    # ── The way in ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _admit(self, model: Model, meter: Meter, catalog: Catalog) -> Model:
        key = meter.identity.key
        overflow = key.overflow if key else Overflow()
        if key and overflow.mode is OverflowMode.QUEUE:
            with self.running.waiting(meter.request_id):
                refused = await self._queues.admitted(
                    key.id,
                    _limiters(meter, model),
                    max_wait_s=overflow.max_wait_s,
                    ask=lambda: self._tried_as_now(model, meter, catalog),
                )
        else:
            refused = await self._tried(model, meter)
        if refused is not None and overflow.mode is OverflowMode.FALLBACK and overflow.fallback_model:
            other = _fallback(meter, model, overflow.fallback_model, catalog)
            if other is not None:
                meter.estimate = await self._estimation.of(meter.call, other)
                refused = await self._tried(other, meter)
        if refused is not None:
            raise _limit_error(refused)
        return meter.model or model  # the one that was tried last

    async def _tried_as_now(self, model: Model, meter: Meter, catalog: Catalog) -> LimitRefused | None:
        """As `_tried`, by one who may have waited in a queue. Raises also: as `_as_now`."""
        if self._clock.monotonic() - meter.started_s > FRESH_S:
            model = await self._as_now(model, meter, catalog)
        return await self._tried(model, meter)

    async def _confirmed(self, model: Model, meter: Meter, catalog: Catalog) -> Model:
        """What was admitted, if it still may be; exchanged for what the call needs now, where its caller or model have changed.

        Raises: RateLimited, and as `_tried` and `_as_now`. What it holds is then given back.
        """
        before = meter.identity
        try:
            now = await self._as_now(model, meter, catalog)
            if now is not model or meter.identity != before:
                refused = await self._tried(now, meter)
                if refused is not None:
                    raise _limit_error(refused)
            return now
        except BaseException:
            self._doubtful.append(meter.request_id)
            raise

    async def _as_now(self, model: Model, meter: Meter, catalog: Catalog) -> Model:
        """The caller and his model as they are by now; `catalog` is the one in which the model was found.

        Raises: InvalidApiKey, Forbidden, TooManyFailures, DependencyUnavailable, ModelNotFound, ModelNotAllowed, ContextLengthExceeded.
        """
        if meter.identify is None:
            return model  # a call of the gateway's own
        meter.identity = await meter.identify()
        asked = meter.call.model
        name = asked if catalog.names.get(asked) == model.name else model.name  # or it is a fallback
        now = self._catalog().model_for(meter.identity, name)
        if now is not model:
            meter.estimate = await self._estimation.of(meter.call, now)
        return now

    async def _tried(self, model: Model, meter: Meter) -> LimitRefused | None:
        """Claim everything; None when that is done. Waits for money that is only reserved.

        Raises: BudgetExceeded, BudgetReserved, PriceUnknown, DependencyUnavailable.
        """
        reservation = self._reservation(model, meter)
        deadline_s = self._clock.monotonic() + BUDGET_WAIT_S
        while True:
            match await self._asked(reservation):
                case Admitted() as admitted:
                    self._note(meter, model, reservation, admitted)
                    return None
                case LimitRefused() as refused:
                    return refused
                case BudgetRefused() as refused:
                    if _is_spent(refused, reservation):
                        if not await self._refined(meter, model):
                            raise _budget_error(refused)
                        reservation = self._reservation(model, meter)
                        continue
                    left_s = deadline_s - self._clock.monotonic()
                    if left_s <= 0:
                        claim = refused.state.claim
                        raise BudgetReserved(
                            scope=claim.scope, period=claim.budget.period, retry_after_s=BUDGET_RETRY_S
                        )
                    await self._turnstiles.wait(refused.state.claim.counter, at_most_s=left_s)
                case _:
                    raise DependencyUnavailable("counter store")

    async def _refined(self, meter: Meter, model: Model) -> bool:
        """Count the prompt, now that the answer hangs on it. True when it is thought smaller than before."""
        before = meter.estimate
        if before is None or before.kind is EstimateKind.TOKENIZER:
            return False
        meter.estimate = await self._estimation.refined(before, meter.call, model)
        return meter.estimate.prompt_bound < before.prompt_bound

    async def _asked(self, reservation: Reservation) -> object:
        """The counters' word. Where nobody waits for it any more, or it never came, what it may have taken is given back later."""
        try:
            return await self._counters.admit(reservation)
        except (asyncio.CancelledError, DependencyUnavailable):
            if reservation.call_id not in self.running:  # one that runs is settled, whatever it holds by then
                self._doubtful.append(reservation.call_id)
            raise

    def _reservation(self, model: Model, meter: Meter) -> Reservation:
        expected = self._expectations.floor_tokens(meter, model)
        floor = min(expected, USEFUL_TOKENS * meter.call.choices)
        need = budget.need_of(meter, model, floor_tokens=floor, expected_tokens=expected)
        budgets = budget.claims_of(meter, model, need, now=meter.created_at, zone=self._zone)
        lost = budgets[0].lost_nanousd if budgets else budget.surely_sent(meter, model)
        meter.model = model
        return Reservation(
            call_id=meter.request_id,
            claims=tuple(self._limits_of(meter, model, floor, expected)),
            budgets=tuple(budgets),
            lease_s=self._lease_s,
            record=encode_record(record_if_lost(meter, lost_nanousd=lost)),
            need=need,
        )

    def _limits_of(self, meter: Meter, model: Model, floor: int, expected: int) -> list[Claim]:
        identity, estimate = meter.identity, meter.estimate
        need = TokenNeed(
            prompt=estimate.prompt_tokens if estimate else 0,
            most=estimate.completion_tokens if estimate else 0,
            floor=floor,
            is_elastic=meter.call.max_tokens is None,
            expected=expected if self._expectations.has_learned(meter, model) else None,
        )
        claims = claims_for(Scope.USER, identity.user.oid, identity.user.limits, need=need)
        if identity.key:
            own = identity.key.limits
            limits = self._default_limits if own is None else own
            claims += claims_for(Scope.KEY, identity.key.id, limits, need=need)
        if identity.app:
            claims += claims_for(Scope.APP, identity.app.id, identity.app.limits, need=need)
        return claims + claims_for(Scope.MODEL, model.name, model.limits, need=need)

    def _note(self, meter: Meter, model: Model, reservation: Reservation, admitted: Admitted) -> None:
        """Write into the meter what was claimed and granted."""
        meter.limits, meter.budgets = admitted.limits, admitted.budgets
        hard = [claim for claim in reservation.budgets if claim.budget.hard_limit_nanousd is not None]
        most, tokens = reservation.need.max_output_tokens, admitted.output_tokens
        if not hard:
            return
        meter.granted_tokens = tokens
        if tokens >= most:
            return
        if all(_may_grow(claim) for claim in hard):
            meter.grow = lambda wanted: self._grown(meter, wanted)
        else:
            meter.capped_max_tokens = max(1, tokens // meter.call.choices)

    async def _grown(self, meter: Meter, wanted: int) -> int:
        """More output tokens for a stream that outgrows what was expected; while the counters are away it has what it has."""
        try:
            return await self._counters.grow(meter.request_id, wanted)
        except DependencyUnavailable:
            return meter.granted_tokens or 0

    # ── The way out ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _settle(self, meter: Meter) -> None:
        budget.bill(meter)
        self._expectations.learn(meter)
        usage = meter.usage
        settlement = Settlement(
            call_id=meter.request_id,
            cost_nanousd=meter.cost_nanousd,
            tokens=usage.prompt_tokens + usage.completion_tokens if usage else 0,
            record=encode_record(record_of(meter)),
        )
        meter.is_settled = True
        try:
            await self._counters.settle(settlement)
        except DependencyUnavailable:
            self._unsettled.append(settlement)
        finally:
            self._turnstiles.given_back(state.claim.counter for state in meter.limits)
            self._turnstiles.given_back(state.claim.counter for state in meter.budgets)


class AdmittedCall:
    """`Admission.admitted`."""

    __slots__ = ("_admission", "_catalog", "_meter", "_model")

    def __init__(self, admission: Admission, model: Model, meter: Meter, catalog: Catalog) -> None:
        self._admission = admission
        self._model = model
        self._meter = meter
        self._catalog = catalog

    def __aenter__(self) -> Awaitable[Model]:
        return self._admission.begin(self._model, self._meter, self._catalog)

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Awaitable[None]:
        return self._admission.end(self._meter, error)


@dataclass(frozen=True, slots=True)
class _Held:
    """What a running call was admitted with."""

    model: Model | None
    estimate: Estimate | None
    granted_tokens: int | None
    capped_max_tokens: int | None
    grow: Callable[[int], Awaitable[int]] | None

    @classmethod
    def of(cls, meter: Meter) -> _Held:
        return cls(meter.model, meter.estimate, meter.granted_tokens, meter.capped_max_tokens, meter.grow)

    def put_back(self, meter: Meter) -> None:
        meter.model, meter.estimate, meter.granted_tokens = self.model, self.estimate, self.granted_tokens
        meter.capped_max_tokens, meter.grow = self.capped_max_tokens, self.grow


def _limiters(meter: Meter, model: Model) -> list[tuple[Scope, str]]:
    """Everybody whose limits the call meets."""
    identity = meter.identity
    limiters = [(Scope.USER, identity.user.oid), (Scope.MODEL, model.name)]
    if identity.key:
        limiters.insert(0, (Scope.KEY, identity.key.id))
    if identity.app:
        limiters.append((Scope.APP, identity.app.id))
    return limiters


def _fallback(meter: Meter, model: Model, name: str, catalog: Catalog) -> Model | None:
    """The model that the key's overflow policy names, if this identity may use it and it is another one."""
    try:
        other = catalog.model_for(meter.identity, name)
    except (ModelNotFound, ModelNotAllowed):
        return None
    return None if other.name == model.name else other


def _may_grow(claim: BudgetClaim) -> bool:
    return claim.budget.reserve is ReserveMode.EXPECTED


def _is_spent(refused: BudgetRefused, reservation: Reservation) -> bool:
    """Whether not even what is unspent pays for a useful answer; otherwise running calls hold the money."""
    state, need = refused.state, reservation.need
    hard = state.claim.budget.hard_limit_nanousd or 0
    unspent = hard - state.spent_nanousd
    return unspent <= 0 or unspent < need.cost_of(min(need.floor_tokens, need.max_output_tokens))


def _budget_error(refused: BudgetRefused) -> GatewayError:
    claim = refused.state.claim
    ends_at = claim.period.ends_at
    return BudgetExceeded(
        scope=claim.scope, period=claim.budget.period, resets_at=ends_at.isoformat() if ends_at else None
    )


def _limit_error(refused: LimitRefused) -> GatewayError:
    claim = refused.state.claim
    return RateLimited(
        scope=claim.scope,
        kind=claim.limit.kind,
        limit=claim.limit.limit,
        window_s=claim.limit.window_s,
        retry_after_s=refused.retry_after_ms / 1000,
        remaining=refused.state.remaining,
        reset_s=refused.state.reset_ms / 1000,
    )
