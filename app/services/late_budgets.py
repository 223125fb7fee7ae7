"""Budgets that are made while calls run: those calls hold them from then on, and their cost is spent there.

A budget is first counted from the ledger, which knows no call that still runs. So every process looks, when it learns of a change, at its
own running calls of that holder, and lets each hold what it did not hold when it was admitted. Nothing is asked of calls for this. It
looks a second time a moment later: at those that were on their way in, with a caller identified before the change.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import tzinfo

from app.domain.budget import NO_NEED, Budget, BudgetClaim
from app.domain.call import Meter
from app.domain.catalog import Catalog
from app.domain.limits import Scope
from app.exceptions import PriceUnknown
from app.services import budget
from app.services.running import RunningCalls
from app.storage.ports import BudgetStore, ConfigChange, Counters

SCOPES: Mapping[str, Scope] = {"user": Scope.USER, "key": Scope.KEY, "app": Scope.APP}
"""By the kind of a change. The models' budgets come with the catalog."""


class LateBudgets:
    def __init__(self, *, running: RunningCalls, counters: Counters, store: BudgetStore, zone: tzinfo) -> None:
        self._running = running
        self._counters = counters
        self._store = store
        self._zone = zone
        self._again: list[ConfigChange] = []

    async def follow(self, changes: Sequence[ConfigChange], catalog: Catalog) -> None:
        """Raises: DependencyUnavailable; then to be called again."""
        await self._follow(changes, catalog)
        self._again.extend(changes)

    async def follow_again(self, catalog: Catalog) -> None:
        """Look once more for what changed since this was last called. For a chore, every so often that a call that was identified is
        admitted by then (see `app.services.admission.FRESH_S`). Raises: DependencyUnavailable; then to be called again."""
        changes, self._again = self._again, []
        try:
            await self._follow(changes, catalog)
        except BaseException:
            self._again = changes + self._again
            raise

    async def _follow(self, changes: Sequence[ConfigChange], catalog: Catalog) -> None:
        refs = defaultdict[str, dict[str, None]](dict)
        for change in changes:
            refs[change.kind][change.ref] = None
        for kind, scope in SCOPES.items():
            if kind in refs:
                await self._follow_holders(scope, refs[kind])
        if "catalog" in refs:
            await self._follow_models(catalog)

    async def _follow_holders(self, scope: Scope, refs: Iterable[str]) -> None:
        """Thousands of changes come at once, when payments run out: each call is looked at once, not once for each."""
        calls = defaultdict[str | None, list[Meter]](list)
        for meter in self._running.meters:
            calls[_holder(meter, scope)].append(meter)
        for ref in [ref for ref in refs if ref in calls]:
            held = await self._store.budgets_of(scope, ref)
            for meter in calls[ref]:
                await self._join(meter, scope, ref, held)

    async def _follow_models(self, catalog: Catalog) -> None:
        for meter in self._running.meters:
            model = meter.model and catalog.models.get(meter.model.name)
            if model and meter.model and model.budgets != meter.model.budgets:
                await self._join(meter, Scope.MODEL, model.name, model.budgets)

    async def _join(self, meter: Meter, scope: Scope, holder: str, held: tuple[Budget, ...]) -> None:
        _let_hold(meter, scope, held)
        new = [claim for claim in self._claims(meter) if (claim.scope, claim.scope_id) == (scope, holder)]
        known = {state.claim.counter for state in meter.budgets}
        new = [claim for claim in new if claim.counter not in known]
        if new:
            await self._counters.join(meter.request_id, new)

    def _claims(self, meter: Meter) -> list[BudgetClaim]:
        if meter.model is None:
            return []
        try:
            need = budget.need_of(meter, meter.model, floor_tokens=0, expected_tokens=0)
        except PriceUnknown:
            need = NO_NEED  # it was admitted when nobody asked for its price
        return budget.claims_of(meter, meter.model, need, now=meter.created_at, zone=self._zone)


def _holder(meter: Meter, scope: Scope) -> str | None:
    identity = meter.identity
    match scope:
        case Scope.USER:
            return identity.user.oid
        case Scope.KEY:
            return identity.key.id if identity.key else None
        case Scope.APP:
            return identity.app.id if identity.app else None
        case Scope.MODEL:
            return meter.model.name if meter.model else None


def _let_hold(meter: Meter, scope: Scope, held: tuple[Budget, ...]) -> None:
    identity = meter.identity
    match scope:
        case Scope.USER:
            meter.identity = replace(identity, user=replace(identity.user, budgets=held))
        case Scope.KEY if identity.key:
            meter.identity = replace(identity, key=replace(identity.key, budgets=held))
        case Scope.APP if identity.app:
            meter.identity = replace(identity, app=replace(identity.app, budgets=held))
        case _:
            meter.model = meter.model and replace(meter.model, budgets=held)
