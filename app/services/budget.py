"""Money around one call: what is reserved before it, what it cost after it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, tzinfo

import msgspec

from app.domain.belief import believable, disbelief
from app.domain.budget import NO_NEED, Budget, BudgetClaim, Need, ReserveMode, budget_claims_for
from app.domain.call import Attempt, AttemptBill, Meter, Quality
from app.domain.catalog import Model
from app.domain.limits import Scope
from app.domain.money import NanoUsd, pico_to_nano_rounded_up
from app.domain.pricing import Cost, Price, Usage, cost_of, dearest
from app.domain.service_tiers import asked_tiers
from app.exceptions import PriceUnknown
from app.services.context_validation import window_of

Holders = list[tuple[Scope, str, tuple[Budget, ...]]]
FIRST_AHEAD_TOKENS = 64
"""What a stream under a hard budget is charged for before its first checkpoint: most are noted before they have delivered so much."""


def claims_of(meter: Meter, model: Model, need: Need, *, now: datetime, zone: tzinfo) -> list[BudgetClaim]:
    """The claims of one call against every budget of its key, user, app and model, for the periods that `now` falls into."""
    held = _holders(meter, model)
    if not held:
        return []
    most = need.cost_of(need.max_output_tokens)
    lost = _lost_cost(meter, model, need, held)
    claims = [
        claim
        for scope, holder, budgets in held
        for claim in budget_claims_for(scope, holder, budgets, worst_case=most, lost=lost, now=now, zone=zone)
    ]
    return claims if meter.call.is_stream else [_in_full(claim) for claim in claims]


def need_of(meter: Meter, model: Model, *, floor_tokens: int, expected_tokens: int) -> Need:
    """What the call needs of money, at the dearest price of any endpoint that may answer it.

    Raises: PriceUnknown when a hard budget would have to pay for a model without a price.
    """
    estimate, held = meter.estimate, _holders(meter, model)
    if estimate is None or not held:
        return NO_NEED
    prices = _possible_prices(model)
    if prices is None:
        if _has_hard(held):
            raise PriceUnknown(model.name)
        return NO_NEED
    prompt, images = max(estimate.prompt_bound, estimate.prompt_tokens), meter.call.images
    asked = asked_tiers(meter.call.fields)
    costs = [dearest(price, prompt_tokens=prompt, images=images, asked_tiers=asked) for price in prices]
    fixed = pico_to_nano_rounded_up(max([sent for sent, _ in costs]))
    return Need(
        fixed_nanousd=NanoUsd(fixed + meter.failed_nanousd),
        unit_picousd=max([unit for _, unit in costs]),
        max_output_tokens=estimate.completion_tokens,
        floor_tokens=floor_tokens,
        is_elastic=meter.call.max_tokens is None,
        expected_tokens=expected_tokens,
    )


def bill(meter: Meter) -> None:
    """Write usage, quality, price and cost into the meter, from what is known when the call ends.

    The provider's figures are exact. Without them, what passed through is counted (partial), and a call that was cut off before it
    showed anything is charged the prompt that was sent (estimated). A call that reached no upstream costs nothing. Failed attempts
    that their upstreams bill are a part of the cost.
    """
    if meter.cost is not None:
        return  # a unary answer is billed before it is sent, for its headers; its settlement must say the same
    failed = meter.failed_nanousd
    if meter.model is None or meter.endpoint is None:
        meter.cost = Cost(failed) if failed else None
        return
    meter.price = meter.model.price_at(meter.endpoint)
    is_disbelieved = _disbelieved(meter, meter.model)
    if meter.usage is None:
        prompt = meter.estimate.prompt_tokens if meter.estimate else 0
        meter.usage = Usage(prompt_tokens=prompt, completion_tokens=meter.delivered_tokens)
        is_counted = meter.delivered_tokens > 0 and not is_disbelieved
        meter.quality = Quality.PARTIAL if is_counted else Quality.ESTIMATED
    if meter.price and meter.price.image:
        meter.usage = msgspec.structs.replace(meter.usage, images=meter.call.images)
    cost = cost_of(meter.usage, meter.price) if meter.price else Cost(NanoUsd(0))
    meter.cost = msgspec.structs.replace(cost, nanousd=NanoUsd(cost.nanousd + failed)) if failed else cost


def bill_failed(meter: Meter, attempt: Attempt) -> None:
    """Bill an attempt that failed after its upstream had the prompt: what that reported of it, else the prompt that was sent."""
    if meter.model is None or meter.endpoint is None:
        return
    price = meter.model.price_at(meter.endpoint)
    _disbelieved(meter, meter.model)
    usage, quality = meter.usage, meter.quality
    if usage is None:
        prompt = meter.estimate.prompt_tokens if meter.estimate else 0
        usage, quality = Usage(prompt, meter.delivered_tokens), Quality.ESTIMATED
    if price and price.image:
        usage = msgspec.structs.replace(usage, images=meter.call.images)
    attempt.bill = AttemptBill(usage, quality, price, cost_of(usage, price) if price else Cost(NanoUsd(0)))


def _disbelieved(meter: Meter, model: Model) -> bool:
    """Take a usage that cannot be true for none, and say so on the record."""
    said = meter.usage
    if said is None:
        return False
    window, delivered = window_of(meter.call, model), meter.delivered_tokens
    if believable(said, meter.estimate, window, delivered_tokens=delivered) is not None:
        return False
    meter.usage = None
    meter.warnings.append(disbelief(said))
    return True


def _holders(meter: Meter, model: Model) -> Holders:
    """Those that have budgets."""
    identity, holders = meter.identity, Holders()
    user, key, app = identity.user, identity.key, identity.app
    if user.budgets:
        holders.append((Scope.USER, user.oid, user.budgets))
    if model.budgets:
        holders.append((Scope.MODEL, model.name, model.budgets))
    if key and key.budgets:
        holders.append((Scope.KEY, key.id, key.budgets))
    if app and app.budgets:
        holders.append((Scope.APP, app.id, app.budgets))
    return holders


def _has_hard(held: Holders) -> bool:
    return any(budget.hard_limit_nanousd is not None for _, _, budgets in held for budget in budgets)


def _possible_prices(model: Model) -> list[Price] | None:
    """Every price that the call may end up with, or None when one of them is not known."""
    prices = [model.price_at(endpoint) for endpoint in model.endpoints] or [model.price]
    known = [price for price in prices if price is not None]
    return known if len(known) == len(prices) else None


def _lost_cost(meter: Meter, model: Model, need: Need, held: Holders) -> NanoUsd:
    """What a call is charged whose process dies before anything of its answer is known.

    Where no hard budget pays: what was surely sent, its prompt. A hard budget is promised never to be overspent, so there nothing that
    the upstream may yet put on its invoice may go unpaid: of a stream so many tokens as it is not let past before its first
    checkpoint, of a unary answer all that was reserved for it (the admission lowers this to what it granted).
    """
    if not _has_hard(held):
        return surely_sent(meter, model)
    tokens = need.max_output_tokens
    if meter.call.is_stream:
        tokens = min(tokens, FIRST_AHEAD_TOKENS * meter.call.choices)
    return need.cost_of(tokens)


def surely_sent(meter: Meter, model: Model) -> NanoUsd:
    """What a call that was sent costs if nothing else is known of it: its prompt, as likely counted, at the cheapest endpoint."""
    prices = _possible_prices(model)
    if not prices or meter.estimate is None:
        return meter.failed_nanousd
    sent = Usage(prompt_tokens=meter.estimate.prompt_tokens)
    return NanoUsd(min(cost_of(sent, price).nanousd for price in prices) + meter.failed_nanousd)


def _in_full(claim: BudgetClaim) -> BudgetClaim:
    """A unary answer shows nothing until it is whole, so its reservation cannot grow with it: what may come is held at once."""
    if claim.budget.reserve is ReserveMode.WORST_CASE:
        return claim
    return msgspec.structs.replace(claim, budget=replace(claim.budget, reserve=ReserveMode.WORST_CASE))
