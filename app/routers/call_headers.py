"""What an answer says in its headers about the call: limits, routing, money."""

from __future__ import annotations

from urllib.parse import quote

from app.domain.call import Meter
from app.domain.limits import ClaimState, LimitKind
from app.domain.money import nano_to_usd
from app.middleware.rate_headers import RATE_LIMIT_NAMES, Headers, rate_limit_headers


def call_headers(meter: Meter, *, is_over: bool = False) -> Headers:
    """The headers of an answer that has begun. The cost is among them once it is known (unary answers).

    Until then what is left is what is left beside all that was reserved for the call. `is_over`: it was settled, with or without an
    answer, and what it did not use is free again.
    """
    headers: Headers = []
    for kind in RATE_LIMIT_NAMES:
        state = _tightest(meter.limits, kind)
        if state is not None:
            limit, remaining = state.claim.limit.limit, state.remaining
            if kind == LimitKind.TOKENS and (is_over or meter.cost is not None):
                remaining = min(limit, remaining + state.claim.amount - _used_tokens(meter))
            headers += rate_limit_headers(kind, limit=limit, remaining=remaining, reset_ms=state.reset_ms)
    if meter.model is not None:
        headers.append((b"x-gateway-model", _latin(meter.model.name)))
    if meter.endpoint is not None:
        headers.append((b"x-gateway-endpoint", meter.endpoint.id.encode()))
    elif meter.attempts:  # none has answered: the last that was asked
        headers.append((b"x-gateway-endpoint", meter.attempts[-1].endpoint_id.encode()))
    headers.append((b"x-gateway-attempts", b"%d" % len(meter.attempts)))
    if meter.capped_max_tokens is not None:
        headers.append((b"x-gateway-max-tokens", b"%d" % meter.capped_max_tokens))
    headers.append((b"x-litellm-call-id", meter.request_id.encode()))
    if meter.cost is not None and (meter.price is not None or meter.endpoint is None):  # an unknown price is not zero
        cost = nano_to_usd(meter.cost.nanousd).encode()
        headers.append((b"x-gateway-cost-usd", cost))
        headers.append((b"x-litellm-response-cost", cost))
    headers.extend(_budget_headers(meter, is_over=is_over))
    return headers


def _used_tokens(meter: Meter) -> int:
    """As they are settled."""
    return meter.usage.prompt_tokens + meter.usage.completion_tokens if meter.usage else 0


def _budget_headers(meter: Meter, *, is_over: bool) -> Headers:
    """What is left of the tightest hard budget after this call, and a warning past a soft one."""
    headers: Headers = []
    is_known = is_over or meter.cost is not None
    settled = meter.cost_nanousd if is_known else None
    left = []
    for state in meter.budgets:
        remaining = state.remaining_nanousd
        charge = state.claim.amount_nanousd if settled is None else settled
        if remaining is not None:
            left.append(max(0, remaining - charge))
        soft = state.claim.budget.soft_limit_nanousd
        if soft is not None and state.spent_nanousd + charge > soft:
            warning = f"{state.claim.scope} {state.claim.budget.period} soft limit {nano_to_usd(soft)} USD passed"
            headers.append((b"x-gateway-budget-warning", warning.encode()))
    if left:
        headers.append((b"x-gateway-budget-remaining-usd", nano_to_usd(min(left)).encode()))
    return headers


def _tightest(states: tuple[ClaimState, ...], kind: str) -> ClaimState | None:
    """The limit of this kind that will be used up first."""
    found = None
    for state in states:
        if state.claim.limit.kind == kind and (found is None or state.remaining < found.remaining):
            found = state
    return found


def _latin(text: str) -> bytes:
    """A model's name as a header value: what a header cannot hold is percent-encoded."""
    if text.isascii() and text.isprintable():
        return text.encode()
    return quote(text).encode()
