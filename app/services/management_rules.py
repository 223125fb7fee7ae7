"""What every spec must satisfy, whoever sends it: the REST API, the dashboard or the command line.

Pure checks that raise `InvalidRequest` naming the field.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from ipaddress import ip_network
from typing import Final

from app.domain.budget import Budget
from app.domain.identity import APP_ID_PATTERN, HOUSE_PREFIX, OID_PATTERN, Overflow, OverflowMode
from app.domain.limits import Limit, LimitKind
from app.domain.money import MAX_BUDGET_NANOUSD
from app.domain.pricing import Price, Tier
from app.exceptions import InvalidRequest

MAX_NAME_LENGTH: Final = 200
MAX_WINDOW_S: Final = 366 * 86_400
"""A year and a day: longer windows are what budgets of kind "total" are for."""
MAX_LIMIT: Final = 10**15
"""Far above any real limit, and exact in the counter store's numbers (2⁵³)."""
MAX_LIST_LENGTH: Final = 1000
MAX_LIMITS: Final = 20
"""Limits or budgets of one holder: each is counted at every call."""

_LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}\Z")
MAX_LABELS: Final = 20
_EMAIL: Final = re.compile(r"[^@\s]{1,64}@[^@\s]{1,189}\Z")


def require_text(value: str, param: str, *, max_length: int = MAX_NAME_LENGTH, may_be_empty: bool = True) -> None:
    """Refuse what would break a log line, a header, a page or the database: control characters, NUL, lone surrogates."""
    if len(value) > max_length:
        raise InvalidRequest(f"'{param}' is longer than {max_length} characters.", param=param)
    if not may_be_empty and not value.strip():
        raise InvalidRequest(f"'{param}' may not be empty.", param=param)
    if any(unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp") for each in value):
        raise InvalidRequest(f"'{param}' holds a control character.", param=param)


def require_oid(oid: str) -> None:
    if oid.startswith(HOUSE_PREFIX):
        raise InvalidRequest(
            f"'user_oid' may not begin with '{HOUSE_PREFIX}': those are the gateway's own.", param="user_oid"
        )
    if not OID_PATTERN.fullmatch(oid):
        raise InvalidRequest(
            "'user_oid' must be 1 to 200 visible ASCII characters without spaces (it travels in a header).",
            param="user_oid",
        )


def require_app_id(app_id: str) -> None:
    if not APP_ID_PATTERN.fullmatch(app_id):
        raise InvalidRequest("'app_id' must be 1 to 100 letters, digits, dots, dashes or underscores.", param="app_id")


def require_email(email: str | None) -> None:
    if email is not None:
        require_text(email, "email", max_length=254)
        if not _EMAIL.match(email):
            raise InvalidRequest("'email' is not an e-mail address.", param="email")


def require_model_name(name: str, param: str) -> None:
    require_text(name, param, may_be_empty=False)
    if name != name.strip() or name == "*":
        raise InvalidRequest(f"'{param}' may not be '*', nor begin or end with a space.", param=param)


def require_texts(values: Iterable[str], param: str) -> None:
    listed = list(values)
    if len(listed) > MAX_LIST_LENGTH:
        raise InvalidRequest(f"'{param}' has more than {MAX_LIST_LENGTH} entries.", param=param)
    for index, value in enumerate(listed):
        require_text(value, f"{param}[{index}]", may_be_empty=False)
    if len(set(listed)) != len(listed):
        raise InvalidRequest(f"'{param}' names something twice.", param=param)


def checked_networks(values: Iterable[str], param: str) -> tuple[str, ...]:
    """Addresses and networks in their usual spelling."""
    listed = list(values)
    require_texts(listed, param)
    checked = []
    for index, value in enumerate(listed):
        try:
            network = ip_network(value, strict=False)
        except ValueError:
            raise InvalidRequest(
                f"'{param}[{index}]' is neither an IP address nor a network like 10.0.0.0/8.", param=f"{param}[{index}]"
            ) from None
        is_single = network.prefixlen == network.max_prefixlen
        checked.append(str(network.network_address) if is_single else str(network))
    return tuple(checked)


def require_limits(limits: tuple[Limit, ...]) -> None:
    """Two limits of one kind and window would share one counter, so one of them would be a mistake."""
    if len(limits) > MAX_LIMITS:
        raise InvalidRequest(f"'limits' has more than {MAX_LIMITS} entries.", param="limits")
    seen: set[tuple[LimitKind, int]] = set()
    for index, limit in enumerate(limits):
        at = f"limits[{index}]"
        if not 0 <= limit.limit <= MAX_LIMIT:
            raise InvalidRequest(f"'{at}.limit' must be between 0 and {MAX_LIMIT}.", param=f"{at}.limit")
        if limit.kind is LimitKind.CONCURRENCY:
            if limit.window_s != 0:
                raise InvalidRequest(
                    f"'{at}.window_seconds' must be 0 or absent: concurrency is counted at once, not over time.",
                    param=f"{at}.window_seconds",
                )
        elif not 1 <= limit.window_s <= MAX_WINDOW_S:
            raise InvalidRequest(
                f"'{at}.window_seconds' must be between 1 and {MAX_WINDOW_S}.", param=f"{at}.window_seconds"
            )
        if (limit.kind, limit.window_s) in seen:
            raise InvalidRequest(f"'{at}' repeats a limit of the same kind and window.", param=at)
        seen.add((limit.kind, limit.window_s))


def require_budgets(budgets: tuple[Budget, ...]) -> None:
    """One budget per period; amounts within what the counters hold exactly; soft not above hard."""
    periods = [budget.period for budget in budgets]
    for index, budget in enumerate(budgets):
        at = f"budgets[{index}]"
        soft, hard = budget.soft_limit_nanousd, budget.hard_limit_nanousd
        for name, amount in (("soft_limit_usd", soft), ("hard_limit_usd", hard)):
            if amount is not None and not 0 <= amount <= MAX_BUDGET_NANOUSD:
                raise InvalidRequest(f"'{at}.{name}' must be between 0 and 9000000 USD.", param=f"{at}.{name}")
        if soft is None and hard is None:
            raise InvalidRequest(f"'{at}' needs a soft_limit_usd or a hard_limit_usd.", param=at)
        if soft is not None and hard is not None and soft > hard:
            raise InvalidRequest(f"'{at}.soft_limit_usd' may not exceed the hard limit.", param=f"{at}.soft_limit_usd")
        if budget.period in periods[:index]:
            raise InvalidRequest(f"'{at}' repeats the period '{budget.period}'.", param=at)


def require_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > MAX_LABELS:
        raise InvalidRequest(f"'labels' has more than {MAX_LABELS} entries.", param="labels")
    for name, value in labels.items():
        if not _LABEL.match(name):
            raise InvalidRequest(
                "A label's name is 1 to 63 letters, digits, dots, dashes, underscores or slashes.", param="labels"
            )
        require_text(value, f"labels.{name}")


def require_overflow(overflow: Overflow, known_models: Iterable[str]) -> None:
    if overflow.mode is OverflowMode.FALLBACK and overflow.fallback_model is None:
        raise InvalidRequest(
            "'overflow.fallback_model' is needed for the mode 'fallback'.", param="overflow.fallback_model"
        )
    if overflow.fallback_model is not None and overflow.fallback_model not in known_models:
        raise InvalidRequest(
            f"'overflow.fallback_model': there is no model '{overflow.fallback_model[:100]}'.",
            param="overflow.fallback_model",
        )


def require_no_fallback_cycle(name: str, fallbacks: tuple[str, ...], of_others: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse fallbacks that lead back to the model itself, over however many others."""
    chain = {**of_others, name: fallbacks}
    ways: list[tuple[str, ...]] = [(name, fallback) for fallback in fallbacks]
    seen: set[str] = set()
    while ways:
        way = ways.pop()
        if way[-1] == name:
            shown = " → ".join(each[:100] for each in way[:10])
            raise InvalidRequest(f"'fallbacks' would lead back to the model itself: {shown}.", param="fallbacks")
        if way[-1] not in seen:
            seen.add(way[-1])
            ways += [(*way, following) for following in chain.get(way[-1], ())]


def require_price(price: Price | None) -> None:
    if price is None:
        return
    _require_rising(price.tiers, "price.tiers")
    names = [served.name for served in price.service_tiers]
    if len(set(names)) != len(names):
        raise InvalidRequest("'price.service_tiers' names a tier twice.", param="price.service_tiers")
    for index, served in enumerate(price.service_tiers):
        require_text(served.name, f"price.service_tiers.{index}.name", max_length=40, may_be_empty=False)
        _require_rising(served.tiers, f"price.service_tiers.{index}.tiers")


def _require_rising(tiers: tuple[Tier, ...], param: str) -> None:
    steps = [tier.above_prompt_tokens for tier in tiers]
    if steps != sorted(set(steps)):
        raise InvalidRequest(f"'{param}' must rise by above_prompt_tokens.", param=param)
