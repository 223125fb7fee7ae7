"""Money around one call: what is reserved before it, what it cost after it."""

from __future__ import annotations

from datetime import datetime, tzinfo

from app.domain.budget import Budget, BudgetClaim, budget_claims_for
from app.domain.call import Meter, Quality
from app.domain.catalog import Model
from app.domain.limits import Scope
from app.domain.money import NanoUsd
from app.domain.pricing import Cost, Price, Usage, cost_of, worst_case
from app.exceptions import PriceUnknown


def reservations(meter: Meter, model: Model, *, now: datetime, zone: tzinfo) -> list[BudgetClaim]:
    """The claims of one call against every budget of its key, user, app and model.

    Raises: PriceUnknown when a hard budget would have to pay for a model without a price.
    """
    holders = _holders(meter, model)
    if not any(budgets for _, _, budgets in holders):
        return []
    prices = _possible_prices(model)
    if prices is None and any(b.hard_limit_nanousd is not None for _, _, budgets in holders for b in budgets):
        raise PriceUnknown(model.name)
    worst, lost = _bounds(meter, prices or [])
    return [
        claim
        for scope, holder, budgets in holders
        for claim in budget_claims_for(scope, holder, budgets, worst_case=worst, lost=lost, now=now, zone=zone)
    ]


def bill(meter: Meter) -> None:
    """Write usage, quality, price and cost into the meter, from what is known when the call ends.

    The provider's figures are exact. Without them, what passed through is counted (partial), and a call that was cut off before it
    showed anything is charged the prompt that was sent (estimated). A call that reached no upstream costs nothing.
    """
    if meter.model is None or meter.endpoint is None:
        return
    meter.price = meter.model.price_at(meter.endpoint)
    if meter.usage is None:
        prompt = meter.estimate.prompt_tokens if meter.estimate else 0
        meter.usage = Usage(prompt_tokens=prompt, completion_tokens=meter.delivered_tokens)
        meter.quality = Quality.PARTIAL if meter.delivered_tokens else Quality.ESTIMATED
    meter.cost = cost_of(meter.usage, meter.price) if meter.price else Cost(NanoUsd(0))


def _holders(meter: Meter, model: Model) -> list[tuple[Scope, str, tuple[Budget, ...]]]:
    identity = meter.identity
    holders = [(Scope.USER, identity.user.oid, identity.user.budgets), (Scope.MODEL, model.name, model.budgets)]
    if identity.key:
        holders.append((Scope.KEY, identity.key.id, identity.key.budgets))
    if identity.app:
        holders.append((Scope.APP, identity.app.id, identity.app.budgets))
    return holders


def _possible_prices(model: Model) -> list[Price] | None:
    """Every price that the call may end up with, or None when one of them is not known."""
    prices = [model.price_at(endpoint) for endpoint in model.endpoints] or [model.price]
    known = [price for price in prices if price is not None]
    return known if len(known) == len(prices) else None


def _bounds(meter: Meter, prices: list[Price]) -> tuple[NanoUsd, NanoUsd]:
    """The most that the call can cost, and what it surely costs once it was sent: its prompt."""
    estimate, images = meter.estimate, meter.call.images
    if estimate is None or not prices:
        return NanoUsd(0), NanoUsd(0)
    worst = max(
        worst_case(
            price,
            prompt_tokens=estimate.prompt_tokens,
            completion_tokens=estimate.completion_tokens,
            images=images,
        )
        for price in prices
    )
    sent = min(cost_of(Usage(prompt_tokens=estimate.prompt_tokens), price).nanousd for price in prices)
    return worst, NanoUsd(min(worst, sent))
