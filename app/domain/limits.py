"""Limits: how many requests or tokens in any interval of a window's length, how many calls at once.

A window slides. It is cut into `SLOTS` equal slots; an admission is counted in the slot it falls into and is forgotten only
when that whole slot has left the window, so in *no* interval of the window's length is more than the limit admitted, and never
more than one slot's worth (1 in `SLOTS`) less. The counting itself happens in the counter store, in one atomic step.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    """Whose limit or budget it is."""

    KEY = "key"
    USER = "user"
    APP = "app"
    MODEL = "model"


class LimitKind(StrEnum):
    REQUESTS = "requests"
    TOKENS = "tokens"
    CONCURRENCY = "concurrency"


SLOTS = 64
"""Slots per window: a limit is used to at least 63/64, above the 98 % that is promised, for 64 small numbers."""


@dataclass(frozen=True, slots=True)
class Limit:
    """`limit` requests or tokens in any `window_s` seconds; for concurrency, calls at once (`window_s` is 0)."""

    kind: LimitKind
    limit: int
    window_s: int


@dataclass(frozen=True, slots=True)
class Claim:
    """What one call takes from one limit: `amount` 1 for requests and concurrency, estimated tokens for tokens."""

    scope: Scope
    scope_id: str
    limit: Limit
    amount: int

    @property
    def counter(self) -> str:
        """The counter's name; equal limits of one holder share one counter, so an edit of another field keeps it."""
        return f"{self.scope}:{self.scope_id}:{self.limit.kind}:{self.limit.window_s}"


@dataclass(frozen=True, slots=True)
class ClaimState:
    """A limit right after an admission or refusal: what is left of it, and when all of it is free again."""

    claim: Claim
    remaining: int
    reset_ms: int


def claims_for(scope: Scope, scope_id: str, limits: tuple[Limit, ...], *, tokens: int) -> list[Claim]:
    """The claims of one call against one holder's limits."""
    return [Claim(scope, scope_id, limit, tokens if limit.kind is LimitKind.TOKENS else 1) for limit in limits]
