"""How full budgets are, for many holders at once: what is spent, what running calls hold, what is left.

The counter store is asked once for all. What it does not know (or cannot say now) is read from the ledger, once for all holders of a
scope and period; what neither can say is None.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import tzinfo

from app.clock import Clock
from app.domain.budget import Budget, BudgetClaim, BudgetState, Period, period_at
from app.domain.limits import Scope
from app.domain.money import NanoUsd
from app.exceptions import DependencyUnavailable
from app.services.standing import BudgetStanding
from app.storage.overview_ports import OverviewStore
from app.storage.ports import Counters

Held = tuple[Scope, str, Sequence[Budget]]
"""A holder and its budgets."""


@dataclass(frozen=True, slots=True)
class Gauges:
    counters: Counters
    ledger: OverviewStore
    clock: Clock
    zone: tzinfo

    async def of(self, holders: Iterable[Held]) -> dict[tuple[Scope, str], list[BudgetStanding]]:
        """By holder, in the order of its budgets. Never raises for a store that is away."""
        now = self.clock.now()
        claims = [
            BudgetClaim(scope, holder, each, period_at(each.period, now, self.zone), NanoUsd(0))
            for scope, holder, budgets in holders
            for each in budgets
        ]
        states = await self._known(claims)
        unknown = [claim for claim, state in zip(claims, states, strict=True) if state is None]
        spent = await self._spent(unknown)
        found: defaultdict[tuple[Scope, str], list[BudgetStanding]] = defaultdict(list)
        for claim, state in zip(claims, states, strict=True):
            if state is not None:
                standing = BudgetStanding(claim, state.spent_nanousd, state.reserved_nanousd)
            else:
                standing = BudgetStanding(claim, spent.get(claim.counter), NanoUsd(0))
            found[claim.scope, claim.scope_id].append(standing)
        return dict(found)

    async def _known(self, claims: Sequence[BudgetClaim]) -> Sequence[BudgetState | None]:
        try:
            return await self.counters.budget_states(claims) if claims else []
        except DependencyUnavailable:
            return [None] * len(claims)

    async def _spent(self, claims: Sequence[BudgetClaim]) -> dict[str, NanoUsd]:
        groups: defaultdict[tuple[Scope, Period], list[BudgetClaim]] = defaultdict(list)
        for claim in claims:
            groups[claim.scope, claim.period].append(claim)
        spent: dict[str, NanoUsd] = {}
        for (scope, period), group in groups.items():
            try:
                sums = await self.ledger.spent(scope, period, [claim.scope_id for claim in group])
            except DependencyUnavailable:
                continue
            spent |= {claim.counter: sums.get(claim.scope_id, NanoUsd(0)) for claim in group}
        return spent
