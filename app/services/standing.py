"""Where a caller stands: his own limits and budgets, what is left of them, and when they are whole again.

The counter store is asked once for all of it. A budget that it does not know is looked up in the ledger; what neither can say
now (one of them is away) is None, and the rest is told all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, tzinfo

from app.clock import Clock
from app.domain.budget import Budget, BudgetClaim, BudgetState, PeriodKind, period_at
from app.domain.identity import ANY_MODEL, Identity
from app.domain.limits import Claim, ClaimState, Limit, LimitKind, Scope
from app.domain.money import NanoUsd
from app.exceptions import DependencyUnavailable
from app.storage.ports import Counters, UsageStore

SPEND = Budget(PeriodKind.MONTHLY, None, None, opened_ms=2**53)
"""What is spent in a month is asked for like a budget without limits. Where there is a monthly one its counter says it; what was counted
for one that was taken away is older than this and says nothing."""


@dataclass(frozen=True, slots=True)
class LimitStanding:
    claim: Claim
    remaining: int | None
    """None: cannot be said now."""
    resets_at: datetime | None
    """When all of it is free again; None where no time is known to pass before that (slots free themselves as calls end)."""


@dataclass(frozen=True, slots=True)
class BudgetStanding:
    claim: BudgetClaim
    spent_nanousd: NanoUsd | None
    """None: cannot be said now."""
    reserved_nanousd: NanoUsd | None

    @property
    def remaining_nanousd(self) -> NanoUsd | None:
        """What is neither spent nor reserved; None without a hard limit, or when it cannot be said."""
        if self.spent_nanousd is None:
            return None
        return BudgetState(self.claim, self.spent_nanousd, self.reserved_nanousd or NanoUsd(0)).remaining_nanousd


@dataclass(frozen=True, slots=True)
class Standing:
    at: datetime
    identity: Identity
    allowed_models: tuple[str, ...]
    """Names, or `*` alone."""
    limits: tuple[LimitStanding, ...]
    budgets: tuple[BudgetStanding, ...]
    month: tuple[BudgetStanding, ...]
    """What the user, and the key he calls with, have spent in the present month."""


class Standings:
    def __init__(
        self,
        *,
        counters: Counters,
        ledger: UsageStore,
        clock: Clock,
        zone: tzinfo,
        default_limits: tuple[Limit, ...],
    ) -> None:
        self._counters = counters
        self._ledger = ledger
        self._clock = clock
        self._zone = zone
        self._default_limits = default_limits

    async def of(self, identity: Identity) -> Standing:
        """Never raises for a store that is away."""
        now = self._clock.now()
        claims = self._limit_claims(identity)
        money = self._budget_claims(identity, now)
        limits, states = await asyncio.gather(self._limits(claims, now), self._known(money))
        budgets = await asyncio.gather(
            *(self._budget(claim, state) for claim, state in zip(money, states, strict=True))
        )
        own = sum(len(held) for _, _, held in _budget_holders(identity))
        return Standing(
            at=now,
            identity=identity,
            allowed_models=allowed_models(identity),
            limits=tuple(limits),
            budgets=tuple(budgets[:own]),
            month=tuple(budgets[own:]),
        )

    def _limit_claims(self, identity: Identity) -> list[Claim]:
        holders = [(Scope.USER, identity.user.oid, identity.user.limits)]
        if identity.key:
            own = identity.key.limits
            holders.insert(0, (Scope.KEY, identity.key.id, self._default_limits if own is None else own))
        if identity.app:
            holders.append((Scope.APP, identity.app.id, identity.app.limits))
        return [Claim(scope, holder, limit, 0) for scope, holder, limits in holders for limit in limits]

    def _budget_claims(self, identity: Identity, now: datetime) -> list[BudgetClaim]:
        """Those of the identity's budgets, and then two for what was spent this month."""
        wanted = [(scope, holder, each) for scope, holder, budgets in _budget_holders(identity) for each in budgets]
        wanted.append((Scope.USER, identity.user.oid, _monthly(identity.user.budgets)))
        if identity.key:
            wanted.append((Scope.KEY, identity.key.id, _monthly(identity.key.budgets)))
        return [
            BudgetClaim(scope, holder, each, period_at(each.period, now, self._zone), NanoUsd(0))
            for scope, holder, each in wanted
        ]

    async def _limits(self, claims: Sequence[Claim], now: datetime) -> list[LimitStanding]:
        try:
            states = await self._counters.limit_states(claims)
        except DependencyUnavailable:
            return [LimitStanding(claim, None, None) for claim in claims]
        return [_limit_standing(state, now) for state in states]

    async def _known(self, claims: Sequence[BudgetClaim]) -> Sequence[BudgetState | None]:
        try:
            return await self._counters.budget_states(claims)
        except DependencyUnavailable:
            return [None] * len(claims)

    async def _budget(self, claim: BudgetClaim, state: BudgetState | None) -> BudgetStanding:
        if state is not None:
            return BudgetStanding(claim, state.spent_nanousd, state.reserved_nanousd)
        try:
            return BudgetStanding(claim, await self._ledger.spent(claim), NanoUsd(0))
        except DependencyUnavailable:
            return BudgetStanding(claim, None, None)


def allowed_models(identity: Identity) -> tuple[str, ...]:
    """What key and app both allow."""
    restricted = [
        holder.allowed_models
        for holder in (identity.key, identity.app)
        if holder is not None and ANY_MODEL not in holder.allowed_models
    ]
    return tuple(sorted(frozenset.intersection(*restricted))) if restricted else (ANY_MODEL,)


def _budget_holders(identity: Identity) -> list[tuple[Scope, str, tuple[Budget, ...]]]:
    holders = [(Scope.USER, identity.user.oid, identity.user.budgets)]
    if identity.key:
        holders.insert(0, (Scope.KEY, identity.key.id, identity.key.budgets))
    if identity.app:
        holders.append((Scope.APP, identity.app.id, identity.app.budgets))
    return holders


def _monthly(budgets: Sequence[Budget]) -> Budget:
    opened_ms = next((each.opened_ms for each in budgets if each.period is PeriodKind.MONTHLY), SPEND.opened_ms)
    return replace(SPEND, opened_ms=opened_ms)


def _limit_standing(state: ClaimState, now: datetime) -> LimitStanding:
    is_window = state.claim.limit.kind is not LimitKind.CONCURRENCY
    resets_at = now + timedelta(milliseconds=state.reset_ms) if is_window else None
    return LimitStanding(state.claim, state.remaining, resets_at)
