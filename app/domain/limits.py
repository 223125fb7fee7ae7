"""Limits: how many requests or tokens in any interval of a window's length, how many calls at once.

A window slides. It is cut into `SLOTS` equal slots; an admission is counted in the slot it falls into and is forgotten only
when that whole slot has left the window, so in *no* interval of the window's length is more than the limit admitted, and never
more than one slot's worth (1 in `SLOTS`) less. The counting itself happens in the counter store, in one atomic step.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import msgspec


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


class Claim(msgspec.Struct, frozen=True):
    """What one call takes from one limit: 1 of requests and of concurrency, and of tokens what it is thought to need.

    `amount` is what it takes where there is room, `least` (None: the same) with how little it can begin near the limit.
    """

    scope: Scope
    scope_id: str
    limit: Limit
    amount: int
    least: int | None = None

    @property
    def counter(self) -> str:
        """The counter's name; equal limits of one holder share one counter, so an edit of another field keeps it."""
        return f"{self.scope}:{self.scope_id}:{self.limit.kind}:{self.limit.window_s}"


class ClaimState(msgspec.Struct, frozen=True):
    """A limit right after an admission or refusal: what is left of it, and when all of it is free again."""

    claim: Claim
    remaining: int
    reset_ms: int


class TokenNeed(msgspec.Struct, frozen=True):
    """What one call needs of tokens: its prompt, the most it may produce, and the fewest that make a useful answer."""

    prompt: int
    most: int
    floor: int
    is_elastic: bool
    """The maximum is the model's, not the caller's own."""
    expected: int | None = None
    """What such answers have been seen to take; None while nothing is known of them."""

    def claim(self, limit: int) -> tuple[int, int]:
        """What to claim of a limit, and with how little to begin. A call larger than the whole limit claims all of it: it may run
        when nothing else does, rather than never.

        A maximum that is only the model's says little about what a call will use, so it claims no more than a tenth of the limit
        (or the floor): ten callers share what one could hold, and what they really used is booked afterwards.
        """
        floor = min(self.floor, self.most)
        if not self.is_elastic:
            whole = min(limit, self.prompt + self.most)
            return whole, whole
        least = min(limit, self.prompt + floor)
        wanted = limit // SHARES if self.expected is None else self.prompt + self.expected
        return min(self.prompt + self.most, max(least, wanted)), least


def full_windows(amount: int, limit: int) -> tuple[int, int]:
    """How many windows an amount fills that is larger than the limit, and what is left for the one after them."""
    windows, rest = divmod(max(1, amount) - 1, max(1, limit))
    return windows, rest + 1


SHARES = 10
"""Into how many parts the last of a limit or budget is shared among calls that do not say how much they will use."""


def claims_for(scope: Scope, scope_id: str, limits: tuple[Limit, ...], *, need: TokenNeed) -> list[Claim]:
    """The claims of one call against one holder's limits."""
    claims = []
    for limit in limits:
        amount, least = need.claim(limit.limit) if limit.kind is LimitKind.TOKENS else (1, 1)
        claims.append(Claim(scope, scope_id, limit, amount, least))
    return claims
