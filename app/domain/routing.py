"""Choosing among the endpoints that may be asked now. Pure but for the credits of the round robin, which are raised in place.

A *share* is what one endpoint brings to the choice; every function here takes at least one and returns one of them. Ties go to the
earlier one. An endpoint of weight 0 is chosen only where all have weight 0: then all count alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from math import log
from typing import Final, Protocol, TypeVar


class Share(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def weight(self) -> int: ...
    @property
    def in_flight(self) -> int: ...

    credit: int


S = TypeVar("S", bound=Share)

UNKNOWN_LATENCY_S: Final = 1.0
"""What an endpoint that has not answered yet is thought to take once it has a call: it is tried first, but not by a crowd."""


def round_robin(shares: Sequence[S]) -> S:
    """Smooth weighted round robin (as in nginx): every pick raises each credit by the weight, takes the richest and charges it the
    sum. Over any Σ weights picks each is taken exactly its weight's number of times, spread as evenly as can be.
    """
    total, best = 0, None
    for share in shares:
        weight = share.weight
        if weight:
            total += weight
            share.credit += weight
            if best is None or share.credit > best.credit:
                best = share
    if best is None:
        total = len(shares)
        for share in shares:
            share.credit += 1
            if best is None or share.credit > best.credit:
                best = share
    if best is None:
        raise ValueError("no shares")
    best.credit -= total
    return best


def least_busy(shares: Sequence[S], chance: Callable[[], float]) -> S:
    """Of two taken by weight and chance, the one with fewer calls in flight for its weight. Two choices are enough: all processes
    looking for *the* least busy one would meet there.
    """
    weighted = [share for share in shares if share.weight] or list(shares)
    if len(weighted) > 2:
        first = _by_weight(weighted, chance())
        second = _by_weight([share for share in weighted if share is not first], chance())
        weighted = [first, second]
    return min(weighted, key=lambda share: (share.in_flight + 1) / (share.weight or 1))


def lowest_latency(shares: Sequence[S], latency_s: Callable[[S], float]) -> S:
    """The one whose next first token is likely to come soonest: its latency, once for every call that it has already."""

    def wait_s(share: S) -> float:
        known_s = latency_s(share)
        if not known_s:
            return share.in_flight * UNKNOWN_LATENCY_S / (share.weight or 1)
        return known_s * (share.in_flight + 1) / (share.weight or 1)

    return min([share for share in shares if share.weight] or shares, key=wait_s)


def cheapest(shares: Sequence[S], price: Callable[[S], int | None]) -> S:
    """The one at which this call costs least; of several that cost the same, by round robin. Without a known price: last."""
    priced = [(share, price(share)) for share in shares if share.weight] or [(share, price(share)) for share in shares]
    known = [amount for _, amount in priced if amount is not None]
    least = min(known) if known else None
    return round_robin([share for share, amount in priced if amount == least])


def sticky(shares: Sequence[S], key: bytes) -> S:
    """Rendezvous hashing by weight: the same key meets the same endpoint in every process, and when one goes only its keys move."""
    weighted = [share for share in shares if share.weight] or list(shares)
    return max(weighted, key=lambda share: _score(share, key))


def _score(share: Share, key: bytes) -> float:
    digest = blake2b(key, digest_size=8, key=share.id.encode()[:64]).digest()
    # In (0, 1): a logarithm of 0 or a division by it is out of the question.
    unit = (int.from_bytes(digest, "big") + 0.5) / 2**64
    return -(share.weight or 1) / log(unit)


def _by_weight(shares: Sequence[S], chance: float) -> S:
    at = chance * sum(share.weight or 1 for share in shares)
    for share in shares:
        at -= share.weight or 1
        if at < 0:
            return share
    return shares[-1]
