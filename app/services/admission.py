"""Admission: every limit and budget of key, user, app and model, claimed in one atomic step, and settled on the way out.

1. The claims are computed from the identity, the model and the estimate (pure arithmetic, no I/O).
2. One script takes all of them or none. A budget counter that the store does not know is first seeded from the ledger: absent is
   not zero.
3. Inside the context the call runs. Its lease is renewed for as long as this process lives.
4. However the call ends, it is concluded, billed and settled: counters corrected, reservation released, record appended, in one
   step. The settlement is queued before anything is awaited, so a cancellation cannot stop it; while the store is away it is kept
   and tried again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import tzinfo

from app.clock import Clock
from app.domain.call import Meter
from app.domain.catalog import Model
from app.domain.limits import Claim, Limit, Scope, claims_for
from app.domain.record import encode_record
from app.exceptions import BudgetExceeded, BudgetReserved, DependencyUnavailable, GatewayError, RateLimited
from app.services import budget
from app.services.recording import record_if_lost, record_of
from app.storage.ports import (
    Admitted,
    BudgetRefused,
    BudgetsUnseeded,
    Counters,
    LimitRefused,
    Reservation,
    Settlement,
    UsageStore,
)

SEED_ROUNDS = 3
"""Seeding may race with an expiring counter; more rounds than this mean that the store is not keeping what it is told."""


class Admission:
    def __init__(
        self,
        *,
        counters: Counters,
        ledger: UsageStore,
        clock: Clock,
        conclude: Callable[[Meter, BaseException | None], None],
        default_limits: tuple[Limit, ...],
        zone: tzinfo,
        lease_s: int,
    ) -> None:
        self._counters = counters
        self._ledger = ledger
        self._clock = clock
        self._conclude = conclude
        self._default_limits = default_limits
        self._zone = zone
        self._lease_s = lease_s
        self._running: set[str] = set()
        self._unsettled: deque[Settlement] = deque()

    @asynccontextmanager
    async def admitted(self, model: Model, meter: Meter) -> AsyncIterator[None]:
        """Raises: RateLimited, BudgetExceeded, BudgetReserved, PriceUnknown, DependencyUnavailable."""
        meter.model = model
        await self._admit(self._reservation(model, meter), meter)
        self._running.add(meter.request_id)
        try:
            yield
        except BaseException as error:
            self._conclude(meter, error)
            raise
        else:
            self._conclude(meter, None)
        finally:
            self._running.discard(meter.request_id)
            await self._settle(meter)

    async def renew_leases(self) -> None:
        if self._running:
            await self._counters.renew(list(self._running), self._lease_s)

    async def settle_again(self) -> None:
        """Repeat the settlements that the store could not take."""
        while self._unsettled:
            await self._counters.settle(self._unsettled[0])
            self._unsettled.popleft()

    @property
    def running_calls(self) -> int:
        return len(self._running)

    def limits_of(self, meter: Meter, model: Model) -> list[Claim]:
        identity, tokens = meter.identity, meter.estimate.total_tokens if meter.estimate else 0
        claims = claims_for(Scope.USER, identity.user.oid, identity.user.limits, tokens=tokens)
        if identity.key:
            own = identity.key.limits
            limits = self._default_limits if own is None else own
            claims += claims_for(Scope.KEY, identity.key.id, limits, tokens=tokens)
        if identity.app:
            claims += claims_for(Scope.APP, identity.app.id, identity.app.limits, tokens=tokens)
        return claims + claims_for(Scope.MODEL, model.name, model.limits, tokens=tokens)

    def _reservation(self, model: Model, meter: Meter) -> Reservation:
        budgets = budget.reservations(meter, model, now=meter.created_at, zone=self._zone)
        lost = max((claim.lost_nanousd for claim in budgets), default=0)
        return Reservation(
            call_id=meter.request_id,
            claims=tuple(self.limits_of(meter, model)),
            budgets=tuple(budgets),
            lease_s=self._lease_s,
            record=encode_record(record_if_lost(meter, lost_nanousd=lost)),
        )

    async def _admit(self, reservation: Reservation, meter: Meter) -> None:
        for _ in range(SEED_ROUNDS):
            match await self._counters.admit(reservation):
                case Admitted(limits, budgets):
                    meter.limits, meter.budgets = limits, budgets
                    return
                case BudgetsUnseeded(claims):
                    for claim in claims:
                        await self._counters.seed(claim, await self._ledger.spent(claim))
                case LimitRefused() | BudgetRefused() as refused:
                    raise _error_of(refused)
        raise DependencyUnavailable("counter store")

    async def _settle(self, meter: Meter) -> None:
        budget.bill(meter)
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
        except asyncio.CancelledError:
            raise  # the settlement was queued before the first await and is carried out all the same


def _error_of(refused: LimitRefused | BudgetRefused) -> GatewayError:
    match refused:
        case LimitRefused(state, retry_after_ms):
            claim = state.claim
            return RateLimited(
                scope=claim.scope,
                kind=claim.limit.kind,
                limit=claim.limit.limit,
                window_s=claim.limit.window_s,
                retry_after_s=retry_after_ms / 1000,
            )
        case BudgetRefused(state):
            budget_claim = state.claim
            hard = budget_claim.budget.hard_limit_nanousd or 0
            if state.spent_nanousd + budget_claim.amount_nanousd <= hard:
                return BudgetReserved(scope=budget_claim.scope, period=budget_claim.budget.period, retry_after_s=1.0)
            ends_at = budget_claim.period.ends_at
            return BudgetExceeded(
                scope=budget_claim.scope,
                period=budget_claim.budget.period,
                resets_at=ends_at.isoformat() if ends_at else None,
            )
